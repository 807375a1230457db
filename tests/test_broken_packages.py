"""A package that is installed and broken is not called missing, and one that is missing is."""

import subprocess
import sys
from pathlib import Path

import pytest

from bitdance_edge.runtime import Bundle

OPEN = """
import sys
sys.path.insert(0, sys.argv[1])
from bitdance_edge.cli import main
raise SystemExit(main(["generate", sys.argv[2], "--classes", "0", "--steps", "1", "--out", sys.argv[1] + "/out"]))
"""
BROKEN = {
    "its extension": "from .capi import _pybind_state",
    "its dependency": "import flatbuffers_that_is_not_here",
    "an ABI": "raise AttributeError('_ARRAY_API not found')",
    "a shared library": "raise ImportError('libcudnn.so.9: cannot open shared object file: No such file or directory')",
    "a name": "from numpy import name_of_another_version",
    "an OSError": "raise OSError('libgomp.so.1: cannot open shared object file')",
    "nothing in it": "",
}


def generate(packages: Path, bundle: Path, *, blocked: str = "") -> str:
    script = f"import sys\nsys.modules[{blocked!r}] = None\n{OPEN}" if blocked else OPEN
    command = [sys.executable, "-c", script, packages, bundle]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("why", BROKEN)
def test_a_broken_onnxruntime(tmp_path: Path, bundle: Bundle, why: str) -> None:
    package = tmp_path / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text(BROKEN[why], encoding="utf-8")
    said = generate(tmp_path, bundle.folder)
    assert "no backend is installed" not in said
    assert f"onnxruntime is installed in {package}, but does not load" in said
    assert "--force-reinstall" in said


def test_a_missing_onnxruntime(tmp_path: Path, bundle: Bundle) -> None:
    assert "no backend is installed: " in generate(tmp_path, bundle.folder, blocked="onnxruntime")


def test_a_broken_package_of_a_command(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("from . import missing_part", encoding="utf-8")
    said = generate(tmp_path, bundle.folder)
    assert f"PIL is installed in {tmp_path / 'PIL'}, but does not load (ImportError: cannot import name" in said
    assert "PIL is not installed" in generate(tmp_path, bundle.folder, blocked="PIL")
