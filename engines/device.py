"""The GPU of this machine, asked of its driver: no package is needed and its absence is an answer."""

import ctypes
from dataclasses import dataclass

# CUdevice_attribute of the CUDA driver API (cuda.h)
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class Device:
    name: str
    capability: str  # "8.9"


def find_device(driver: str = "libcuda.so.1") -> Device | None:
    """The first GPU that CUDA lists, or None where there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError:
        return None
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(100)
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(handle), 0)
        or cuda.cuDeviceGetName(name, len(name), handle)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, handle)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, handle)
    )
    return None if failed else Device(name.value.decode(), f"{major.value}.{minor.value}")
