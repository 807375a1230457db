"""Engines of TensorRT-RTX that are built on the GPU machine itself: which targets build there, load, run and agree.

    python bench/studies/rtx_built_here.py BUNDLE --folder gpu-check     # the folder of rtx_on_gpu.py prepare

Each line is printed, and the JSON rewritten, as soon as it is known, with what the library said, word for word.
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rtx_on_gpu import Cuda, run_sample

KEPT_LINES = 6  # of what the library said
TOLERANCE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("gpu-check"))
    parser.add_argument("--json", type=Path, default=Path("rtx_built_here.json"))
    args = parser.parse_args()
    trt: Any = importlib.import_module("tensorrt_rtx")
    said: list[str] = []
    logger, found = recording_logger(trt, said), {}
    runtime, cuda = trt.Runtime(logger), Cuda()
    head = next(args.bundle.glob("onnx/*/head.onnx"))
    recorded = np.load(args.folder / "head-all.npz")
    shapes = {name.removeprefix("in:"): recorded[name].shape for name in recorded.files if name.startswith("in:")}
    targets = {"default": None, "current": getattr(trt.ComputeCapability, "CURRENT", None)}
    for name, capability in targets.items():
        for flagged in (False, True):
            said.clear()
            label = f"{name}, memory of the caller's" if flagged else name
            try:
                started = time.perf_counter()
                plan = build(trt, logger, head, capability, shapes, flagged)
                (args.folder / "here.engine").write_bytes(plan)
                sample = {"name": "head-all", "engine": "here.engine", "profile": 0, "tolerance": TOLERANCE}
                seconds = time.perf_counter() - started
                found[label] = {"seconds": seconds, "result": run_sample(trt, runtime, cuda, args.folder, sample)}
            except Exception as error:  # whatever the library does is a result
                found[label] = {"result": f"{type(error).__name__}: {error}"[:400]}
            found[label]["said"] = said[-KEPT_LINES:]
            print(f"{label}: {found[label]}", flush=True)
            args.json.write_text(json.dumps(found, default=str), encoding="utf-8")


def recording_logger(trt: Any, lines: list[str]) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                lines.append(f"{severity.name}: {message}")

    return Logger()


def build(
    trt: Any, logger: Any, graph: Path, capability: Any, shapes: dict[str, tuple[int, ...]], flagged: bool
) -> bytes:
    """An engine of one profile of these shapes.

    Raises:
        RuntimeError: the graph does not parse, or the library gives no engine.
    """
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise RuntimeError(f"does not parse: {[parser.get_error(i).desc() for i in range(parser.num_errors)]}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    if flagged:
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if any(size < 0 for size in tensor.shape):
            profile.set_shape(tensor.name, *[tuple(shapes[tensor.name])] * 3)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("no engine")
    return bytes(plan)


if __name__ == "__main__":
    sys.exit(main())
