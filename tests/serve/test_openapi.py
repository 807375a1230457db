"""The OpenAPI document is true: neither what it allows nor what it forbids makes the server fail."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from serving import Server

from bitdance_edge.runtime import Bundle


def quick_bundle(bundle: Path, folder: Path) -> Path:
    """The same model with 1 step per patch as its default."""
    opened = Bundle.open(shutil.copytree(bundle, folder))
    replace(opened, sampling=replace(opened.sampling, steps=1)).write()
    return folder


def test_schemathesis_finds_no_server_error_and_no_untrue_answer(digits_bundle: Path, tmp_path: Path) -> None:
    quick = quick_bundle(digits_bundle, tmp_path / "quick")
    server = Server(tmp_path / "log", quick, "--max-images", 2, "--max-steps", 2).wait_ready()
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--no-color"),
        *("--seed", "1", "--max-examples", "10", "--continue-on-failure", "--request-timeout", "60"),
        *("--suppress-health-check", "all"),
        *("--phases", "coverage,fuzzing,stateful"),  # coverage tries the examples of the document too
        # A schema cannot list the classes, sizes and image files of a server, so a valid request may still be refused.
        *("--exclude-checks", "positive_data_acceptance"),
    ]
    try:
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300)
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr
        assert "28 selected / 28 total" in result.stdout
        assert "Traceback" not in server.log
        assert server.generate(prompt="7").status_code == 200
    finally:
        server.stop()
