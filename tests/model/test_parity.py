"""The PyTorch model against the reference's recorded inputs and outputs."""

import subprocess
import sys
from pathlib import Path

from conftest import FIXTURES

TESTS = Path(__file__).parents[1]


def test_every_stage_within_tolerance_and_tokens_identical() -> None:
    command = [sys.executable, TESTS / "parity_check.py", "--adapter", TESTS / "parity_adapter.py"]
    check = subprocess.run([*command, "--fixtures", FIXTURES], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr
    assert "98 stages, 0 over tolerance" in check.stdout
    assert "skip" not in check.stdout
