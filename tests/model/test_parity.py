"""The PyTorch model against the reference's recorded inputs and outputs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import FIXTURES
from safetensors.numpy import load_file

from bitdance_edge.bench.bits import ROUNDING

TESTS = Path(__file__).parents[1]


def test_every_stage_within_tolerance_and_tokens_identical() -> None:
    command = [sys.executable, TESTS / "parity_check.py", "--adapter", TESTS / "parity_adapter.py"]
    check = subprocess.run([*command, "--fixtures", FIXTURES], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
    assert "98 stages, 0 over tolerance" in check.stdout
    assert "skip" not in check.stdout


@pytest.mark.parametrize(
    ("fixture", "signed", "rounding"),
    [
        ("cc_1x", ".pred", ROUNDING),
        ("cc_4x_patch", ".pred", ROUNDING),
        ("t2i_16x_swiglu", ".pred", ROUNDING),
        # One pass through the encoder rounds less than a patch, which is sampled in many.
        *((fixture, "encoder_out", 1e-5) for fixture in ("cc_1x", "cc_4x_patch", "t2i_16x_swiglu", "vae_qae")),
    ],
)
def test_no_bit_of_the_reference_is_within_rounding(fixture: str, signed: str, rounding: float) -> None:
    """So that equal bits may be demanded on every processor."""
    golden = load_file(FIXTURES / fixture / "golden.safetensors")
    least = [np.abs(golden[key]).min() for key in golden if key.endswith(signed)]
    assert least
    assert min(least) > rounding
