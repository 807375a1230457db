"""The processor's instructions: which of them INT8 products use, and what that means for their sums.

ONNX Runtime multiplies unsigned activations with signed weights. With VNNI or AMX the products are summed in 32 bits;
without them in pairs of 16 bits, which saturate, unless the weights are made unsigned too: exact, and slower.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
X86 = ("x86_64", "amd64")


@dataclass(frozen=True)
class Int8Path:
    """``widened``: weights must be made unsigned for sums to be exact."""

    widened: bool
    why: str


def int8_path() -> Int8Path:
    """Find how this machine multiplies in INT8."""
    if platform.machine().lower() not in X86:
        return Int8Path(False, f"INT8 products by the dot products of {platform.machine()}")
    flags = _flags()
    if flags is None:
        return Int8Path(
            True, "INT8 products by AVX2 with weights made unsigned: this system does not say whether there is VNNI"
        )
    for instructions, flag in (("AMX", "amx_int8"), ("AVX-512 VNNI", "avx512_vnni"), ("AVX VNNI", "avx_vnni")):
        if flag in flags:
            return Int8Path(False, f"INT8 products by {instructions}, exact in 32 bits")
    return Int8Path(
        True, "INT8 products by AVX2 with weights made unsigned: without VNNI sums would saturate; slower than VNNI"
    )


def has_amx() -> bool:
    """Whether this machine multiplies INT8 matrices by AMX."""
    return "amx_int8" in (_flags() or [])


def float32_path() -> str:
    """Name the instructions of float32 products on this machine."""
    if platform.machine().lower() not in X86:
        return platform.machine()
    flags = _flags() or []
    return next((name for name, flag in (("AVX-512", "avx512f"), ("AVX2", "avx2")) if flag in flags), "SSE")


@cache
def instructions() -> str:
    """Name this kind of processor and its instructions, for comparison."""
    flags = _flags()
    described = platform.processor() if flags is None else " ".join(sorted(flags))
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"


def _flags() -> list[str] | None:
    """The instructions as Linux names them (on arm64 it calls them features); None: the system does not say."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split() for line in lines if line.startswith(("flags", "Features"))), None)
