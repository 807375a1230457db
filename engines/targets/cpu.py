"""``cpu``: graphs in the forms that this processor runs fastest, as ONNX Runtime has them once it has loaded them.

Loading such a graph folds and reorders nothing, and its weights are mapped from the file. The forms are those of one
version of the library and one set of instructions; elsewhere the bundle's own graphs are loaded.
https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
"""

from collections.abc import Sequence
from pathlib import Path

from bitdance_edge.engines.graph import GraphFacts
from bitdance_edge.engines.progress import BuildWatch
from bitdance_edge.engines.rewriting import INLINE_UP_TO, Graph
from bitdance_edge.engines.targets.cpu_forms import (
    CONVOLUTION_STAGES,
    POINTWISE_STAGES,
    apply_fast_forms,
    winograd_growth,
)
from bitdance_edge.engines.targets.cpu_int8 import unpacked_growth
from bitdance_edge.engines.targets.cpu_products import add_biases
from bitdance_edge.engines.targets.interface import Built, Estimate, Job, Run
from bitdance_edge.engines.targets.onnx_session import load, open_session, run_of
from bitdance_edge.runtime.backends.onnxruntime import UNQUANTISED, cpu_options, import_onnxruntime
from bitdance_edge.runtime.backends.processor import instructions
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord
from bitdance_edge.runtime.bundle.stage_names import StageName

NAME = "cpu"
FORMS = 3  # version of the rewriting: a build by another is made again
# Upper bounds of what was measured on builds of B-4x in float32. Its backbone of 683 MB takes 2.6 GB: weights, their
# transposes, what ONNX Runtime reorders, and the copy that it writes. Its decoder of 1045 MB takes 1.8 GB.
OUTPUT_BASE = 1_000_000
MEMORY_BASE, MEMORY_PER_BYTE, MEMORY_PER_BYTE_OF_PRODUCTS = 300_000_000, 2.5, 4.0
FP8_GROWTH = 4  # weights in fp8 are written as the float32 that a CPU computes in


class CpuTarget:
    name = NAME
    library = "onnxruntime"

    @property
    def library_version(self) -> str:
        return import_onnxruntime().__version__

    def stages(self, bundle: Bundle) -> list[str]:
        """All but the encoder: generating does not load it, and it is large."""
        return [stage for stage in bundle.stages if stage != StageName.ENCODER]

    def job(self, bundle: Bundle, stage: str, facts: GraphFacts, max_images: int) -> Job:
        return Job(bundle=bundle, stage=stage, facts=facts, options={"forms": FORMS})

    def estimate(self, job: Job) -> Estimate:
        size = job.bundle.stage(job.stage).bytes
        refusal = None
        if "bf16" in job.facts.types:
            refusal = (
                "ONNX Runtime has no bfloat16 kernels on a CPU: export for it with: bitdance-edge export CHECKPOINT "
                f"-o {job.bundle.folder} --dtype fp32 --force"
            )
        output = OUTPUT_BASE + size * (FP8_GROWTH if "fp8" in job.facts.types else 1)
        if job.stage in CONVOLUTION_STAGES:
            graph = Graph.read(job.graph)
            output += winograd_growth(graph) + unpacked_growth(graph)
        per_byte = MEMORY_PER_BYTE_OF_PRODUCTS if job.stage in POINTWISE_STAGES else MEMORY_PER_BYTE
        memory = int(MEMORY_BASE + per_byte * output)
        return Estimate(output_bytes=output, memory_bytes=memory, held_bytes=memory, refusal=refusal)

    def fits_here(self, devices: Sequence[str], built_on: str) -> bool:
        return tuple(devices) == (instructions(),)

    def build(self, job: Job, folder: Path, watch: BuildWatch) -> Built:
        path, rewritten = folder / f"{job.stage}.onnx", folder / f"{job.stage}.rewritten.onnx"
        weights, precision = path.with_name(f"{path.name}.data"), job.bundle.stage(job.stage).precision
        optimised = path if precision in UNQUANTISED else folder / f"{job.stage}.optimised.onnx"
        with watch.phase_of("rewriting"):
            graph = Graph.read(job.graph)
            apply_fast_forms(graph, job.stage)
            graph.name_values()
            graph.save(rewritten)
        options = cpu_options(1, precision)
        options.optimized_model_filepath = str(optimised)
        for name, value in (("file_name", f"{optimised.name}.data"), ("min_size_in_bytes", str(INLINE_UP_TO))):
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{name}", value)
        with watch.phase_of("optimising"):
            load(rewritten, options)
            if optimised != path:
                graph = Graph.read(optimised)
                add_biases(graph)
                graph.save(path)
        for step in {rewritten, optimised} - {path}:
            for left in folder.glob(f"{step.name}*"):
                left.unlink()
        return Built(files=[file for file in (path, weights) if file.exists()], devices=(instructions(),))

    def open(self, job: Job, record: BuildRecord, folder: Path) -> Run:
        graph = folder / record.files[0].name
        return run_of(open_session(graph, job.bundle.stage(job.stage).precision, optimised=True))
