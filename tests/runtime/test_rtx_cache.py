"""What TensorRT-RTX compiled is kept beside the engine, over a library that compiles nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitdance_edge.runtime.backends.rtx_cache import RuntimeCache


class Library:
    """One runtime configuration after another, and the caches that they make."""

    def __init__(self, compiles: bytes, accepts: bool = True) -> None:
        self.compiles, self.accepts = compiles, accepts
        self.read: list[bytes] = []
        self.made = 0

    def config(self) -> Any:
        return SimpleNamespace(create_runtime_cache=self._create, set_runtime_cache=lambda cache: True)

    def _create(self) -> Any:
        self.made += 1

        def deserialize(blob: bytes) -> bool:
            self.read.append(blob)
            return self.accepts

        return SimpleNamespace(deserialize=deserialize, serialize=lambda: self.compiles)


def used(engine: Path, library: Library) -> None:
    cache = RuntimeCache(engine)
    for _ in range(2):  # contexts
        cache.use(library.config())
    cache.save()


def test_what_was_compiled_is_read_the_next_time(tmp_path: Path) -> None:
    engine, first = tmp_path / "head.engine", Library(b"kernels")
    used(engine, first)
    assert (first.made, first.read) == (1, [])
    assert (tmp_path / "head.runtime-cache").read_bytes() == b"kernels"
    second = Library(b"kernels")
    used(engine, second)
    assert second.read == [b"kernels"]


def test_a_cache_of_another_gpu_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "head.runtime-cache"
    path.write_bytes(b"of another")
    used(tmp_path / "head.engine", Library(b"kernels", accepts=False))
    assert path.read_bytes() == b"kernels"


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tmp_path / "targets" / "head.engine"
    engine.parent.write_bytes(b"")  # not a folder
    used(engine, Library(b"kernels"))


def test_an_engine_that_made_no_context_leaves_no_file(tmp_path: Path) -> None:
    RuntimeCache(tmp_path / "head.engine").save()
    assert not list(tmp_path.iterdir())
