"""What cannot work is refused before it costs time or crashes, with the reason and the command that would work."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import onnx
import pytest
from building import build

from bitdance_edge.engines import plan as planning
from bitdance_edge.engines.build import build_stage
from bitdance_edge.engines.check import BuildCheck
from bitdance_edge.engines.failure import BuildFailure
from bitdance_edge.engines.plan import Plan, plan_builds
from bitdance_edge.engines.progress import BuildWatch
from bitdance_edge.engines.targets import parse_engine_target, parse_target
from bitdance_edge.engines.targets.tensorrt import TensorRTTarget
from bitdance_edge.runtime import BuildError, Bundle, BundleError, Cancelled
from bitdance_edge.runtime.backends.device import find_device
from bitdance_edge.runtime.backends.engine_fit import engine_path
from bitdance_edge.runtime.backends.tensorrt_library import Library, load_library
from bitdance_edge.runtime.bundle.manifest import file_spec
from bitdance_edge.runtime.bundle.record import BuildRecord, target_folder

Digits = Callable[[str], Bundle]


def plan(bundle: Bundle, target: str = "rtx", stage: str = "head", images: int = 1) -> Plan:
    return plan_builds(bundle, parse_target(target), [stage], images, force=True)


def head_engine(bundle: Bundle) -> Path:
    return engine_path(target_folder(bundle, "rtx"), "head")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["cpu:1", "gpu", "rtx:9.0", "rtx:8.9,x", "rtx:", "trt", "trt:8.9", "RTX"])
def test_wrong_target(name: str) -> None:
    with pytest.raises(BuildError, match=r"trt:current"):
        parse_target(name)


def test_targets_have_one_name_each() -> None:
    assert parse_target("rtx:12.0, 8.9,8.9").name == "rtx:8.9,12.0"
    assert [parse_target(name).name for name in ("cpu", "cuda", "rtx")] == ["cpu", "cuda", "rtx"]
    with pytest.raises(BuildError, match="whose builds are graphs"):
        parse_engine_target("cpu")


def test_each_target_has_a_folder(digits: Digits) -> None:
    folder = digits("fp16").folder / "targets"
    assert target_folder(digits("fp16"), parse_target("rtx:12.0,8.9").name) == folder / "rtx-8.9-12.0"
    assert target_folder(digits("fp16"), "trt:current") == folder / "trt-current"


def test_fp8_for_a_gpu_without_it(digits: Digits) -> None:
    refused = plan(digits("fp8"), "rtx:8.6")
    assert "refused: fp8 needs compute capability 8.9, not 8.6" in "\n".join(refused.table())
    with pytest.raises(BuildError, match=r"head: fp8 .* not 8\.6: .*bitdance-edge build .* --target rtx:8\.9,12\.0"):
        refused.require_possible()
    with pytest.raises(BuildError, match=r"build for the others: bitdance-edge build .* --target rtx:8\.9"):
        plan(digits("fp8"), "rtx:8.6,8.9").require_possible()


def test_fp8_for_the_default_target_says_where_it_will_not_run(digits: Digits) -> None:
    allowed = plan(digits("fp8"))
    allowed.require_possible()
    assert "build (not for compute capability 8.0, 8.6)" in "\n".join(allowed.table())


def test_fp32_for_turing(digits: Digits) -> None:
    with pytest.raises(BuildError, match=r"fp32 needs compute capability 8\.0, not 7\.5: .*--dtype fp16"):
        plan(digits("fp32"), "rtx:7.5").require_possible()
    plan(digits("fp16"), "rtx:7.5").require_possible()


def test_newer_operators_for_an_older_tensorrt(
    digits: Digits, exported: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library without the cache update layer, as TensorRT before 10.15."""
    names = SimpleNamespace(LayerType=object, Builder=object, __version__="10.7.0")
    older = Library("tensorrt", cast(Any, names), None)
    monkeypatch.setattr(TensorRTTarget, "loaded", older)
    with pytest.raises(BuildError, match=r"tensorrt 10\.7\.0 does not know Attention.*--opset 20"):
        plan(digits("fp16"), stage="backbone").require_possible()
    plan(exported("cc_4x_patch", 20), stage="backbone").require_possible()


@pytest.mark.skipif(find_device() is not None, reason="this machine has a GPU")
def test_current_gpu_where_there_is_none(digits: Digits) -> None:
    with pytest.raises(BuildError, match=r"no NVIDIA driver answers here; .* --target rtx"):
        plan(digits("fp16"), "trt:current")


def test_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BuildError, match=r"pip install '.*\[tensorrt\]'"):
        load_library.__wrapped__("tensorrt")


