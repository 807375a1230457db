"""Operator traces that ONNX Runtime writes by itself, and about which it says nothing where the disk is full."""

from pathlib import Path

from bitdance_edge.runtime.errors import StorageError

END = b"]"  # of Chrome's format, a list
TAIL = 16  # bytes in which the end is, with line breaks


def require_whole(trace: Path) -> None:
    """Check that a trace was written to its end.

    Raises:
        StorageError: it was not.
    """
    try:
        with trace.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            if file.read().rstrip().endswith(END):
                return
    except OSError as error:
        raise StorageError(f"cannot read the trace {trace}: {error.strerror}; choose another folder") from None
    raise StorageError(
        f"cannot write {trace}: the trace ends after {size} bytes, most likely because the disk is full; free some "
        "space on that disk, or choose another folder"
    )
