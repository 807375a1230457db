"""Masks and files of prompts with some bytes changed: read, or refused in one line that names the file."""

import argparse
import io
from pathlib import Path

import numpy as np
import pytest
from mutations import damaged, rewrite
from PIL import Image

from bitdance_edge.commands.values import prompt_file
from bitdance_edge.runtime import RequestError
from bitdance_edge.runtime.mask import load_mask

pytestmark = pytest.mark.usefixtures("cheap")
SIDE = 24


def mask(file_format: str) -> bytes:
    white = np.zeros((SIDE, SIDE), np.uint8)
    white[4:9, 3:20] = 255
    file = io.BytesIO()
    Image.fromarray(white).save(file, file_format, lossless=True)  # of WebP, whose other kind has colors
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "JPEG", "TIFF", "WEBP", "GIF"])
def test_a_damaged_mask(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / f"mask.{file_format.lower()}"
    content, refused = mask(file_format), 0
    path.write_bytes(content)
    assert load_mask(path).shape == (SIDE, SIDE)
    for changed in damaged(content):
        rewrite(path, changed)
        try:
            found = load_mask(path)
        except RequestError as error:
            refused += 1
            assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 600
        else:
            assert found.dtype == bool and found.ndim == 2
    assert refused


def test_a_damaged_file_of_prompts(tmp_path: Path) -> None:
    path, content = tmp_path / "prompts.txt", "\ufeffa red fish\r\n\nein rötlicher Kreis\n".encode()
    path.write_bytes(content)
    assert prompt_file(str(path)) == ["a red fish", "ein rötlicher Kreis"]
    for changed in damaged(content):
        rewrite(path, changed)
        try:
            found = prompt_file(str(path))
        except argparse.ArgumentTypeError as error:
            assert path.name in str(error) and "\n" not in str(error)
        else:
            assert found and all(prompt.strip() and prompt.encode() for prompt in found)
