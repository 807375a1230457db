"""Every mutation of a checkpoint's settings is one error that names the file, or loads to the same weights."""

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mutations import VALUES, mutations, rewrite, spoilt
from places import TESTS

from bitdance_edge.model import BitDance, ModelError, TextCheckpoint, load_generator

DIGITS = TESTS.parent / "checkpoints" / "digits-4x"
TEXT = TESTS.parent / "checkpoints" / "shapes-16x"
SIZES = ("1000000", "1e30", "0.5", "[-1]", "[1, 1, 1, 1]")  # also what a size may be wrong by
MOST_MEMORY = 300_000  # kB more than before the first mutation
MOST_SECONDS = 5.0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On models as small as these, several threads take more processor time, and no less of the clock's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda source: shutil.copytree(source, tmp_path / "checkpoint")


def try_all(file: Path, load: Callable[[], object]) -> int:
    """Load the checkpoint with every mutation of a file, and return how many were taken."""
    content = file.read_bytes()
    before, taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for place, mutated in (*mutations(json.loads(content), (*VALUES, *SIZES)), *spoilt(content)):
        rewrite(file, mutated)
        started = time.thread_time()
        try:
            load()
        except ModelError as error:
            assert str(file.parent) in str(error), f"{place}: {error}"
            assert len(str(error)) < 1500, f"{place}: {error}"
        else:
            taken += 1
        assert time.thread_time() - started < MOST_SECONDS, place
    rewrite(file, content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY
    return taken


def test_settings_of_a_generator(folder: Callable[[Path], Path]) -> None:
    checkpoint = folder(DIGITS)
    reference = load_generator(checkpoint).state_dict()

    def load() -> BitDance:
        model = load_generator(checkpoint)
        assert all(torch.equal(value, reference[key]) for key, value in model.state_dict().items())
        return model

    assert try_all(checkpoint / "config.json", load)


@pytest.mark.parametrize("name", ["config.json", "vision_head_config.json", "ae_config.json"])
def test_settings_of_a_text_to_image_model(folder: Callable[[Path], Path], name: str) -> None:
    checkpoint = folder(TEXT)
    assert try_all(checkpoint / name, lambda: TextCheckpoint.open(checkpoint))
