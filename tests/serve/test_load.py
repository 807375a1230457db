"""A small run of the load study: no image is lost or given to another client, and the queue stays bounded."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "studies" / "serve_load.py"


def test_mixed_requests_of_many_clients_are_all_answered_with_their_own_images(digits_bundle: Path) -> None:
    command = [sys.executable, SCRIPT, digits_bundle, "--requests", "60", "--clients", "16", "--images", "0"]
    result = subprocess.run([str(part) for part in command], capture_output=True, encoding="utf-8", timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert set(summary["held"].values()) == {True} and summary["images"] > 50
    kinds = {name.split()[0] for name in summary["outcomes"]}
    assert kinds >= {"whole", "streamed", "job", "leaving", "malformed", "too_large"}
