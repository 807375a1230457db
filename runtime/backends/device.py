"""The GPUs of this machine, by their driver: no package is needed, and there may be none."""

import ctypes
from dataclasses import dataclass

DRIVER = "libcuda.so.1"
# CUdevice_attribute of the CUDA driver API (cuda.h)
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Device:
    name: str
    capability: str  # "8.9"


def find_device(driver: str = DRIVER, ordinal: int = 0) -> Device | None:
    """Find a GPU by its number in CUDA's order; None: there is no driver or no such GPU."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return None
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(100)
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(handle), ordinal)
        or cuda.cuDeviceGetName(name, len(name), handle)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, handle)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, handle)
    )
    return None if failed else Device(name.value.decode(), f"{major.value}.{minor.value}")


def free_memory(ordinal: int = 0) -> int | None:
    """Bytes that are free on a GPU that ``find_device`` found; None: its driver does not say."""
    cuda = ctypes.CDLL(DRIVER)
    handle, context, popped = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(handle), ordinal):
        return None
    if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle):
        return None
    try:
        if cuda.cuCtxPushCurrent_v2(context):
            return None
        failed = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(popped))
        return None if failed else free.value
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(handle)
