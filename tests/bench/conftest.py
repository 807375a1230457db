"""A comparison that was run once, for all tests that look at it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from benching import SHORT, bench, last_line

from bitdance_edge.runtime import Bundle

FIXTURES = Path(__file__).parents[1] / "fixtures"
CHECKPOINT = FIXTURES / "cc_4x_patch" / "state.safetensors"


@dataclass(frozen=True)
class Compared:
    folder: Path
    report: dict[str, Any]
    arguments: tuple[str | Path, ...]


@pytest.fixture(scope="session")
def compared(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("compared") / "runs"
    arguments = (bundle.folder, "--checkpoint", CHECKPOINT, *SHORT, "-o", folder)
    return Compared(folder, last_line(bench(*arguments)), arguments)


@pytest.fixture(scope="session")
def altered(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose head has another weight than its checkpoint."""
    import torch

    from bitdance_edge.export.exporter import ExportOptions, export_bundle
    from bitdance_edge.model import load_generator

    model = load_generator(CHECKPOINT)
    with torch.no_grad():
        model.head.final_layer.linear.weight.neg_()
    folder = tmp_path_factory.mktemp("altered") / "altered"
    return export_bundle(model, folder, ExportOptions(name="altered"), {"checkpoint": "cc_4x_patch"})
