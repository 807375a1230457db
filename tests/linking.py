"""A bundle that shares the weight files of its checkpoint, as exports of the big text-to-image models do."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sharing import made_once, run_folder

from bitdance_edge.export.exporter import ExportOptions
from bitdance_edge.export.opening import open_text_to_image
from bitdance_edge.runtime import Bundle

FIXTURE = Path(__file__).parent / "fixtures" / "t2i_16x_swiglu"
WEIGHTS = ("model.safetensors", "vision_head.safetensors", "ae.safetensors", "projector.safetensors")
SIZE = "64x64"
MAX_PROMPT = 96


def checkpoint_in(folder: Path, dtype: torch.dtype) -> Path:
    """The fixture with all its weights in one element type, as the big ones are published."""
    shutil.copytree(FIXTURE, folder)
    for name in WEIGHTS:
        state = {key: value.to(dtype) for key, value in load_file(folder / name).items()}
        save_file(state, folder / name)
    return folder


def export_linked(checkpoint: Path, folder: Path, precision: str) -> Bundle:
    options = ExportOptions(name="linked", precision=precision, link=True, window_patches=0)
    return open_text_to_image(checkpoint, options, sizes=SIZE, max_prompt=MAX_PROMPT).export(folder)


@pytest.fixture(scope="session")
def linked_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """In float32; its checkpoint is the folder ``checkpoint`` next to it."""

    def make(folder: Path) -> None:
        export_linked(checkpoint_in(folder / "checkpoint", torch.float32), folder / "bundle", "fp32")

    return Bundle.open(made_once(run_folder(tmp_path_factory) / "linked", make) / "bundle")


@pytest.fixture(scope="session")
def linked_bf16(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """In bfloat16, as 14B."""

    def make(folder: Path) -> None:
        export_linked(checkpoint_in(folder / "checkpoint", torch.bfloat16), folder / "bundle", "bf16")

    return Bundle.open(made_once(run_folder(tmp_path_factory) / "linked-bf16", make) / "bundle")
