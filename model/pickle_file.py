"""The tensors of a file that ``torch.save`` wrote (.pt, .pth, .ckpt, .bin), of today's kind or from before PyTorch 1.6.

Nothing inside is executed: ``weights_only``, with the few classes that the reference's trainer saves beside its
weights (imagenet_gen/train_parallel.py: the command line's arguments, an ``argparse.Namespace``).
"""

import io
import pickle
import re
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from bitdance_edge.model.errors import ModelError

ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # how today's files and those of the older kind begin
# Bytes of the pickle that names the tensors, some 200 each. A byte of it may make 70 in memory.
LARGEST_INDEX = 2_000_000
SIZED = b"bytearray\n"  # the one allowed class that takes as much memory as a number says
TENSOR = re.compile(r".*/data/\d+")  # the entries of an archive that may be large
ALLOWED = (
    Namespace,
    (PurePosixPath, "pathlib.PosixPath"),
    (PurePosixPath, "pathlib.PurePosixPath"),
    (PureWindowsPath, "pathlib.WindowsPath"),
    (PureWindowsPath, "pathlib.PureWindowsPath"),
)
FOREIGN = re.compile(r"(?:GLOBAL|class) ([\w.]+)")  # how PyTorch's message names what is not allowed
NESTED = 3  # dictionaries inside each other that may lead to the weights
SHOWN = 4


def read_pickled(path: Path, entries: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors under the first of ``entries`` that the file has, or those of the file itself.

    Raises:
        ModelError: the file is damaged, holds more than tensors and settings, or no tensors.
    """
    content = _load(path)
    if (found := _tensors(content, entries, NESTED)) is not None:
        return found
    names = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise ModelError(f"{path} has none of the entries {', '.join(entries)} and no tensors; it holds {names[:SHOWN]}")


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
    if zipped and (complaint := zip_complaint(path)):
        raise ModelError(f"{path} {'; '.join(complaint)}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(ALLOWED)):
            warnings.simplefilter("ignore")
            if not zipped:
                with _Pickles(io.FileIO(path)) as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            if path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:  # PyTorch would go by the name
                return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}; check its permissions and the disk"
        ) from None
    except Exception as error:  # what a damaged pickle makes of the reader is any error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError) and (found := FOREIGN.search(str(error))):
            raise ModelError(
                f"{path} holds more than tensors and is not opened: it names {found[1]}, which could run code; save "
                "its weights alone, as a .safetensors file"
            ) from None
        raise ModelError(
            f"{path} cannot be read ({reason}); it may be truncated: compare its size, copy it again"
        ) from None


class _Pickles(io.BufferedReader):
    """A file of before PyTorch 1.6, of which the pickles are read here, and the tensors by its descriptor."""

    left = LARGEST_INDEX

    def read(self, size: int | None = -1, /) -> bytes:
        whole = size is None or not 0 <= size <= LARGEST_INDEX
        return self._counted(super().read(LARGEST_INDEX + 1 if whole else size))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._counted(super().readline(LARGEST_INDEX))

    def _counted(self, content: bytes) -> bytes:
        self.left -= len(content)
        if self.left < 0 or content == SIZED:
            raise ValueError("its list of tensors is too long, or holds something else")
        return content


def zip_complaint(path: Path) -> tuple[str, str] | None:
    """Say why an archive is not one that PyTorch wrote, and what helps; None where it may be.

    PyTorch stores tensors as they are, so that they take as much memory as the file has bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            index = [entry for entry in entries if entry.filename.endswith("/data.pkl")][:1]
            sized = any(SIZED in archive.open(entry).read(LARGEST_INDEX) for entry in index)
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError):
        truncated = "it may be truncated: compare its size, copy it again"
        return "cannot be read (its list of entries is missing or damaged)", truncated
    if len({entry.filename for entry in entries}) < len(entries):
        return "has two entries of one name", "save its weights alone, as a .safetensors file"
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            return f"is a compressed archive ({entry.filename}), not a file that PyTorch wrote", "unpack it"
        if not TENSOR.fullmatch(entry.filename) and entry.file_size > LARGEST_INDEX:
            return (
                f"holds {entry.filename} of {entry.file_size} bytes",
                f"beside tensors at most {LARGEST_INDEX} are read",
            )
    if sized:
        return "holds bytes beside tensors and settings", "save its weights alone, as a .safetensors file"
    return None


def _tensors(content: Any, entries: Sequence[str], levels: int) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping) or not levels:
        return None
    for entry in entries:
        if (found := _tensors(content.get(entry), entries, levels - 1)) is not None:
            return found
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)} or None
