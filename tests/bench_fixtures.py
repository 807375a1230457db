"""A comparison that is run once, for all tests that look at it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benching import CHECKPOINT, SHORT, Compared, bench

from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.manifest import file_spec


@pytest.fixture(scope="session")
def compared(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("compared") / "runs"
    arguments = (bundle.folder, "--checkpoint", CHECKPOINT, *SHORT, "-o", folder)
    return Compared(folder, bench(*arguments).report, arguments)


@pytest.fixture(scope="session")
def altered(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy whose head has other weights than the checkpoint."""
    folder: Path = tmp_path_factory.mktemp("altered") / "bundle"
    shutil.copytree(bundle.folder, folder)
    head = bundle.stage("head")
    (weights,) = head.weights
    path = folder / weights.path
    (np.fromfile(path, np.float32) * np.float32(-1)).tofile(path)
    changed = replace(head, weights=(file_spec(folder, path),))
    replace(bundle, folder=folder, name="altered", stages={**bundle.stages, "head": changed}).write()
    return Bundle.open(folder)
