"""Graphs built for this processor run as the bundle's own do, and only where they fit and are whole."""

import json
import os
import re
import resource
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from building import build
from calibrating import Calibrated

from bitdance_edge.engines import build as building
from bitdance_edge.engines.build import build_stage
from bitdance_edge.engines.check import BuildCheck
from bitdance_edge.engines.plan import plan_builds
from bitdance_edge.engines.rewriting import Graph
from bitdance_edge.engines.targets import parse_target
from bitdance_edge.runtime import Bundle, BundleError, Pipeline, Request, StorageError
from bitdance_edge.runtime.backends.onnxruntime import OnnxRuntimeStage, cpu_options, import_onnxruntime
from bitdance_edge.runtime.bundle.record import record_path, target_folder
from bitdance_edge.runtime.bundle.stage_names import WINDOW_STAGES

STAGES = {"prompt", "tokens", "time", "backbone", "modulation", "head", "decoder"}


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    return Bundle.open(shutil.copytree(bundle.folder, folder, ignore=shutil.ignore_patterns("targets")))


@pytest.fixture
def unbuilt(exported: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    return copy_of(exported("cc_4x_patch"), tmp_path / "bundle")


@pytest.fixture(scope="module")
def built_once(exported: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle = copy_of(exported("cc_4x_patch"), tmp_path_factory.mktemp("cpu") / "bundle")
    build(bundle, "cpu")
    return bundle


@pytest.fixture
def built_for_cpu(built_once: Bundle, tmp_path: Path) -> Bundle:
    """A copy to be spoilt."""
    return Bundle.open(shutil.copytree(built_once.folder, tmp_path / "built"))


def folder_of(bundle: Bundle) -> Path:
    return target_folder(bundle, "cpu")


def image(bundle: Bundle) -> tuple[np.ndarray, str]:
    """Pixels, and what is advised about builds."""
    with Pipeline.open(bundle.folder, device="cpu", threads=1) as pipeline:
        (made,) = pipeline.generate(Request(classes=[0], steps=2, seed=3))
        advice = pipeline.choice.advice
    assert made.pixels is not None
    return made.pixels, advice


def used(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], str]:
    """The stages whose built graph is loaded, and what is advised."""
    loaded: set[str] = set()
    made = OnnxRuntimeStage.__init__

    def watched(stage: OnnxRuntimeStage, path: Path, *args: Any, **options: Any) -> None:
        if path.parent.name == "cpu":
            loaded.add(path.stem)
        made(stage, path, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(OnnxRuntimeStage, "__init__", watched)
        _, advice = image(bundle)
    return loaded, advice


def planned(bundle: Bundle) -> set[str]:
    """The stages that would be built now."""
    plan = plan_builds(bundle, parse_target("cpu"), [], 1, force=False)
    return {stage.job.stage for stage in plan.to_build}


def change_record(bundle: Bundle, stage: str, **changes: object) -> None:
    path = record_path(folder_of(bundle), stage)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_the_image_is_the_same(built_for_cpu: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, advice = used(built_for_cpu, monkeypatch)
    assert stages == STAGES
    assert not advice
    made, _ = image(built_for_cpu)
    shutil.rmtree(folder_of(built_for_cpu))
    own, advice = image(built_for_cpu)
    assert np.abs(made.astype(int) - own.astype(int)).max() <= 1
    assert f"bitdance-edge build {built_for_cpu.folder} --target cpu opens this bundle at once" in advice


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"library_version": "1.0.0"}, r"head \(it was built by onnxruntime 1\.0\.0, and [\d.]+ is installed\)"),
        ({"devices": ["x86_64-other"]}, r"head \(it was built for a processor with other instructions\)"),
        ({"sources": {}}, r"head \(it was built from another export of this stage\)"),
    ],
)
def test_what_was_made_for_something_else_is_passed_over(
    built_for_cpu: Bundle, changes: dict, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_record(built_for_cpu, "head", **changes)
    assert planned(built_for_cpu) == {"head"}
    stages, advice = used(built_for_cpu, monkeypatch)
    assert stages == STAGES - {"head"}
    assert re.search(reason, advice), advice
    assert f"bitdance-edge build {built_for_cpu.folder} --target cpu" in advice


@pytest.mark.parametrize("same_times", [False, True])
def test_an_altered_file_is_refused(built_for_cpu: Bundle, same_times: bool) -> None:
    """Also where its size and time of modification were put back."""
    weights = folder_of(built_for_cpu) / "head.onnx.data"
    content, times = bytearray(weights.read_bytes()), weights.stat()
    content[1000] ^= 1
    weights.write_bytes(content)
    if same_times:
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(BundleError, match=r"head.onnx.data was altered.*--target cpu --force"):
        image(built_for_cpu)
    assert planned(built_for_cpu) == {"head"}


def test_a_truncated_file_is_refused(built_for_cpu: Bundle) -> None:
    weights = folder_of(built_for_cpu) / "head.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"truncated or altered.*bitdance-edge build .* --target cpu --force"):
        image(built_for_cpu)


def test_a_copy_is_read_again_and_runs(built_for_cpu: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(built_for_cpu.folder, tmp_path / "copied")
    stages, _ = used(Bundle.open(tmp_path / "copied"), monkeypatch)
    assert stages == STAGES


def test_an_interrupted_build_leaves_nothing_and_goes_on_from_there(
    unbuilt: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "POLL_SECONDS", 0)  # the watcher is called however fast the build is
    target, check = parse_target("cpu"), BuildCheck(unbuilt)
    plan = plan_builds(unbuilt, target, ["time", "tokens"], 1, force=False)

    def interrupt(watch: object) -> None:
        raise KeyboardInterrupt

    first, second = plan.to_build
    with pytest.raises(KeyboardInterrupt):
        build_stage(first, target, check, threading.Event(), interrupt)
    assert not (unbuilt.folder / "targets").exists()
    build_stage(first, target, check, threading.Event(), lambda watch: None)
    with pytest.raises(KeyboardInterrupt):
        build_stage(second, target, check, threading.Event(), interrupt)
    assert {path.name.partition(".")[0] for path in folder_of(unbuilt).iterdir()} == {first.job.stage}
    assert planned(unbuilt) == {*STAGES, *WINDOW_STAGES} - {first.job.stage}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, writes beyond so many bytes fail, in Python and in libraries."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("stage", ["head", "encoder"])
@pytest.mark.parametrize("writer", ["the rewritten graph", "what ONNX Runtime makes of it"])
def test_a_full_disk(unbuilt: Bundle, stage: str, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if writer != "the rewritten graph":
        save = Graph.save

        def save_before_it_is_full(graph: Graph, path: Path) -> None:
            with files_of_at_most(resource.RLIM_INFINITY):
                save(graph, path)

        monkeypatch.setattr(Graph, "save", save_before_it_is_full)
    target = parse_target("cpu")
    (planned,) = plan_builds(unbuilt, target, [stage], 1, force=False).to_build
    check = BuildCheck(unbuilt)
    with files_of_at_most(30_000), pytest.raises(StorageError, match="cannot write"):
        build_stage(planned, target, check, threading.Event(), lambda watch: None)
    assert not (unbuilt.folder / "targets").exists()


def test_nodes_are_named_after_the_modules(built_once: Bundle) -> None:
    """ONNX Runtime's own changes of layout are not; it names all else that it makes after what it is made of."""
    layout = re.compile(r"(ReorderInput|ReorderOutput|Transpose|Squeeze)(_token_\d+)?")
    for stage in ("backbone", "head", "decoder"):
        exported = onnx.load(built_once.folder / built_once.stage(stage).graph.path, load_external_data=False)
        built = onnx.load(folder_of(built_once) / f"{stage}.onnx", load_external_data=False)
        known = tuple(node.name for node in exported.graph.node)
        others = [node.name for node in built.graph.node if not node.name.startswith(known)]
        assert not [name for name in others if not layout.fullmatch(name)]
        assert built.producer_name == "bitdance-edge"
        assert {"bundle", "stage"} <= {entry.key for entry in built.metadata_props}


def with_stage_of(bundle: Bundle, other: Bundle, stage: str) -> Bundle:
    """The bundle with one stage of another export of the same checkpoint."""
    spec = other.stage(stage)
    for file in spec.files:
        (bundle.folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(other.folder / file.path, bundle.folder / file.path)
    replace(bundle, stages={**bundle.stages, stage: spec}).write()
    return Bundle.open(bundle.folder)


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_a_calibrated_bundle_gets_the_fast_forms_of_what_stayed_float32(
    calibrated: Callable[[str], Calibrated], digits: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """INT8 products stay as ONNX Runtime makes them of the calibrated graph; the float32 decoder becomes Winograd's."""
    bundle = with_stage_of(copy_of(calibrated("int8").bundle, tmp_path / "bundle"), digits("fp32"), "decoder")
    own, _ = image(bundle)
    records = build(bundle, "cpu", ["head", "backbone", "decoder"])
    assert all(record.error is not None and record.error <= record.tolerance for record in records.values())
    assert operators(folder_of(bundle) / "decoder.onnx")["ConvTranspose"] > 0
    head = bundle.stage("head")
    loaded = tmp_path / "loaded.onnx"
    options = cpu_options(1, head.precision)
    options.optimized_model_filepath = str(loaded)
    import_onnxruntime().InferenceSession(str(bundle.verified("head")), options, providers=["CPUExecutionProvider"])
    products = {name: count for name, count in operators(loaded).items() if "Gemm" in name or "MatMul" in name}
    built_products = {name: operators(folder_of(bundle) / "head.onnx")[name] for name in products}
    assert built_products == products
    assert any("Integer" in name or name.startswith("Q") for name in products)
    made, _ = image(bundle)
    assert np.abs(made.astype(int) - own.astype(int)).max() <= 1
