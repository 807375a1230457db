"""An engine that this bundle, library or GPU cannot use is refused before it is deserialised."""

import ctypes
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bitdance_edge.engines.plan import plan_builds
from bitdance_edge.engines.targets import parse_target
from bitdance_edge.runtime import BuildError, Bundle
from bitdance_edge.runtime.backends.device import find_device
from bitdance_edge.runtime.backends.engine_fit import engine_path, refuse_invalid, require_fit
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.record import BuildRecord, record_path, target_folder


def rtx(bundle: Bundle) -> Path:
    return target_folder(bundle, "rtx")


def head_engine(bundle: Bundle) -> Path:
    return engine_path(rtx(bundle), "head")


def test_an_engine_that_fits(built_copy: Bundle, library: Library) -> None:
    assert require_fit(built_copy, rtx(built_copy), "head", library.trt, "8.9").stage == "head"


def test_stale_record(built_copy: Bundle, library: Library) -> None:
    spec = built_copy.stages["head"]
    changed = replace(spec, graph=replace(spec.graph, sha256="0" * 64))
    replace(built_copy, stages={**built_copy.stages, "head": changed}).write()
    message = r"head\.engine is refused: it was built from another export.*bitdance-edge build .* --target rtx"
    with pytest.raises(BuildError, match=message):
        require_fit(Bundle.open(built_copy.folder), rtx(built_copy), "head", library.trt, "8.9")


def test_truncated_engine(built_copy: Bundle, library: Library) -> None:
    engine = head_engine(built_copy)
    engine.write_bytes(engine.read_bytes()[:-100])
    with pytest.raises(
        BuildError, match=r"has \d+ bytes, its record says \d+: it is truncated or altered; build it again"
    ):
        require_fit(built_copy, rtx(built_copy), "head", library.trt, "8.9")
    again = plan_builds(built_copy, parse_target("rtx"), ["head", "time"], 1, force=False)
    assert [stage.job.stage for stage in again.to_build] == ["head"]


def test_altered_engine(built_copy: Bundle, library: Library) -> None:
    engine = head_engine(built_copy)
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    with pytest.raises(BuildError, match="its SHA-256 is not the one in its record"):
        require_fit(built_copy, rtx(built_copy), "head", library.trt, "8.9")


def test_other_library_version(built_copy: Bundle) -> None:
    newer = cast(Any, SimpleNamespace(__name__="tensorrt_rtx", __version__="1.8.0.1"))
    with pytest.raises(
        BuildError, match=r"built by tensorrt_rtx [\d.]+, and 1\.8\.0\.1 is installed; build it again with"
    ):
        require_fit(built_copy, rtx(built_copy), "head", newer, "8.9")


def test_other_gpu(built_copy: Bundle, library: Library) -> None:
    path = record_path(rtx(built_copy), "head")
    path.write_text(replace(BuildRecord.read(path), target="rtx:8.9", devices=("8.9",)).to_json(), encoding="utf-8")
    require_fit(built_copy, rtx(built_copy), "head", library.trt, "8.9")
    with pytest.raises(BuildError, match=r"built for compute capability 8\.9, and this GPU has 12\.0; build it again"):
        require_fit(built_copy, rtx(built_copy), "head", library.trt, "12.0")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(path.read_text()[:-30]),
        lambda path: path.write_text(json.dumps({"format": 99})),
        lambda path: path.write_text(json.dumps({"format": 1, "stage": "head"})),
    ],
)
def test_record_that_is_not_whole(built_copy: Bundle, library: Library, spoil: Callable[[Path], Any]) -> None:
    spoil(record_path(rtx(built_copy), "head"))
    with pytest.raises(BuildError, match=r"bitdance-edge build BUNDLE --target TARGET --force"):
        require_fit(built_copy, rtx(built_copy), "head", library.trt, "8.9")


def test_malformed_file_is_told_from_a_missing_driver(built_copy: Bundle, library: Library, tmp_path: Path) -> None:
    text = tmp_path / "head.engine"
    text.write_text("not an engine at all, " * 10)
    with pytest.raises(BuildError, match="it is not an engine of tensorrt_rtx: copy or build it again"):
        refuse_invalid(text, library.trt, library.logger)
    if find_device() is None:
        with pytest.raises(BuildError, match="no NVIDIA driver answers on this machine"):
            refuse_invalid(head_engine(built_copy), library.trt, library.logger)


def test_no_driver_is_no_device() -> None:
    assert find_device("libno-such-driver.so.1") is None
    with pytest.raises(OSError, match="no-such-driver"):
        ctypes.CDLL("libno-such-driver.so.1")
