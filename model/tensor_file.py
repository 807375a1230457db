"""The position of each tensor in a safetensors file, from its header (huggingface.co/docs/safetensors, "Format").

Reading a tensor maps the file: no value is copied before it is used.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitdance_edge.model.errors import ModelError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in row-major order; ``offset`` and ``bytes`` are its place in the file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    bytes: int

    def read(self) -> Tensor:
        """Map the values from the file; they must not be written to."""
        # An offset that is not a multiple of the element size cannot be viewed in place, so the bytes are mapped first.
        size = self.offset + self.bytes
        values = torch.from_file(str(self.file), shared=False, size=size, dtype=torch.uint8)[self.offset :]
        if self.offset % self.dtype.itemsize:
            values = values.clone()
        return values.view(self.dtype).view(self.shape)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a safetensors file by its key.

    Raises:
        ModelError: the file is missing, truncated, not a safetensors file, or has a tensor of an unsupported type.
    """
    if not file.is_file():
        raise ModelError(f"{file} is missing; the checkpoint is incomplete: copy it again")
    total = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if total < 8 or length > min(LARGEST_HEADER, total - 8):
            raise ModelError(
                f"{file} has {total} bytes and no complete safetensors header; it is truncated: copy it again"
            )
        raw = content.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {key: _stored(file, 8 + length, key, entry) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is not a safetensors file ({error}); copy it again") from None
    end = max((tensor.offset + tensor.bytes for tensor in tensors.values()), default=8 + length)
    if total != end:
        raise ModelError(
            f"{file} has {total} bytes, its header describes {end}; it is truncated or altered: copy it again"
        )
    return tensors


def _stored(file: Path, data: int, key: str, entry: dict) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise ModelError(f"{file}: {key} is stored as {entry['dtype']}; supported are {', '.join(DTYPES)}")
    first, end = entry["data_offsets"]
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    if end - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{key} has {end - first} bytes for {list(shape)} of {entry['dtype']}")
    return StoredTensor(file, dtype, shape, data + first, end - first)
