"""Where a graph says that its weights are: a place in a file beside it, or one error."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bitdance_edge.runtime import BundleError
from bitdance_edge.runtime.bundle.external_data import external_place, mapped_external, read_external


@dataclass
class Said:
    key: str
    value: str


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "w.data").write_bytes(bytes(range(64)))
    (tmp_path / "folder").mkdir()
    return tmp_path


def said(**entries: str) -> list[Said]:
    return [Said(key, value) for key, value in {"location": "w.data", **entries}.items()]


def test_weights_are_read_from_their_place(folder: Path) -> None:
    assert external_place(said(), folder)[1:] == (0, 64)
    entries = said(offset="8", length="4")
    assert read_external(entries, folder) == bytes(range(8, 12))
    assert np.array_equal(mapped_external(entries, folder, np.dtype(np.uint8)), np.arange(8, 12))


@pytest.mark.parametrize(
    "entries",
    [
        *({"offset": text} for text in ("-64", "x", "1.5", "\uff16\uff14", " 8 ", "9" * 5000, "1" + "0" * 23, "65")),
        *({"length": text} for text in ("-4", "x", "65", "9" * 5000)),
        {"offset": "32", "length": "33"},
        *({"location": text} for text in ("", ".", "..", "folder", "../w.data", "/etc/passwd", "none", "a\nb", "a\0b")),
        {"location": "n" * 5000},
    ],
)
def test_a_place_that_is_none_is_one_error(folder: Path, entries: dict[str, str]) -> None:
    for read in (external_place, read_external):
        with pytest.raises(BundleError) as refused:
            read(said(**entries), folder)
        assert "\n" not in str(refused.value)
