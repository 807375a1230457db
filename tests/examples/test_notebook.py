"""examples/notebook.ipynb runs from top to bottom, and shows what it says."""

from pathlib import Path

import nbformat
import pytest
from examples_tools import EXAMPLES
from nbclient import NotebookClient


def test_the_notebook_runs(digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "digits-4x").symlink_to(digits_bundle)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [key for output in outputs for key in output.get("data", {})]
    assert shown.count("image/png") == 3
    assert "{'patches': 16, 'previews': 3}" in {output.data.get("text/plain") for output in outputs if "data" in output}
    assert (tmp_path / "three.png").is_file()
