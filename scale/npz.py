"""``.npz`` files of images, written and read a few images at a time: as ADM's evaluation suite reads them.

That suite (openai/guided-diffusion, ``evaluations/evaluator.py``) takes one file whose ``arr_0`` has all images, uint8
``[N, H, W, 3]``.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

IMAGES, CLASSES = "arr_0", "arr_1"
# What zipfile raises for damaged, encrypted (RuntimeError) and foreign (its NotImplementedError) archives.
MOST_BYTES = 100_000_000  # of each array but the images
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError)


class NpzWriter:
    """Writes a stack of images of known shape, then small arrays; the same content gives the same bytes."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...]) -> None:
        """Begin a file of images uint8 ``shape``, ``[N, H, W, 3]``."""
        self._archive = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
        self._images = self._member(IMAGES)
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._images, header)

    def add(self, pixels: np.ndarray) -> None:
        """Append images uint8 ``[..., H, W, 3]``."""
        self._images.write(np.ascontiguousarray(pixels, np.uint8).tobytes())

    def finish(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the other arrays by name, after the last image."""
        self._images.close()
        for name, values in arrays.items():
            with self._member(name) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)

    def __enter__(self) -> "NpzWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._images.close()
        self._archive.close()

    def _member(self, name: str) -> IO[bytes]:
        # A ZipInfo that is made by hand has the time 1980-01-01.
        return self._archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


class NpzReader:
    """Reads the images a few at a time, and the small arrays beside them."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            OSError, ValueError: it cannot be read, or holds no images uint8 ``[N, H, W, 3]`` named ``arr_0``.
        """
        try:
            self._archive = zipfile.ZipFile(path)
            self._file = self._archive.open(f"{IMAGES}.npy")
            version = np.lib.format.read_magic(self._file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, fortran, dtype = header(self._file)
        except DAMAGED as error:
            raise ValueError(str(error)) from None
        if dtype != np.uint8 or len(self.shape) != 4 or self.shape[3] != 3 or fortran:
            raise ValueError(f"its {IMAGES} is {dtype} {list(self.shape)}; images are uint8 [N, H, W, 3]")

    def batches(self, images: int) -> Iterator[np.ndarray]:
        """Yield the images in order, at most ``images`` at once; raises ValueError where the file is damaged."""
        each = int(np.prod(self.shape[1:]))
        for first in range(0, self.shape[0], images):
            count = min(images, self.shape[0] - first)
            try:
                content = self._file.read(count * each)
            except DAMAGED as error:
                raise ValueError(str(error)) from None
            if len(content) != count * each:
                raise ValueError(f"it ends after {first + len(content) // each} of {self.shape[0]} images")
            yield np.frombuffer(content, np.uint8).reshape(count, *self.shape[1:])

    def arrays(self) -> dict[str, np.ndarray]:
        """The other arrays by name; raises ValueError where the file is damaged."""
        names = [name for name in self._archive.namelist() if name != f"{IMAGES}.npy"]
        return {name.removesuffix(".npy"): self._array(name) for name in names}

    def _array(self, name: str) -> np.ndarray:
        if (size := self._archive.getinfo(name).file_size) > MOST_BYTES:
            raise ValueError(f"its {name} has {size:,} bytes; the limit is {MOST_BYTES:,}")
        try:
            with self._archive.open(name) as member:
                return np.lib.format.read_array(member, allow_pickle=False)
        except (*DAMAGED, MemoryError) as error:  # of a header that says another size
            raise ValueError(str(error)) from None

    def __enter__(self) -> "NpzReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._archive.close()
