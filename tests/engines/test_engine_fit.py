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
from bitdance_edge.engines.targets.tensorrt import Target
from bitdance_edge.runtime import Bundle, EngineError
from bitdance_edge.runtime.backends.device import find_device
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.sidecar import Sidecar, engine_path, refuse_invalid, require_fit, sidecar_path


def head_engine(bundle: Bundle) -> Path:
    return engine_path(bundle, "rtx", "head")


def test_an_engine_that_fits(built_copy: Bundle, library: Library) -> None:
    assert require_fit(built_copy, head_engine(built_copy), library.trt, "8.9").stage == "head"


def test_stale_sidecar(built_copy: Bundle, library: Library) -> None:
    spec = built_copy.stages["head"]
    changed = replace(spec, graph=replace(spec.graph, sha256="0" * 64))
    replace(built_copy, stages={**built_copy.stages, "head": changed}).write()
    message = r"head\.engine is refused: it was built from another export.*bitdance-edge build .* --target rtx"
    with pytest.raises(EngineError, match=message):
        require_fit(Bundle.open(built_copy.folder), head_engine(built_copy), library.trt, "8.9")


def test_truncated_engine(built_copy: Bundle, library: Library) -> None:
    engine = head_engine(built_copy)
    engine.write_bytes(engine.read_bytes()[:-100])
    with pytest.raises(
        EngineError, match=r"has \d+ bytes, its sidecar says \d+: it is truncated or altered; rebuild it"
    ):
        require_fit(built_copy, engine, library.trt, "8.9")
    again = plan_builds(built_copy, Target.parse("rtx"), library, ["head", "time"], 1, force=False)
    assert [stage.build.stage for stage in again.to_build] == ["head"]


def test_altered_engine(built_copy: Bundle, library: Library) -> None:
    engine = head_engine(built_copy)
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    with pytest.raises(EngineError, match="its SHA-256 is not the one in its sidecar"):
        require_fit(built_copy, engine, library.trt, "8.9")


def test_other_library_version(built_copy: Bundle) -> None:
    newer = cast(Any, SimpleNamespace(__name__="tensorrt_rtx", __version__="1.8.0.1"))
    with pytest.raises(
        EngineError, match=r"built by tensorrt_rtx [\d.]+, and 1\.8\.0\.1 is installed; rebuild it with"
    ):
        require_fit(built_copy, head_engine(built_copy), newer, "8.9")


def test_other_gpu(built_copy: Bundle, library: Library) -> None:
    sidecar = replace(Sidecar.read(head_engine(built_copy)), target="rtx:8.9", capabilities=("8.9",))
    sidecar_path(head_engine(built_copy)).write_text(sidecar.to_json())
    require_fit(built_copy, head_engine(built_copy), library.trt, "8.9")
    with pytest.raises(EngineError, match=r"built for compute capability 8\.9, and this GPU has 12\.0; rebuild it"):
        require_fit(built_copy, head_engine(built_copy), library.trt, "12.0")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(path.read_text()[:-30]),
        lambda path: path.write_text(json.dumps({"format": 99})),
        lambda path: path.write_text(json.dumps({"format": 1, "stage": "head"})),
    ],
)
def test_sidecar_that_is_not_whole(built_copy: Bundle, library: Library, spoil: Callable[[Path], Any]) -> None:
    spoil(sidecar_path(head_engine(built_copy)))
    with pytest.raises(EngineError, match=r"bitdance-edge build BUNDLE --target TARGET --force"):
        require_fit(built_copy, head_engine(built_copy), library.trt, "8.9")


def test_malformed_file_is_told_from_a_missing_driver(built_copy: Bundle, library: Library, tmp_path: Path) -> None:
    text = tmp_path / "head.engine"
    text.write_text("not an engine at all, " * 10)
    with pytest.raises(EngineError, match="it is no engine of tensorrt_rtx: copy or build it again"):
        refuse_invalid(text, library.trt, library.logger)
    if find_device() is None:
        with pytest.raises(EngineError, match="no NVIDIA driver answers on this machine"):
            refuse_invalid(head_engine(built_copy), library.trt, library.logger)


def test_no_driver_is_no_device() -> None:
    assert find_device("libno-such-driver.so.1") is None
    with pytest.raises(OSError, match="no-such-driver"):
        ctypes.CDLL("libno-such-driver.so.1")
