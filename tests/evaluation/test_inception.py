"""The network that ``bench/studies/inception_features.py`` writes, compared with the same layers in PyTorch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bitdance_edge.evaluation.extractor import Extractor

STUDY = Path(__file__).parents[2] / "bench" / "studies" / "inception_features.py"
BYTES = 95_628_359  # of the published file, most of them weights


def convolutions() -> dict[str, tuple[int, int, int, int]]:
    """Name -> output and input channels, height and width of the kernel: the published state dictionary's shapes."""
    found: dict[str, tuple[int, int, int, int]] = {}

    def add(prefix: str, *layers: tuple[str, int, int, int, int]) -> None:
        found.update(
            {f"{prefix}{name}": (out, channels, height, width) for name, channels, out, height, width in layers}
        )

    add("Conv2d_", ("1a_3x3", 3, 32, 3, 3), ("2a_3x3", 32, 32, 3, 3), ("2b_3x3", 32, 64, 3, 3))
    add("Conv2d_", ("3b_1x1", 64, 80, 1, 1), ("4a_3x3", 80, 192, 3, 3))
    for block, n, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        add(f"Mixed_{block}.branch", ("1x1", n, 64, 1, 1), ("5x5_1", n, 48, 1, 1), ("5x5_2", 48, 64, 5, 5))
        add(f"Mixed_{block}.branch", ("3x3dbl_1", n, 64, 1, 1), ("3x3dbl_2", 64, 96, 3, 3), ("3x3dbl_3", 96, 96, 3, 3))
        add(f"Mixed_{block}.branch_", ("pool", n, pool, 1, 1))
    add("Mixed_6a.branch", ("3x3", 288, 384, 3, 3), ("3x3dbl_1", 288, 64, 1, 1))
    add("Mixed_6a.branch", ("3x3dbl_2", 64, 96, 3, 3), ("3x3dbl_3", 96, 96, 3, 3))
    for block, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        prefix = f"Mixed_{block}.branch"
        add(prefix, ("1x1", 768, 192, 1, 1), ("7x7_1", 768, c, 1, 1), ("7x7_2", c, c, 1, 7), ("7x7_3", c, 192, 7, 1))
        add(prefix, ("7x7dbl_1", 768, c, 1, 1), ("7x7dbl_2", c, c, 7, 1), ("7x7dbl_3", c, c, 1, 7))
        add(prefix, ("7x7dbl_4", c, c, 7, 1), ("7x7dbl_5", c, 192, 1, 7), ("_pool", 768, 192, 1, 1))
    add("Mixed_7a.branch", ("3x3_1", 768, 192, 1, 1), ("3x3_2", 192, 320, 3, 3), ("7x7x3_1", 768, 192, 1, 1))
    add("Mixed_7a.branch", ("7x7x3_2", 192, 192, 1, 7), ("7x7x3_3", 192, 192, 7, 1), ("7x7x3_4", 192, 192, 3, 3))
    for block, n in (("7b", 1280), ("7c", 2048)):
        prefix = f"Mixed_{block}.branch"
        add(
            prefix,
            ("1x1", n, 320, 1, 1),
            ("3x3_1", n, 384, 1, 1),
            ("3x3_2a", 384, 384, 1, 3),
            ("3x3_2b", 384, 384, 3, 1),
        )
        add(prefix, ("3x3dbl_1", n, 448, 1, 1), ("3x3dbl_2", 448, 384, 3, 3), ("3x3dbl_3a", 384, 384, 1, 3))
        add(prefix, ("3x3dbl_3b", 384, 384, 3, 1), ("_pool", n, 192, 1, 1))
    return found


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights under the published names."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for name, shape in convolutions().items():
        fan = shape[1] * shape[2] * shape[3]
        found[f"{name}.conv.weight"] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
        found[f"{name}.bn.weight"] = 0.8 + 0.4 * torch.rand(shape[0], generator=generator)
        found[f"{name}.bn.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
        found[f"{name}.bn.running_mean"] = 0.1 * torch.randn(shape[0], generator=generator)
        found[f"{name}.bn.running_var"] = 0.8 + 0.4 * torch.rand(shape[0], generator=generator)
        found[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    found["fc.weight"], found["fc.bias"] = torch.randn(1008, 2048, generator=generator) / 45, torch.zeros(1008)
    return found


class Plain:
    """The network's definition, block by block."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int | tuple[int, int] = 0) -> Tensor:
        mean, variance, scale, bias = (
            self.state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.conv2d(x, self.state[f"{name}.conv.weight"], stride=stride, padding=padding)
        return F.relu(F.batch_norm(x, mean, variance, scale, bias, eps=0.001))

    def __call__(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = F.max_pool2d(self.conv(x, "Conv2d_2b_3x3", padding=1), 3, 2)
        x = F.max_pool2d(self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        for block in ("5b", "5c", "5d"):
            x = self.a(x, f"Mixed_{block}.branch")
        x = self.b(x, "Mixed_6a.branch")
        for block in ("6b", "6c", "6d", "6e"):
            x = self.c(x, f"Mixed_{block}.branch")
        x = self.e(self.e(self.d(x, "Mixed_7a.branch"), "Mixed_7b.branch"), "Mixed_7c.branch", last=True)
        return x.mean((2, 3))

    def a(self, x: Tensor, n: str) -> Tensor:
        five = self.conv(self.conv(x, f"{n}5x5_1"), f"{n}5x5_2", padding=2)
        double = self.conv(
            self.conv(self.conv(x, f"{n}3x3dbl_1"), f"{n}3x3dbl_2", padding=1), f"{n}3x3dbl_3", padding=1
        )
        return torch.cat([self.conv(x, f"{n}1x1"), five, double, self.pooled(x, n)], 1)

    def b(self, x: Tensor, n: str) -> Tensor:
        double = self.conv(self.conv(self.conv(x, f"{n}3x3dbl_1"), f"{n}3x3dbl_2", padding=1), f"{n}3x3dbl_3", 2)
        return torch.cat([self.conv(x, f"{n}3x3", 2), double, F.max_pool2d(x, 3, 2)], 1)

    def c(self, x: Tensor, n: str) -> Tensor:
        flat, tall = (0, 3), (3, 0)
        seven = self.conv(self.conv(self.conv(x, f"{n}7x7_1"), f"{n}7x7_2", padding=flat), f"{n}7x7_3", padding=tall)
        double = self.conv(x, f"{n}7x7dbl_1")
        for i, padding in ((2, tall), (3, flat), (4, tall), (5, flat)):
            double = self.conv(double, f"{n}7x7dbl_{i}", padding=padding)
        return torch.cat([self.conv(x, f"{n}1x1"), seven, double, self.pooled(x, n)], 1)

    def d(self, x: Tensor, n: str) -> Tensor:
        three = self.conv(self.conv(x, f"{n}3x3_1"), f"{n}3x3_2", 2)
        seven = self.conv(self.conv(x, f"{n}7x7x3_1"), f"{n}7x7x3_2", padding=(0, 3))
        seven = self.conv(self.conv(seven, f"{n}7x7x3_3", padding=(3, 0)), f"{n}7x7x3_4", 2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def e(self, x: Tensor, n: str, last: bool = False) -> Tensor:
        three = self.conv(x, f"{n}3x3_1")
        three = [self.conv(three, f"{n}3x3_2a", padding=(0, 1)), self.conv(three, f"{n}3x3_2b", padding=(1, 0))]
        double = self.conv(self.conv(x, f"{n}3x3dbl_1"), f"{n}3x3dbl_2", padding=1)
        double = [
            self.conv(double, f"{n}3x3dbl_3a", padding=(0, 1)),
            self.conv(double, f"{n}3x3dbl_3b", padding=(1, 0)),
        ]
        pool = self.conv(F.max_pool2d(x, 3, 1, 1), f"{n}_pool") if last else self.pooled(x, n)
        return torch.cat([self.conv(x, f"{n}1x1"), *three, *double, pool], 1)

    def pooled(self, x: Tensor, n: str) -> Tensor:
        return self.conv(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), f"{n}_pool")


def resized(image: np.ndarray) -> np.ndarray:
    """TensorFlow 1's bilinear resize of ``[H, W, 3]`` to 299x299, pixel by pixel."""
    found = image.astype(np.float64)
    for axis in (0, 1):
        at = np.arange(299) * (found.shape[axis] / 299)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, found.shape[axis] - 1), at - low
        share = share.reshape([-1 if i == axis else 1 for i in range(3)])
        found = found.take(low, axis) * (1 - share) + found.take(high, axis) * share
    return found


def test_the_names_and_sizes_are_those_of_the_published_file(state: dict[str, Tensor]) -> None:
    assert len(state) == 566
    assert 0.99 < sum(value.numel() * value.element_size() for value in state.values()) / BYTES < 1


def test_the_network_gives_what_its_layers_give(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pth")
    command = [sys.executable, STUDY, tmp_path / "weights.pth", "-o", tmp_path / "inception.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "NOT of the standard weights" in done.stdout
    extractor = Extractor(tmp_path / "inception.onnx", threads=1)
    assert extractor.size is None and extractor.distance_name == "Fréchet distance"
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    read = extractor.read(image[None])
    with torch.no_grad():
        prepared = torch.from_numpy((resized(image) - 128) / 128).permute(2, 0, 1)[None].float()
        features = Plain(state)(prepared)
    np.testing.assert_allclose(read.features, features.numpy(), rtol=2e-3, atol=1e-4 * features.abs().max().item())
    assert read.scores is not None
    np.testing.assert_allclose(read.scores, (features @ state["fc.weight"].T).numpy(), rtol=1e-2, atol=1e-2)
