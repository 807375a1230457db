"""A bundle that takes long to write: what is written so far stays beside its place when the work stops.

The folder is named by everything that decides its content, so that the same command goes on where it stopped, and
another one begins anew. When a bundle is complete, what other commands began in its place is removed.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from bitdance_edge.calibration.stage_file import Journal
from bitdance_edge.calibration.write import JOURNAL, writing
from bitdance_edge.runtime.bundle.files import claimed_output, put_in_place


@contextmanager
def resumable(folder: Path, *decided_by: str, force: bool) -> Iterator[tuple[Path, Journal]]:
    """Give a folder to fill that an earlier run may have begun, and its journal; put it in place when it is full.

    Args:
        decided_by: texts that decide the content of every file.
        force: replace a bundle of that name.

    Raises:
        OutputBusyError: another process is writing ``folder``.
        StorageError: the folder cannot be made, or not be put in place.
    """
    key = hashlib.sha256("\n".join(decided_by).encode()).hexdigest()[:12]
    begun = folder.with_name(f".{folder.name}.calibrating-{key}")
    with claimed_output(folder):
        with writing(folder):
            begun.mkdir(parents=True, exist_ok=True)
            journal = Journal.open(begun / JOURNAL)
        yield begun, journal
        with writing(folder):
            (begun / JOURNAL).unlink()
            put_in_place(begun, folder, replace=force)
            for left in folder.parent.glob(f".{escape(folder.name)}.calibrating-*"):  # of other choices
                shutil.rmtree(left, ignore_errors=True)
