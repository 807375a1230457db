"""Operators in the forms that a CPU runs fastest, against PyTorch."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from bitdance_edge.export.profiles import PROFILES


def run(stage: str, module: nn.Module, x: torch.Tensor, path: Path) -> tuple[list[str], float]:
    """Operators of the exported module, and its largest error relative to PyTorch's largest value."""
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.onnx.export(
        module.eval(),
        (x,),
        dynamo=True,
        opset_version=24,
        dynamic_shapes=({0: rows},),
        verbose=False,
        custom_translation_table=PROFILES["cpu24"].translations(stage),
    )
    assert program is not None
    program.save(path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    more = torch.cat([x, x.flip(0)])  # another number of rows than was traced
    (got,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    with torch.no_grad():
        want = module(more).numpy()
    return [node.op_type for node in onnx.load(path).graph.node], float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs", "size"), [(32, 32, 32), (16, 48, (48, 32))])
def test_a_convolution_of_a_large_image_needs_a_quarter_of_the_products(
    tmp_path: Path, inputs: int, outputs: int, size: int | tuple[int, int], bias: bool
) -> None:
    torch.manual_seed(0)
    height, width = (size, size) if isinstance(size, int) else size
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    used, error = run("decoder", convolution, torch.randn(2, inputs, height, width), tmp_path / "graph.onnx")
    assert "ConvTranspose" in used
    assert error < 2e-5


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 96, 3, padding=1),  # transformed filters would be larger than the image
    ],
)
def test_other_convolutions_stay_as_they_are(tmp_path: Path, convolution: nn.Conv2d) -> None:
    torch.manual_seed(0)
    used, error = run("decoder", convolution, torch.randn(2, 32, 32, 32), tmp_path / "graph.onnx")
    assert used == ["Conv"]
    assert error < 2e-6


@pytest.mark.parametrize("shape", [(6, 64), (3, 5, 64), (2, 3, 5, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_a_convolution(tmp_path: Path, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    used, error = run("head", nn.Linear(64, 48, bias=bias), torch.randn(shape), tmp_path / "graph.onnx")
    assert "Conv" in used
    assert "MatMul" not in used
    assert error < 2e-6


def test_a_linear_layer_whose_width_does_not_fit_stays_a_product(tmp_path: Path) -> None:
    torch.manual_seed(0)
    used, error = run("head", nn.Linear(20, 48), torch.randn(6, 20), tmp_path / "graph.onnx")
    assert "Conv" not in used
    assert error < 2e-6
