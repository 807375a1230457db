"""What this machine can do: its float32 matrix rate and read bandwidth, and the instructions that matter for INT8.

Each figure is the best of the installed libraries, so that no contender exceeds it by using a better library.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

SIDE = 1536  # of the square matrices: 7 GFLOP and 28 MB a product
READ_BYTES = 2**28  # far beyond any cache
REPEATS = 6
INSTRUCTIONS = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 VNNI": "avx512_vnni", "AVX-VNNI": "avx_vnni"} | {
    "AVX-512 BF16": "avx512_bf16",
    "AMX INT8": "amx_int8",
    "AMX BF16": "amx_bf16",
    "AVX-512 FP16": "avx512_fp16",
}


def processor() -> dict[str, Any]:
    """Return name, logical processors, last cache in bytes, flags, and whether it has each set of INSTRUCTIONS."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    said = dict(reversed([line.split(":", 1) for line in lines if ":" in line]))  # of the first processor
    said = {key.strip(): value.strip() for key, value in said.items()}
    flags = set(said.get("flags", "").split())
    return {
        "name": said.get("model name", "unknown"),
        "processors": sum(line.startswith("processor") for line in lines),
        "last_cache_bytes": _last_cache(),
        "instructions": {name: flag in flags for name, flag in INSTRUCTIONS.items()},
        "flags": sorted(flags),
    }


def _last_cache() -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [
        path.read_text(encoding="utf-8").strip()
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=0)


def abilities(threads: int) -> dict[str, Any]:
    """Measure GFLOP/s and GB/s by library with this number of threads (numpy takes it from the environment).

    One thread is timed in CPU seconds, so that other processes do not make the machine look slower.
    """
    torch.set_num_threads(threads)
    clock = process_time if threads == 1 else perf_counter
    operations = 2 * SIDE**3
    rates = {name: operations / seconds / 1e9 for name, seconds in _best(_products(threads), clock)}
    reads = {name: READ_BYTES / seconds / 1e9 for name, seconds in _best(_reads(), clock)}
    return {"threads": threads, "gflops": rates, "gbytes": reads}


def _best(functions: dict[str, Callable[[], object]], clock: Callable[[], float]) -> Iterator[tuple[str, float]]:
    for name, function in functions.items():
        function()  # warm-up
        yield name, min(_seconds(function, clock) for _ in range(REPEATS))


def _seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    function()
    return clock() - started


def _products(threads: int) -> dict[str, Callable[[], object]]:
    left, right = np.random.default_rng(0).standard_normal((2, SIDE, SIDE), np.float32)
    out, tensors = np.empty_like(left), (torch.from_numpy(left), torch.from_numpy(right))
    session = _product_session(right, threads)
    return {
        "numpy": lambda: np.matmul(left, right, out=out),
        "torch": lambda: torch.mm(*tensors),
        "onnxruntime": lambda: session.run(None, {"left": left}),
    }


def _product_session(weight: np.ndarray, threads: int) -> onnxruntime.InferenceSession:
    """Make a product with a constant that is packed once when it is loaded, as in a bundle's stages."""
    shape = list(weight.shape)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "weight"], ["out"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _reads() -> dict[str, Callable[[], object]]:
    values = np.ones(READ_BYTES // 4, np.float32)
    tensor, matrix = torch.from_numpy(values), values.reshape(-1, 4096)
    ones = np.ones(4096, np.float32)
    return {
        "numpy product with a vector": lambda: matrix @ ones,
        "torch sum": lambda: tensor.sum(),
        "torch product with a vector": lambda: torch.mv(tensor.view(-1, 4096), torch.from_numpy(ones)),
    }
