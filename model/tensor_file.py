"""The position of each tensor in a safetensors file, from its header (huggingface.co/docs/safetensors, "Format").

Reading a tensor maps the file: no value is copied before it is used.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.placeholder import require_content, text_in_place

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LARGEST_HEADER = 16_000_000  # bytes; the 14B models' have a hundredth of that


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in row-major order; ``offset`` and ``bytes`` are its place in the file.

    ``stored`` is the name of its element type in the file: weights are of ``FLOATS``, others cannot be read.
    """

    file: Path
    stored: str
    shape: tuple[int, ...]
    offset: int
    bytes: int

    @property
    def dtype(self) -> torch.dtype | None:
        """The element type; None where it is not of ``FLOATS``."""
        return FLOATS.get(self.stored)

    def read(self) -> Tensor:
        """Map the values from the file; they must not be written to.

        Raises:
            ModelError: they are not floating-point numbers.
        """
        if self.dtype is None:
            raise ModelError(f"{self.file} has values of {self.stored}; weights are {', '.join(FLOATS)}")
        # An offset that is not a multiple of the element size cannot be viewed in place, so the bytes are mapped first.
        size = self.offset + self.bytes
        values = torch.from_file(str(self.file), shared=False, size=size, dtype=torch.uint8)[self.offset :]
        if self.offset % self.dtype.itemsize:
            values = values.clone()
        return values.view(self.dtype).view(self.shape)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a safetensors file by its key.

    Raises:
        ModelError: the file is missing, truncated, or not a safetensors file.
    """
    start = require_content(file)
    total = file.stat().st_size
    length = int.from_bytes(start[:8], "little")
    if total < 8 or length > min(LARGEST_HEADER, total - 8):
        if (line := text_in_place(start)) is not None:
            raise ModelError(f"{file} is not a safetensors file but text that begins with {line!r}; download it again")
        raise ModelError(f"{file} has {total} bytes and no complete safetensors header; it is truncated: copy it again")
    try:
        with safe_open(file, "pt"):  # checks that types, shapes and offsets fit together and fill the file
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} has {total} bytes and is not a whole safetensors file ({str(error).splitlines()[0]}); it is "
            "truncated or altered: copy it again"
        ) from None
    with file.open("rb") as content:
        header = json.loads(content.read(8 + length)[8:])
    header.pop("__metadata__", None)
    return {key: _stored(file, 8 + length, entry) for key, entry in header.items()}


def _stored(file: Path, data: int, entry: dict) -> StoredTensor:
    first, end = entry["data_offsets"]
    return StoredTensor(file, entry["dtype"], tuple(entry["shape"]), data + first, end - first)
