"""The files that shards are: WebDataset tar, Parquet and npz. Nothing in them says when or where they were written.

Each holds pixels, class or prompt, and seed. The PNG in a tar or Parquet file has the settings inside, as those that
``generate`` writes.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from bitdance_edge.imports import failed_import
from bitdance_edge.runtime import GeneratedImage
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.npz import CLASSES, NpzReader, NpzWriter

KEY_DIGITS = 9  # of an image's index in the job, the name of its files in a tar
READ_TOGETHER = 64  # images
GROUP_BYTES = 32 * 2**20  # of the images of a Parquet row group, on average: readers hold whole groups
MODE = 0o644  # of the files in a tar
HUB_FEATURES = {"image": {"_type": "Image"}}  # what makes the datasets library decode the column
Add = Callable[[int, GeneratedImage], None]


@dataclass(frozen=True)
class Row:
    """One image of a shard.

    Attributes:
        index: in the job.
        pixels: uint8 ``[H, W, 3]``.
        bits: its tokens' bits in generation order, eight in a uint8 (npz only).
    """

    index: int
    pixels: np.ndarray
    class_id: int | None
    prompt: str | None
    seed: int
    bits: np.ndarray | None = None


def writer(file_format: str, file: IO[bytes], images: range, size: Size) -> AbstractContextManager[Add]:
    """Open a shard of ``images`` (indices in the job) for writing; its value takes each index and image, in order."""
    if file_format == "tar":
        return _tar_writer(file)
    if file_format == "parquet":
        return _parquet_writer(file)
    return _npz_writer(file, images, size)


def read_rows(path: Path, images: range) -> Iterator[Row]:
    """Read a shard that holds ``images``, in order.

    Raises:
        ScaleError: it is damaged, or holds something else.
    """
    reader = {".tar": _tar_rows, ".parquet": _parquet_rows, ".npz": _npz_rows}[path.suffix]
    count = 0
    try:
        for row in reader(path, images):
            count += 1
            yield row
    except (OSError, LookupError, ValueError, tarfile.TarError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ScaleError(
            f"{path} cannot be read ({reason}); check the folder with: bitdance-edge bulk verify"
        ) from None
    if count != len(images):
        raise ScaleError(f"{path} holds {count} images, not {len(images)}; check with: bitdance-edge bulk verify")


@contextmanager
def _tar_writer(file: IO[bytes]) -> Iterator[Add]:
    """Members ``000000012.png``, ``.json`` (settings), and ``.cls`` or ``.txt``, as WebDataset reads them."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:

        def add(index: int, image: GeneratedImage) -> None:
            subject = ("cls", image.class_id) if image.prompt is None else ("txt", image.prompt)
            parts = {"png": image.png(), "json": _json(image.settings).encode(), subject[0]: str(subject[1]).encode()}
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"{index:0{KEY_DIGITS}d}.{suffix}")
                member.size, member.mode = len(content), MODE  # time, user and group stay 0
                archive.addfile(member, io.BytesIO(content))

        yield add


def _tar_rows(path: Path, images: range) -> Iterator[Row]:
    with tarfile.open(path) as archive:
        found: dict[str, bytes] = {}
        for member in archive:
            content = archive.extractfile(member)
            found[member.name.rpartition(".")[2]] = b"" if content is None else content.read()
            if len(found) == 3:
                index = int(member.name.partition(".")[0])
                settings = json.loads(found["json"])
                prompt = found["txt"].decode() if "txt" in found else None
                yield Row(index, _pixels(found["png"]), settings.get("class"), prompt, settings["seed"])
                found = {}


@contextmanager
def _parquet_writer(file: IO[bytes]) -> Iterator[Add]:
    """Columns ``image`` (bytes and path, as the datasets library has it), ``class`` or ``prompt``, ``seed``, and
    ``settings``."""
    arrow, parquet = import_pyarrow()
    rows: list[dict[str, Any]] = []

    def add(index: int, image: GeneratedImage) -> None:
        name = f"{index:0{KEY_DIGITS}d}.png"
        subject = {"class": image.class_id} if image.prompt is None else {"prompt": image.prompt}
        about = {"seed": image.seed, "settings": _json(image.settings)}
        rows.append({"image": {"bytes": image.png(), "path": name}, **subject, **about})

    yield add
    kinds = {"class": arrow.int64(), "prompt": arrow.string(), "seed": arrow.int64(), "settings": arrow.string()}
    picture = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    fields = [("image", picture), *((name, kinds[name]) for name in rows[0] if name != "image")]
    features = {name: HUB_FEATURES.get(name, {"dtype": str(kind), "_type": "Value"}) for name, kind in fields}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    size = sum(len(row["image"]["bytes"]) for row in rows)
    together = max(1, GROUP_BYTES * len(rows) // size)
    parquet.write_table(arrow.Table.from_pylist(rows, arrow.schema(fields, about)), file, row_group_size=together)


def _parquet_rows(path: Path, images: range) -> Iterator[Row]:
    _, parquet = import_pyarrow()
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=READ_TOGETHER):
        for row in batch.to_pylist():
            index = int(row["image"]["path"].partition(".")[0])
            yield Row(index, _pixels(row["image"]["bytes"]), row.get("class"), row.get("prompt"), row["seed"])


@contextmanager
def _npz_writer(file: IO[bytes], images: range, size: Size) -> Iterator[Add]:
    """Arrays ``arr_0`` (pixels ``[N, H, W, 3]``), ``arr_1`` (classes) or ``prompts``, ``seeds`` and ``bits``."""
    about: dict[str, list[Any]] = {}

    with NpzWriter(file, (len(images), size.height, size.width, 3)) as arrays:

        def add(_: int, image: GeneratedImage) -> None:
            assert image.pixels is not None  # a launch asks for images
            arrays.add(image.pixels)
            subject = {CLASSES: image.class_id} if image.prompt is None else {"prompts": image.prompt}
            for name, value in {**subject, "seeds": image.seed, "bits": np.packbits(image.tokens > 0)}.items():
                about.setdefault(name, []).append(value)

        yield add
        arrays.finish({name: np.array(values) for name, values in about.items()})


def _npz_rows(path: Path, images: range) -> Iterator[Row]:
    with NpzReader(path) as npz:
        about = npz.arrays()
        pixels = (picture for batch in npz.batches(READ_TOGETHER) for picture in batch)
        for i, (index, picture) in enumerate(zip(images, pixels, strict=True)):
            prompt = str(about["prompts"][i]) if "prompts" in about else None
            class_id = int(about[CLASSES][i]) if CLASSES in about else None
            yield Row(index, picture, class_id, prompt, int(about["seeds"][i]), about["bits"][i])


def import_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet module. Raises: ScaleError: it is not installed, or does not load."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        failed = failed_import(error, "pyarrow")
        raise ScaleError(f"Parquet needs pyarrow: {failed and failed.explained('cpu,parquet')}") from error
    return pyarrow, parquet


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def _json(settings: Any) -> str:
    return json.dumps(settings, sort_keys=True)
