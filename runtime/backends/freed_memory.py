"""Return memory that libraries have freed to the system.

ONNX Runtime reorders weights while it loads them, and the C library keeps the memory for later requests: up to one and
a half times a stage's weights. https://man7.org/linux/man-pages/man3/malloc_trim.3.html
"""

import ctypes
import platform


def give_back_freed() -> None:
    """Return freed memory of this process to the system; does nothing where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
