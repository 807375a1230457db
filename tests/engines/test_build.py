"""Every stage becomes an engine, of TensorRT's own layers, and its record says what it is."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from building import build

from bitdance_edge.engines.failure import BuildFailure
from bitdance_edge.engines.gpus import DEFAULT_GPUS
from bitdance_edge.engines.network import require_aliased_cache
from bitdance_edge.engines.plan import plan_builds
from bitdance_edge.engines.samples import record_samples
from bitdance_edge.engines.targets import parse_target
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends.engine_fit import engine_path
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.record import BuildRecord, record_path, target_folder

Digits = Callable[[str], Bundle]
Built = Callable[[str], dict[str, BuildRecord]]

PRECISIONS = ("fp32", "fp16", "int8", "fp8")
TYPES = {"fp32": "FLOAT", "fp16": "HALF", "int8": "FLOAT", "fp8": "FLOAT"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_stages_build(digits: Digits, built: Built, library: Library, precision: str) -> None:
    bundle, records = digits(precision), built(precision)
    assert records.keys() == bundle.stages.keys()
    folder = target_folder(bundle, "rtx")
    for stage, record in records.items():
        engine = engine_path(folder, stage)
        assert BuildRecord.read(record_path(folder, stage)) == record
        assert record.damage(folder) is None
        assert record.mismatch(bundle, library.version) is None
        assert record.bytes == engine.stat().st_size
        assert record.seconds > 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_cache_attention_and_rotary_are_layers_of_tensorrt(digits: Digits, built: Built, precision: str) -> None:
    layers, kinds = digits(precision).cache.layers, built(precision)["backbone"].layers
    own = TYPES[precision]
    assert kinds["KV_CACHE_UPDATE"] == {own: 2 * layers}
    assert kinds["ROTARY_EMBEDDING"] == {own: 2 * layers}
    assert kinds["ATTENTION_INPUT"] == {own: layers}
    assert "SCATTER" not in kinds
    assert "SOFTMAX" not in kinds
    assert "SOFTMAX" not in built(precision)["head"].layers
    assert built(precision)["backbone"].options["in_place_cache"]


@pytest.mark.parametrize(("precision", "element"), [("int8", "INT8"), ("fp8", "FP8")])
def test_quantised_graphs_keep_their_types(built: Built, precision: str, element: str) -> None:
    for stage in ("backbone", "head", "tokens"):
        assert built(precision)[stage].layers["QUANTIZE"].keys() == {element}
        assert built(precision)[stage].precision == f"{precision}+fp32"


def test_engines_are_for_the_gpus_that_have_their_types(built: Built) -> None:
    assert built("fp16")["head"].devices == DEFAULT_GPUS
    assert built("fp8")["head"].devices == ("8.9", "12.0")


def test_backbone_has_a_prompt_and_a_patch_profile_that_hold_real_inputs(digits: Digits, built: Built) -> None:
    records = built("fp32")
    assert list(records["backbone"].profiles) == ["prompt", "patch"]
    for (stage, sample), inputs in record_samples(digits("fp32")).items():
        profile = records[stage].profiles[sample]
        for name, values in inputs.items():
            smallest, _, largest = profile[name]
            sizes = zip(smallest, values.shape, largest, strict=True)
            assert all(low <= size <= high for low, size, high in sizes), (stage, sample, name)


def test_what_is_up_to_date_is_not_built_again(digits: Digits, built: Built) -> None:
    bundle, stages = digits("fp16"), list(digits("fp16").stages)
    seconds = {stage: record.seconds for stage, record in built("fp16").items()}
    target = parse_target("rtx")
    again = plan_builds(bundle, target, stages, 1, force=False)
    assert not again.to_build
    assert {stage.job.stage: stage.seconds_before for stage in again.stages} == seconds
    assert len(plan_builds(bundle, target, stages, 1, force=True).to_build) == len(stages)
    more_images = plan_builds(bundle, target, stages, 4, force=False)
    # Times are the same for any number of images.
    assert {stage.job.stage for stage in more_images.to_build} == set(stages) - {"time"}


def test_opset_20_builds_with_a_copied_cache(exported: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(exported("cc_4x_patch", 20).folder, tmp_path / "copy"))
    record = build(bundle, "rtx", ["backbone"])["backbone"]
    assert "KV_CACHE_UPDATE" not in record.layers
    assert record.options["in_place_cache"] is False


def test_a_loaded_engine_must_share_its_cache(digits: Digits) -> None:
    """With a stand-in for the engine: loading one takes a GPU."""
    bundle = digits("fp16")
    shared = {present: past for past, present in bundle.cache_names()}
    require_aliased_cache(SimpleNamespace(get_aliased_input_tensor=shared.get), bundle)
    with pytest.raises(BuildFailure, match="does not load on this GPU"):
        require_aliased_cache(None, bundle)
    del shared["present.1.key"]
    with pytest.raises(BuildFailure, match=r"present\.1\.key the memory of None"):
        require_aliased_cache(SimpleNamespace(get_aliased_input_tensor=shared.get), bundle)
