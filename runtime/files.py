"""Files that are whole or not there."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from bitdance_edge.runtime.errors import RequestError


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, under another name beside ``path`` until it is complete, then renamed.

    Raises:
        RequestError: the folder cannot be made or written, or the disk is full.
    """
    # Named before it exists, so that an interrupt at any moment finds it to remove.
    aside = path.with_name(f".writing-{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("xb") as file:
            yield file
        aside.replace(path)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None
    finally:
        with suppress(OSError):  # also where the folder itself could not be made
            aside.unlink()
