"""The command lines of TensorRT's own profilers, ``trtexec`` and for RTX ``tensorrt_rtx``, for a stage's sample.

https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/command-line-programs.html and
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/performance/best-practices.html
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitdance_edge.engines.shapes import Shape, shape_profiles
from bitdance_edge.engines.targets.tensorrt import TensorRTTarget
from bitdance_edge.runtime.backends.engine_fit import engine_path
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord, record_path

PROGRAMS = {"tensorrt_rtx": "tensorrt_rtx", "tensorrt": "trtexec"}
# Wait by spinning and replay a CUDA graph, as the runtime does. The profile comes from a run of its own, which is not
# the one that is timed. Inputs are transferred, or those of --loadInputs might not be what runs.
STEADY = ("--useSpinWait", "--separateProfileRun", "--dumpProfile", "--profilingVerbosity=detailed")


@dataclass(frozen=True)
class ProfileRun:
    """One command, and where it leaves what it measured."""

    stage: str
    sample: str
    command: tuple[str, ...]
    layer_times: Path
    layer_info: Path

    @property
    def title(self) -> str:
        return self.stage if self.sample == "all" else f"{self.stage} ({self.sample})"


def write_inputs(folder: Path, samples: Mapping[tuple[str, str], Mapping[str, np.ndarray]]) -> dict[tuple, dict]:
    """Each input as the raw bytes that ``--loadInputs`` reads; (stage, sample) -> input -> file."""
    written: dict[tuple, dict] = {}
    for (stage, sample), inputs in samples.items():
        for name, values in inputs.items():
            path = folder / "inputs" / f"{stage}-{sample}" / f"{name}.bin"
            with written_whole(path) as file:
                file.write(np.ascontiguousarray(values).tobytes())
            written.setdefault((stage, sample), {})[name] = path
    return written


def profile_runs(
    bundle: Bundle,
    target: TensorRTTarget,
    samples: Mapping[tuple[str, str], Mapping[str, np.ndarray]],
    files: Mapping[tuple, Mapping[str, Path]],
    folder: Path,
) -> list[ProfileRun]:
    """A command for each sample: of the built engine, or of the ONNX file where there is none."""
    runs = []
    for (stage, sample), inputs in samples.items():
        times, info = (folder / f"{stage}-{sample}.{kind}.json" for kind in ("times", "layers"))
        command = [
            PROGRAMS[target.library],
            *_source(bundle, target, stage, sample, inputs),
            "--shapes=" + _joined({name: values.shape for name, values in inputs.items()}),
            "--loadInputs=" + ",".join(f"{name}:{path}" for name, path in files[stage, sample].items()),
            *(["--rtxCudaGraphStrategy=wholeGraph"] if target.library == "tensorrt_rtx" else ["--useCudaGraph"]),
            *STEADY,
            f"--exportProfile={times}",
            f"--exportLayerInfo={info}",
        ]
        runs.append(ProfileRun(stage, sample, tuple(command), times, info))
    return runs


def _source(
    bundle: Bundle, target: TensorRTTarget, stage: str, sample: str, inputs: Mapping[str, np.ndarray]
) -> Sequence[str]:
    folder = target.folder(bundle)
    engine = engine_path(folder, stage)
    if engine.is_file():
        names = list(BuildRecord.read(record_path(folder, stage)).profiles)
        used = names.index(sample) if sample in names else 0  # the first of decoder and encoder is the default size
        return [f"--loadEngine={engine}", *([f"--useProfile={used}"] if len(names) > 1 else [])]
    # Built on the spot for the profile that the sample belongs to.
    profiles = shape_profiles(bundle, stage, 1)
    shapes = next((profile for profile in profiles if profile.name == sample), profiles[0]).shapes
    kinds = (("min", 0), ("opt", 1), ("max", 2))
    ranges = [f"--{kind}Shapes=" + _joined({name: shapes[name][i] for name in inputs}) for kind, i in kinds]
    # Element types are those of the graph: always so in TensorRT 11 and RTX, in trtexec of 10.x only when asked for.
    typed = ["--stronglyTyped"] if target.library == "tensorrt" else []
    return [f"--onnx={bundle.folder / bundle.stage(stage).graph.path}", *typed, *ranges]


def _joined(shapes: Mapping[str, Shape]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def shell_script(runs: Sequence[ProfileRun]) -> str:
    """The commands, to be copied to where a GPU is: run it in the folder that the paths are relative to."""
    lines = ["#!/bin/sh", "# Profiles every stage on the inputs of a real generation step.", "set -e"]
    for run in runs:
        lines += ["", f"# {run.title}", shlex.join(run.command)]
    return "\n".join(lines) + "\n"
