"""Bundles that share the checkpoint's weight files, and how they become self-contained."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from linking import FIXTURE
from rounding import assert_same_bits, predictions_of

from bitdance_edge.cli import main
from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.bundle.size import Size

REQUEST = Request(prompts=["a red cat"], size=Size(width=64, height=64), seed=1, steps=2)


def tokens(bundle: Bundle) -> np.ndarray:
    with Pipeline.open(bundle.folder) as pipeline:
        return pipeline.generate(REQUEST)[0].tokens


def test_large_weights_are_the_checkpoints_own_bytes(linked_bundle: Bundle) -> None:
    bundle, checkpoint = linked_bundle, linked_bundle.folder.with_name("checkpoint")
    assert {Path(name).name for name in bundle.links} == {"vision_head.safetensors"}  # what is large
    for name, source in bundle.links.items():
        assert (bundle.folder / name).samefile(checkpoint / Path(name).name)
        assert Path(source) == (checkpoint / Path(name).name).resolve()
    assert bundle.shared_files() == sorted(bundle.links)
    own = sum(path.stat().st_size for path in bundle.folder.rglob("*.data"))
    assert own < sum(stage.weight_bytes for stage in bundle.stages.values())


def test_linked_and_copied_bundles_give_the_same_tokens(linked_bundle: Bundle, exported: Callable[..., Bundle]) -> None:
    bundle, copied = linked_bundle, exported("t2i_16x_swiglu")
    assert not copied.links
    # Linked weights are transposed by the graph: another kernel, and so another order of summation.
    assert_same_bits(tokens(bundle)[None], tokens(copied)[None], predictions_of(copied, REQUEST))
    assert any(
        weight.name.startswith("head.ada_ln_blocks.0.weight") for weight in _graph(bundle, "modulation").initializer
    )
    transposes = [sum(node.op_type == "Transpose" for node in _graph(b, "modulation").node) for b in (bundle, copied)]
    assert transposes[0] > transposes[1]  # linked weights are stored as they came and transposed in the graph


def test_a_changed_checkpoint_is_noticed(linked_bundle: Bundle, tmp_path: Path) -> None:
    from bitdance_edge.runtime import BundleError

    bundle = linked_bundle
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    path = tmp_path / "bundle" / next(iter(bundle.links))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="was altered"):
        tokens(Bundle.open(tmp_path / "bundle"))


def test_one_command_makes_it_self_contained(
    linked_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = linked_bundle
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.folder, folder, copy_function=os.link)
    assert main(["inspect", str(folder)]) == 0
    assert "shared with its checkpoint" in capsys.readouterr().out
    assert main(["pack", str(folder), "--in-place"]) == 0
    assert "self-contained" in capsys.readouterr().out
    assert Bundle.open(folder).shared_files() == []
    assert np.array_equal(tokens(Bundle.open(folder)), tokens(bundle))
    assert main(["inspect", str(folder)]) == 0
    assert "shared with" not in capsys.readouterr().out


def test_bfloat16_weights_are_linked_and_checked(linked_bf16: Bundle) -> None:
    assert len(linked_bf16.links) == 1
    assert all(stage.max_error is not None for stage in linked_bf16.stages.values())


def test_link_that_would_link_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(FIXTURE), "-o", str(tmp_path / "b"), "--dtype", "fp16", "--link-weights"]
    assert main([*arguments, "--sizes", "192x128"]) == 1
    assert "--link-weights needs weights stored as --dtype fp16; the checkpoint holds bfloat16, float32" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "b").exists()


def _graph(bundle: Bundle, stage: str) -> onnx.GraphProto:
    return onnx.load(bundle.folder / bundle.stage(stage).graph.path, load_external_data=False).graph
