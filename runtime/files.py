"""Files that are whole or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bitdance_edge.runtime.errors import RequestError


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, under another name beside ``path`` until it is complete, then renamed.

    Raises:
        RequestError: the folder cannot be made or written, or the disk is full.
    """
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=path.suffix)
        aside = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
        aside.chmod(0o644)
        aside.replace(path)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)
