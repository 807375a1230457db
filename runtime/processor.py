"""Which of the processor's instructions INT8 products take, and what that means for their sums.

ONNX Runtime multiplies unsigned activations with signed weights. With VNNI or AMX the products are added up in 32 bits;
without them in pairs of 16 bits, which saturate, unless the weights are made unsigned too: exact, and slower.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
X86 = ("x86_64", "amd64")


@dataclass(frozen=True)
class Int8Path:
    """``widened``: weights must be made unsigned for sums to be exact."""

    widened: bool
    why: str


def int8_path() -> Int8Path:
    """How this machine multiplies in INT8."""
    if platform.machine().lower() not in X86:
        return Int8Path(False, f"INT8 products by the dot products of {platform.machine()}")
    try:
        flags = next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return Int8Path(True, "INT8 products by AVX2 with weights made unsigned: this system does not tell of VNNI")
    for instructions, flag in (("AMX", "amx_int8"), ("AVX-512 VNNI", "avx512_vnni"), ("AVX VNNI", "avx_vnni")):
        if flag in flags:
            return Int8Path(False, f"INT8 products by {instructions}, exact in 32 bits")
    return Int8Path(
        True, "INT8 products by AVX2 with weights made unsigned: without VNNI sums would saturate; slower than VNNI"
    )
