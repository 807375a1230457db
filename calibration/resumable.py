"""A bundle that takes long to write: what is written so far stays beside its place when the work stops.

The folder is named by everything that decides its content, so that the same command goes on where it stopped, and
another one begins anew.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitdance_edge.calibration.stage_file import Journal
from bitdance_edge.calibration.write import writing
from bitdance_edge.runtime.bundle.files import put_in_place

JOURNAL = "written.jsonl"  # of a bundle being written; removed when it is complete


@contextmanager
def resumable(folder: Path, *decided_by: str) -> Iterator[tuple[Path, Journal]]:
    """Give a folder to fill that an earlier run may have begun, and its journal; put it in place when it is full.

    Args:
        decided_by: texts that decide the content of every file.

    Raises:
        StorageError: the folder cannot be made, or not be put in place.
    """
    key = hashlib.sha256("\n".join(decided_by).encode()).hexdigest()[:12]
    begun = folder.with_name(f".{folder.name}.calibrating-{key}")
    with writing(folder):
        begun.mkdir(parents=True, exist_ok=True)
        journal = Journal.open(begun / JOURNAL)
    yield begun, journal
    with writing(folder):
        (begun / JOURNAL).unlink()
        put_in_place(begun, folder)
