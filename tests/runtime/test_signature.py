"""What a library has loaded is compared with the manifest, and every buffer with both, before anything is bound."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitdance_edge.runtime import Bundle, BundleError, Pipeline, Request
from bitdance_edge.runtime.backends.onnxruntime import HostBuffer, OnnxRuntimeBackend
from bitdance_edge.runtime.backends.signature import require_signature
from bitdance_edge.runtime.bundle.specs import StageSpec, TensorSpec

FLOAT, HALF, IDS = "float32", "float16", "int64"


def spec(*inputs: tuple[str, str, tuple[int | str, ...]]) -> StageSpec:
    tensors = tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, dtype, shape in inputs)
    return StageSpec(
        graph=None,  # type: ignore[arg-type]  no file is read
        weights=(),
        precision="fp32",
        inputs=tensors,
        outputs=(),
        max_error=None,
        tolerance=0.0,
        weight_bytes=0,
        activation_bytes=0,
    )


@pytest.mark.parametrize(
    ("loaded", "same"),
    [
        ({"x": (FLOAT, ["R", 4, 16])}, True),
        ({"x": (FLOAT, [None, 4, 16])}, True),
        ({"x": (FLOAT, [-1, 4, 16])}, True),  # as TensorRT has it
        ({"x": (FLOAT, ["R", "unnamed", 16])}, True),
        ({"x": (HALF, ["R", 4, 16])}, False),
        ({"x": (FLOAT, ["R", 4, 8])}, False),
        ({"x": (FLOAT, ["R", 4])}, False),
        ({"y": (FLOAT, ["R", 4, 16])}, False),
        ({"x": (FLOAT, ["R", 4, 16]), "y": (FLOAT, [1])}, False),
        ({}, False),
    ],
)
def test_names_types_and_numbers_are_those_of_the_manifest(loaded: dict, same: bool) -> None:
    described = spec(("x", FLOAT, ("R", 4, 16)))
    if same:
        require_signature(Path("head.onnx"), described, loaded, {})
        return
    with pytest.raises(BundleError, match=r"head\.onnx.*copy or export it again"):
        require_signature(Path("head.onnx"), described, loaded, {})


@pytest.mark.parametrize(
    ("x", "rows"),
    [
        (np.zeros((2, 4, 16), np.float16), np.zeros(2, np.int64)),  # fewer bytes
        (np.zeros((2, 4, 8), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 64), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 4, 16), np.float32), np.zeros(1, np.int64)),  # other rows than x is for
    ],
)
def test_a_buffer_that_is_too_small_is_not_bound(bundle: Bundle, x: np.ndarray, rows: np.ndarray) -> None:
    stage = OnnxRuntimeBackend(bundle, threads=1).load("tokens")
    tokens = {tensor.name: tensor for tensor in stage.spec.outputs}
    buffers = {
        name: HostBuffer(np.zeros(tensor.sized({"R": 2, "B": 2}), np.float32)) for name, tensor in tokens.items()
    }
    stage.bind(
        {"x": HostBuffer(np.zeros((2, 4, 16), np.float32)), "rows": HostBuffer(np.zeros(2, np.int64)), **buffers}
    )
    with pytest.raises(BundleError, match="the bundle contradicts itself"):
        stage.bind({"x": HostBuffer(x), "rows": HostBuffer(rows), **buffers})


def test_a_manifest_that_agrees_with_itself_and_not_with_its_graphs(bundle: Bundle) -> None:
    """As a program could make one; a cache of half the bytes would be written beyond its end."""
    stage = bundle.stage("backbone")

    def halved(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(tensor, dtype=HALF) if tensor.name.startswith(("past", "present")) else tensor for tensor in tensors
        )

    changed = replace(stage, inputs=halved(stage.inputs), outputs=halved(stage.outputs))
    spoilt = replace(bundle, cache=replace(bundle.cache, dtype=HALF), stages={**bundle.stages, "backbone": changed})
    with pytest.raises(BundleError, match=r"backbone\.onnx: input past_key_values\.0\.key is float32 .* says float16"):
        OnnxRuntimeBackend(spoilt, threads=1).load("backbone")


def test_ids_that_a_graph_does_not_know_are_one_error(
    bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in bundle.folder.iterdir():
        if path.name != "bundle.json":
            (tmp_path / path.name).symlink_to(path)
    more = replace(bundle, folder=tmp_path, model=replace(bundle.model, num_classes=1000))
    more.write()
    with Pipeline.open(tmp_path, threads=1) as pipeline, pytest.raises(BundleError, match=r"cannot run .*prompt\.onnx"):
        pipeline.generate(Request(classes=[999], steps=1))
    assert not capfd.readouterr().err  # ONNX Runtime raises it, and does not print it too
