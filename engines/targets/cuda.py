"""``cuda``: graphs all of whose nodes have CUDA kernels in ONNX Runtime, so that a launch can be one CUDA graph.

The portable graphs of the loop already are; decoder and encoder normalise by InstanceNormalization, for which the
CUDA provider has no kernel from opset 22 on, nor any provider one in bfloat16. Head and backbone are rewritten to take
fewer launches (``cuda_forms``).
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bitdance_edge.engines.graph import GraphFacts
from bitdance_edge.engines.progress import BuildWatch
from bitdance_edge.engines.rewriting import Graph, attribute_of, make_node
from bitdance_edge.engines.targets.cuda_forms import STAGES as FEWER_LAUNCHES
from bitdance_edge.engines.targets.cuda_forms import apply_fewer_launches
from bitdance_edge.engines.targets.interface import Built, Estimate, Job, Run
from bitdance_edge.engines.targets.onnx_session import open_session, run_of
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import BackendError

NAME = "cuda"
FORMS = 3  # version of the rewriting: a build by another is made again
REWRITTEN_STAGES = (*FEWER_LAUNCHES, StageName.DECODER, StageName.ENCODER)
# Upper bounds; weights are copied one tensor at a time (B-4x's decoder of 1045 MB takes 236 MB).
OUTPUT_BASE = 1_000_000
MEMORY_BASE, MEMORY_PER_BYTE = 200_000_000, 0.5


class CudaTarget:
    name = NAME
    library = "onnxruntime"
    library_version = ""  # any that has the operators: they are in 1.31 and newer

    def stages(self, bundle: Bundle) -> list[str]:
        return [stage for stage in bundle.stages if stage in REWRITTEN_STAGES]

    def job(self, bundle: Bundle, stage: str, facts: GraphFacts, max_images: int) -> Job:
        return Job(bundle=bundle, stage=stage, facts=facts, options={"forms": FORMS})

    def estimate(self, job: Job) -> Estimate:
        size = job.bundle.stage(job.stage).bytes
        note = None if job.stage in REWRITTEN_STAGES else "unchanged: its portable graph runs on CUDA already"
        memory = int(MEMORY_BASE + MEMORY_PER_BYTE * size)
        return Estimate(output_bytes=size + OUTPUT_BASE, memory_bytes=memory, held_bytes=memory, note=note)

    def fits_here(self, devices: Sequence[str], built_on: str) -> bool:
        return True  # of any GPU

    def build(self, job: Job, folder: Path, watch: BuildWatch) -> Built:
        path = folder / f"{job.stage}.onnx"
        with watch.phase_of("rewriting"):
            graph = Graph.read(job.graph)
            if job.stage in FEWER_LAUNCHES:
                apply_fewer_launches(graph)
            scales: dict[tuple[int | str, ...], str] = {}
            for node in list(graph.model.graph.node):
                if node.op_type == "InstanceNormalization":
                    normalise_rows(graph, node, scales)
                elif node.op_type == "Cast":
                    count_on_device(graph, node)
            graph.save(path)
        data = path.with_name(f"{path.name}.data")
        return Built(files=[file for file in (path, data) if file.exists()], devices=())

    def open(self, job: Job, record: BuildRecord, folder: Path) -> Run:
        """On the CPU, whose arithmetic in float32 and float16 is that of the bundle's own check."""
        if "bf16" in job.facts.types:
            raise BackendError("ONNX Runtime has no bfloat16 kernels on a CPU, so the graph is not run here")
        return run_of(open_session(folder / record.files[0].name, job.bundle.stage(job.stage).precision))


def normalise_rows(graph: Graph, node: NodeProto, scales: dict[tuple[int | str, ...], str]) -> None:
    """Rewrite InstanceNormalization of ``[B, G, N]`` by LayerNormalization of its last axis: one kernel, in any type.

    It computes mean and variance in float32, and writes nothing but its result.
    https://onnx.ai/onnx/operators/onnx__LayerNormalization.html

    Args:
        scales: its scales, N ones each, by the shape of what was reshaped to rows; one that is missing is added.
    """
    x, scale, bias = node.input
    result, kind = node.output[0], graph.element_type(scale)
    producer = graph.producers.get(x)
    reshaped = graph.dims(producer.input[0]) if producer is not None and producer.op_type == "Reshape" else None
    shape, nodes = tuple(reshaped or [result]), []
    if shape not in scales:
        ones = scales[shape] = f"{result}/ones"
        one = helper.make_tensor("one", kind, [1], [1.0])
        nodes = [
            make_node("Shape", [x], f"{result}/size", start=2),
            make_node("ConstantOfShape", [f"{result}/size"], ones, value=one),
        ]
    epsilon = attribute_of(node, "epsilon", 1e-5)
    nodes.append(make_node("LayerNormalization", [x, scales[shape]], f"{result}/normalised", axis=2, epsilon=epsilon))
    # Scale and bias of each group; those of the exporter are ones and zeros.
    for name, operator, neutral in ((scale, "Mul", 1.0), (bias, "Add", 0.0)):
        held = graph.weight(name)
        if not (held == neutral).all():
            column = graph.constant(f"{name}/column", held[:, None])
            nodes.append(make_node(operator, [nodes[-1].output[0], column], f"{result}/{operator.lower()}"))
    nodes[-1].output[0] = nodes[-1].name = result
    graph.replace([node], nodes)


def count_on_device(graph: Graph, node: NodeProto) -> None:
    """Rewrite the number of a tensor's elements, as a value, by a sum of ones: ONNX Runtime has shapes on the host.

    A variance over an image of any size divides by it; from the host it would be copied at every launch.
    """
    product = graph.producers.get(node.input[0])
    kind = attribute_of(node, "to")
    if product is None or product.op_type != "ReduceProd" or kind != TensorProto.FLOAT:
        return
    sizes, result, one = product.input[0], node.output[0], numpy_helper.from_array(np.ones(1, np.float32))
    ones = make_node("ConstantOfShape", [sizes], f"{result}/ones", value=one)
    graph.replace([node], [ones, make_node("ReduceSum", [f"{result}/ones"], result, keepdims=0)])
    graph.drop_unread()
