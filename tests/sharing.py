"""Folders that the processes of a test run share, so that a bundle is exported once and not once a process."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = "BITDANCE_TEST_FOLDER"  # variable with the folder, where more than one run shares it; see the Makefile


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder of the whole run; pytest-xdist gives each of its processes one of its own inside it."""
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Let ``make`` fill a folder, unless this or another process of the run has done so; others wait meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.with_name(f"{folder.name}.made")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            make(folder)
            made.touch()
    return folder