def test_too_little_disk(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(BuildError, match=r"has 1 MB free and the build takes up to \d+ MB; free some space"):
        plan(digits("fp16")).require_possible()


def test_too_little_memory(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "available_memory", lambda: 100_000_000)
    with pytest.raises(BuildError, match=r"head takes up to \d+ MB of memory to build and 100 MB are available"):
        plan(digits("fp16")).require_possible()


def test_wrong_number_of_images(digits: Digits) -> None:
    with pytest.raises(BuildError, match="--max-images is 0; it must be at least 1"):
        plan(digits("fp16"), images=0)


def test_unknown_stage(digits: Digits) -> None:
    with pytest.raises(BundleError, match="has no heads stage"):
        plan(digits("fp16"), stage="heads")


@pytest.fixture
def unbuilt(digits: Digits, tmp_path: Path) -> Bundle:
    """A bundle without engines."""
    ignored = shutil.ignore_patterns("targets")
    return Bundle.open(shutil.copytree(digits("fp16").folder, tmp_path / "unbuilt", ignore=ignored))


def test_altered_onnx(unbuilt: Bundle) -> None:
    (stage,) = plan(unbuilt).to_build
    weights = unbuilt.folder / unbuilt.stages["head"].files[1].path
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"head\.onnx\.data was altered"):
        build_stage(stage, parse_target("rtx"), BuildCheck(unbuilt), threading.Event(), lambda watch: None)
    assert not (unbuilt.folder / "targets").exists()


def test_cancelled_build_leaves_nothing(unbuilt: Bundle) -> None:
    before = files(unbuilt.folder)
    phases: list[str] = []

    def stop(watch: BuildWatch) -> None:
        phases.append(watch.phase)
        if "Building engine" in watch.phase:
            watch.cancel.set()

    with pytest.raises(Cancelled, match="cancelled at head; nothing was written"):
        build(unbuilt, "rtx", ["head"], stop)
    assert any("Building engine" in phase for phase in phases)
    assert files(unbuilt.folder) == before
    assert not (unbuilt.folder / "targets").exists()


def test_interrupted_command_leaves_nothing(unbuilt: Bundle) -> None:
    before = files(unbuilt.folder)
    command = [sys.executable, "-m", "bitdance_edge", "build", unbuilt.folder, "--target", "rtx", "--stages", "head"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("head "):  # the table is there: building begins
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    try:
        _, message = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, message
    assert "interrupted" in message
    assert "Traceback" not in message
    assert files(unbuilt.folder) == before


def test_interrupt_between_engine_and_record_takes_both(unbuilt: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before, written = files(unbuilt.folder), BuildRecord.to_json

    def interrupt(record: BuildRecord) -> str:
        if engine_path(target_folder(unbuilt, "rtx"), record.stage).exists():  # in its place, no longer staged
            raise KeyboardInterrupt
        return written(record)

    monkeypatch.setattr(BuildRecord, "to_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(unbuilt, "rtx", ["time"])
    assert files(unbuilt.folder) == before
    assert not (unbuilt.folder / "targets").exists()


def test_two_builds_at_the_same_time_leave_no_record_of_other_files(
    unbuilt: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, written = target_folder(unbuilt, "rtx"), BuildRecord.to_json

    def overtaken(record: BuildRecord) -> str:
        if engine_path(folder, record.stage).exists():
            engine_path(folder, record.stage).write_bytes(b"of another process")
        return written(record)

    monkeypatch.setattr(BuildRecord, "to_json", overtaken)
    with pytest.raises(BuildError, match=r"another process built time for rtx at the same time \(time\.engine has"):
        build(unbuilt, "rtx", ["time"])
    assert files(folder) == {"time.engine"}


def test_refused_node_is_named_with_its_module_and_logged(unbuilt: Bundle) -> None:
    spec = unbuilt.stages["head"]
    path = unbuilt.folder / spec.graph.path
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if "res_blocks.1.w1" in str(node.metadata_props))
    node.op_type = "NoSuchOperator"
    onnx.save(model, path)
    replaced = replace(spec, graph=file_spec(unbuilt.folder, path))
    replace(unbuilt, stages={**unbuilt.stages, "head": replaced}).write()
    with pytest.raises(BuildFailure) as failure:
        build(Bundle.open(unbuilt.folder), "rtx", ["head"])
    message = str(failure.value)
    assert "head, module head.res_blocks.1.w1, operator NoSuchOperator" in message
    assert "--opset 20" in message
    log = head_engine(unbuilt).with_suffix(".log")
    assert str(log) in message
    assert "NoSuchOperator" in log.read_text()
    assert not head_engine(unbuilt).exists()


def test_refused_build_says_what_to_try(digits: Digits, tmp_path: Path) -> None:
    """What the plan lets pass is refused by TensorRT itself: here the plan is passed by."""
    bundle = Bundle.open(shutil.copytree(digits("fp8").folder, tmp_path / "fp8"))
    (stage,) = plan(bundle, "rtx:8.6", stage="tokens").to_build
    with pytest.raises(BuildFailure, match=r"tokens: .*fp8_e4m3.* try: build for GPUs that have it: --target rtx:8\.9"):
        build_stage(stage, parse_target("rtx:8.6"), BuildCheck(bundle), threading.Event(), lambda watch: None)
    assert not engine_path(target_folder(bundle, "rtx:8.6"), "tokens").exists()
