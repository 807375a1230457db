"""What TensorRT and TensorRT-RTX have in common: a stage parsed, built into an engine, and run on this GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.engines.engine_form import EngineForm
from bitdance_edge.engines.engine_run import engine_run
from bitdance_edge.engines.failure import BuildFailure, build_failure
from bitdance_edge.engines.graph import GraphFacts
from bitdance_edge.engines.network import (
    layer_kinds,
    parse_network,
    require_aliased_cache,
    require_cache_in_place,
    write_engine,
)
from bitdance_edge.engines.progress import BuildWatch, progress_monitor
from bitdance_edge.engines.shapes import shape_profiles
from bitdance_edge.engines.support import able, lacking_support, restriction
from bitdance_edge.engines.targets.interface import Built, Estimate, Job, Run
from bitdance_edge.runtime.backends.device import Device, find_device
from bitdance_edge.runtime.backends.engine_fit import engine_path
from bitdance_edge.runtime.backends.tensorrt_library import Library, load_library
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord, target_folder
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import BackendError, BuildError
from bitdance_edge.runtime.values import quoted

DETAILS = "detailed"  # layer names and their ONNX nodes stay in the engine, for inspect and profile
# Upper bounds of what was measured on builds for RTX, from a few kB of weights to 1.3 GB (bench/results/engines.md):
# kernels and descriptions beside the weights, and the builder's peak of host memory.
ENGINE_BASE, ENGINE_PER_BYTE = 8_000_000, 1.1
MEMORY_BASE = 600_000_000


@dataclass(frozen=True)
class BuildMemory:
    """Bytes of host memory that a build takes for each byte of ONNX, at most.

    ``held`` of them are the process's own; the others are pages of the ONNX files, which the system can drop and read
    again.
    """

    resident: float
    held: float


WHOLE = BuildMemory(3.15, 2.1)  # the engine is made in memory, then written
STREAMED = BuildMemory(2.2, 1.2)  # the library writes it as it makes it


class TensorRTTarget:
    """Engines by one of the two libraries.

    Args:
        library: the Python module, "tensorrt_rtx" or "tensorrt".
        capabilities: GPUs named in the target; none for the library's default or this machine's GPU.
        runs_on: compute capabilities that are known before the build; none where it is this machine's GPU.
        form: of the engines' weights.
    """

    def __init__(
        self,
        name: str,
        library: str,
        capabilities: tuple[str, ...],
        runs_on: tuple[str, ...],
        form: EngineForm | None = None,
    ) -> None:
        self.name, self.library, self.capabilities, self.runs_on = name, library, capabilities, runs_on
        self.form = form or EngineForm()

    def with_form(self, form: EngineForm) -> "TensorRTTarget":
        """Return the same target for engines of another form.

        Raises:
            BuildError: the library is not installed, or builds none.
        """
        form.require(self.loaded)
        return TensorRTTarget(self.name, self.library, self.capabilities, self.runs_on, form)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorRTTarget) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def loaded(self) -> Library:
        """Raises: BuildError: the library is not installed."""
        return load_library(self.library)

    @property
    def library_version(self) -> str:
        return self.loaded.version

    def folder(self, bundle: Bundle) -> Path:
        return target_folder(bundle, self.name)

    def stages(self, bundle: Bundle) -> list[str]:
        return list(bundle.stages)

    def job(self, bundle: Bundle, stage: str, facts: GraphFacts, max_images: int) -> Job:
        self._device(bundle)
        in_place = stage == StageName.BACKBONE and "TensorScatter" in facts.operators.values()
        return Job(
            bundle=bundle,
            stage=stage,
            facts=facts,
            max_images=max_images,
            profiles=shape_profiles(bundle, stage, max_images),
            options={
                "profiling_verbosity": DETAILS,
                "in_place_cache": in_place,
                "user_allocation": self.loaded.user_allocation is not None and not self.form.streamed,
                **self.form.options,
            },
        )

    def estimate(self, job: Job) -> Estimate:
        size, device = job.bundle.stage(job.stage).bytes, self._device(job.bundle)
        gpus = self.runs_on or ((device.capability,) if device else ())
        memory = STREAMED if self.loaded.streams_engines else WHOLE
        return Estimate(
            output_bytes=int(ENGINE_BASE * len(job.profiles) + ENGINE_PER_BYTE * size),
            memory_bytes=int(MEMORY_BASE + memory.resident * size),
            held_bytes=int(MEMORY_BASE + memory.held * size),
            refusal=lacking_support(
                job.facts, gpus, self.loaded, job.bundle, all_of_them=bool(self.capabilities) or not self.runs_on
            ),
            note=restriction(job.facts, self.runs_on),
        )

    def fits_here(self, devices: Sequence[str], built_on: str) -> bool:
        device = find_device() if built_on else None
        return not built_on or (device is not None and device.name == built_on)

    def build(self, job: Job, folder: Path, watch: BuildWatch) -> Built:
        library, device = self.loaded, self._device(job.bundle)
        path = engine_path(folder, job.stage)
        with library.recording() as said:
            try:
                network, written = self._written(job, library, watch, path)
                if not written:
                    watch.require_wanted(job.stage)
                    raise build_failure(job.stage, said, job.facts)
            except BuildFailure as failure:
                raise self._logged(job, failure, said) from None
        here = (device.capability,) if device and not self.runs_on else ()
        devices = able(job.facts, self.runs_on) or here
        if job.options["in_place_cache"] and device is not None and device.capability in devices:
            engine = library.trt.Runtime(library.logger).deserialize_cuda_engine(path.read_bytes())
            require_aliased_cache(engine, job.bundle)
        self._log(job).unlink(missing_ok=True)  # of an earlier failure
        return Built(
            files=[path], devices=devices, built_on=device.name if device and here else "", layers=layer_kinds(network)
        )

    def open(self, job: Job, record: BuildRecord, folder: Path) -> Run:
        device = find_device()
        if device is None:
            raise BackendError("no NVIDIA driver answers here, so engines are not run")
        if device.capability not in record.devices:
            raise BackendError(
                f"the GPU of this machine has compute capability {device.capability}, and the engines are for "
                f"{', '.join(record.devices)}"
            )
        return engine_run(job.bundle, job.stage, folder, self.loaded, device)

    def _written(self, job: Job, library: Library, watch: BuildWatch, path: Path) -> tuple[Any, bool]:
        """Write the engine to ``path``; the network, and whether it was written: not where the library gave up."""
        trt = library.trt
        builder = trt.Builder(library.logger)
        network = parse_network(library, builder, job.stage, job.graph, job.facts)
        if job.options["in_place_cache"]:
            require_cache_in_place(library, network, job.bundle)
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.progress_monitor = progress_monitor(trt, watch)
        for flag in map(library.builder_flag, self.form.flags):
            if flag is not None:
                config.set_flag(flag)
        if self.capabilities:
            config.num_compute_capabilities = len(self.capabilities)
            for i, capability in enumerate(self.capabilities):
                name = f"SM{capability.replace('.', '')}"
                config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
        for shapes in job.profiles:
            profile = builder.create_optimization_profile()
            for name, ranges in shapes.shapes.items():
                profile.set_shape(name, *ranges)
            config.add_optimization_profile(profile)
        return network, not watch.cancel.is_set() and write_engine(library, builder, network, config, path)

    def _device(self, bundle: Bundle) -> Device | None:
        """The GPU of this machine.

        Raises:
            BuildError: the target builds for it, and there is none.
        """
        device = find_device()
        if not self.runs_on and device is None:
            raise BuildError(
                f"target {self.name} builds for the GPU of this machine, and no NVIDIA driver answers here; "
                f"build on the device, or for RTX GPUs with: bitdance-edge build {quoted(bundle.folder)} --target rtx"
            )
        return device

    def _log(self, job: Job) -> Path:
        return self.folder(job.bundle) / f"{job.stage}.log"

    def _logged(self, job: Job, failure: BuildFailure, said: Sequence[str]) -> BuildFailure:
        with written_whole(self._log(job)) as file:
            file.write("\n".join(said).encode())
        return BuildFailure(f"{failure}; TensorRT's log is in {self._log(job)}")
