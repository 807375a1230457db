"""Files that are whole, and still there after a power failure, or are not there."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bitdance_edge.runtime import written_whole


@contextmanager
def write_durably(path: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """Open a file under a temporary name; when it is complete, force it to the disk and rename it to ``path``.

    Raises:
        StorageError: it cannot be written, or without ``replace`` there is such a file.
    """
    with written_whole(path, replace=replace) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    if sys.platform != "win32":  # where folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
