"""Files that are links to others named by their hashes, as huggingface_hub keeps them, through every command."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from calibrating import options

from bitdance_edge.calibration.calibrate import calibrate
from bitdance_edge.cli import main
from bitdance_edge.runtime import Bundle, Pipeline, Request


def hub_cache(source: Path, folder: Path) -> Path:
    """Copy a folder into a cache: ``blobs/`` by hash, and a snapshot of links to them."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "0bc53e2"
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        content = file.read_bytes()
        blob, link = blobs / hashlib.sha256(content).hexdigest(), snapshot / file.relative_to(source)
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture(scope="module")
def cached(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_cache(bundle.folder, tmp_path_factory.mktemp("hub") / "models--x--cc_4x_patch")


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "{}"],
        ["generate", "{}", "--classes", "3", "--steps", "2", "--seed", "1", "--out", "{out}/images"],
        ["compare", "{}", "--stages", "head,encoder,tokens", "--target", "cpu"],
        ["build", "{}", "--target", "cpu", "--stages", "head"],
        ["pack", "{}", "-o", "{out}/bundle.tar"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_takes_a_bundle_from_the_cache(command: list[str], cached: Path, tmp_path: Path) -> None:
    assert main([part.format(cached, out=tmp_path) for part in command]) == 0


def test_calibration_takes_a_bundle_from_the_cache(cached: Path, tmp_path: Path) -> None:
    quick = options("int8", ["head"], draw=options("int8").recipe.draw)
    calibrate(Bundle.open(cached), tmp_path / "calibrated", quick)
    with Pipeline.open(tmp_path / "calibrated") as pipeline:
        image = pipeline.generate(Request(classes=[3], seed=1, steps=2))[0]
    assert np.isin(image.tokens, (-1, 1)).all()
