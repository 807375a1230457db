"""Image files with a class or a caption each, read by number: a folder, WebDataset tars or Parquet tables.

Only positions are kept in memory. What comes in shards says so, because a far record of a shard costs a read of it.
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bitdance_edge.imports import failed_import
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.picture import MOST_BYTES
from bitdance_edge.runtime.reading import open_regular, read_text
from bitdance_edge.training.errors import TrainingError
from bitdance_edge.training.tar_index import Span, indexed_tar

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION = (".txt", ".caption")
CLASS = (".cls",)
CAPTION_FIELDS = ("caption", "text", "prompt")
CLASS_FIELDS = ("label", "class", "cls", "class_id")
MOST_TEXT = 4_000_000  # bytes of a caption, or of JSON
MOST_CLASSES = 1_000_000


class Records(Protocol):
    """Images by number, with classes (``labels``, ``class_names``) or captions."""

    labels: NDArray[np.int64]  # [N], of class_names; zeros where there are captions
    class_names: tuple[str, ...]  # empty where there are captions
    shards: NDArray[np.int64]  # [N], the number of the file that holds each
    window: int | None  # records that are shuffled at once, so that few shards are read at a time; None: all

    def __len__(self) -> int: ...

    def image(self, row: int) -> bytes:
        """Return the image file of a record. Raises: TrainingError."""
        ...

    def caption(self, row: int) -> str:
        """Return the caption of a record, where there are captions. Raises: TrainingError."""
        ...

    def name(self, row: int) -> str:
        """Name a record in messages."""
        ...


def open_records(path: Path, *, captions: bool) -> Records:
    """Open a folder of images, a folder of ``.tar`` or ``.parquet`` shards, or one shard.

    Args:
        captions: whether the records must have captions; otherwise classes.

    Raises:
        TrainingError: there is no data of this kind, or a file is damaged.
    """
    if not path.exists():
        raise TrainingError(f"no data at {path}; give a folder of images, or of .tar or .parquet shards")
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    shards = {suffix: [file for file in files if file.suffix == suffix] for suffix in (".tar", ".parquet")}
    if shards[".tar"] and shards[".parquet"]:
        raise TrainingError(f"{path} holds .tar and .parquet shards; give a folder with one kind")
    if shards[".tar"]:
        return TarRecords(shards[".tar"], captions=captions)
    if shards[".parquet"]:
        return _parquet(shards[".parquet"], captions)
    if path.is_file():
        raise TrainingError(f"{path} is no .tar and no .parquet shard; give one, or a folder")
    return captioned_folder(path) if captions else class_folder(path)


def _parquet(files: Sequence[Path], captions: bool) -> Records:
    try:
        from bitdance_edge.training.parquet_records import ParquetRecords
    except ImportError as error:
        failed = failed_import(error, "pyarrow")
        raise TrainingError(f"Parquet needs pyarrow: {failed and failed.explained('train,parquet')}") from error
    return ParquetRecords(files, captions=captions)


@dataclass
class FileRecords:
    """Records that are files of their own, with their captions in text files beside them."""

    files: Sequence[Path]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        self.shards = np.zeros(len(self.files), np.int64)
        self.window: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def image(self, row: int) -> bytes:
        try:
            with open_regular(self.files[row], "image", MOST_BYTES) as content:
                return content.read()
        except RequestError as error:
            raise TrainingError(f"{error}; repair or remove it") from None

    def caption(self, row: int) -> str:
        file = next(filter(Path.is_file, _beside(self.files[row])))
        try:
            return read_text(file, "caption").strip()
        except RequestError as error:
            raise TrainingError(f"{error}; repair or remove it") from None

    def name(self, row: int) -> str:
        return str(self.files[row])


def class_folder(folder: Path) -> FileRecords:
    """List a folder with one sub-folder of images for each class.

    Raises:
        TrainingError: it has fewer than two classes, or one without images.
    """
    if not folder.is_dir():
        raise TrainingError(f"no folder at {folder}; give a folder with one sub-folder of images for each class")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        found = ", ".join(path.name for path in classes) or "none"
        raise TrainingError(f"{folder} needs at least two sub-folders, one for each class; found {found}")
    files: list[Path] = []
    labels: list[int] = []
    for index, path in enumerate(classes):
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise TrainingError(f"{path} holds no image ({', '.join(SUFFIXES)}); add some or remove the folder")
        files += found
        labels += [index] * len(found)
    return FileRecords(files, np.array(labels, np.int64), tuple(path.name for path in classes))


def captioned_folder(folder: Path) -> FileRecords:
    """List a folder of images, in sub-folders or not, each with its caption in a text file beside it.

    Raises:
        TrainingError: there is no image, or one has no caption.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise TrainingError(
            f"{folder} holds no image ({', '.join(SUFFIXES)}) and no .tar or .parquet shard; give another"
        )
    for file in files:
        if not any(map(Path.is_file, _beside(file))):
            raise TrainingError(f"{file} has no caption; put it into {file.with_suffix('.txt').name} beside the image")
    return FileRecords(files, np.zeros(len(files), np.int64), ())


def _beside(file: Path) -> Iterator[Path]:
    return (file.with_suffix(suffix) for suffix in CAPTION)


class TarRecords:
    """WebDataset: tars in which the members of a record share their name up to its first point.

    A record has an image, and ``.cls`` (the number of its class), ``.txt`` (its caption) or ``.json`` with either
    (https://github.com/webdataset/webdataset). Members are read in place, so that tars must not be compressed.
    """

    window: int | None = 16_384

    def __init__(self, files: Sequence[Path], *, captions: bool) -> None:
        self.files = files
        places = array(
            "q"
        )  # of a record: file; offset and bytes of its image, then of its class or caption; JSON or not
        for number, file in enumerate(tqdm(files, desc="indexing", unit="shard", leave=False, disable=None)):
            for key, members in indexed_tar(file):
                image = _first(members, SUFFIXES)
                if image is None:
                    continue
                text = _first(members, CAPTION if captions else CLASS)
                fields = text or members.get(".json")
                if fields is None:
                    wanted = " or ".join((*(CAPTION if captions else CLASS), ".json"))
                    raise TrainingError(f"{file}: {key} has {', '.join(members)}, but no {wanted} member")
                if image.bytes > MOST_BYTES or fields.bytes > MOST_TEXT:
                    raise TrainingError(
                        f"{file}: {key} has an image of {image.bytes:,} bytes, described in {fields.bytes:,}; the "
                        f"limits are {MOST_BYTES:,} and {MOST_TEXT:,}"
                    )
                places.extend((number, *image, *fields, text is None))
        if not places:
            raise TrainingError(f"{files[0]} holds no image ({', '.join(SUFFIXES)}); give a WebDataset shard")
        self.places = np.frombuffer(places, np.int64).reshape(-1, 6)
        self.shards = self.places[:, 0]
        self.labels = np.zeros(len(self), np.int64)
        self.class_names: tuple[str, ...] = ()
        if not captions:
            rows = tqdm(range(len(self)), desc="classes", unit="record", leave=False, disable=None)
            self.labels = np.array([class_number(self._text(row, CLASS_FIELDS), self.name(row)) for row in rows])
            self.class_names = tuple(map(str, range(int(self.labels.max()) + 1)))

    def __len__(self) -> int:
        return len(self.places)

    def image(self, row: int) -> bytes:
        file, offset, count, *_ = self.places[row].tolist()
        return self._read(file, offset, count)

    def caption(self, row: int) -> str:
        found = self._text(row, CAPTION_FIELDS)
        if not isinstance(found, str) or any(map(_is_surrogate, found)):
            raise TrainingError(f"{self.name(row)} has the caption {repr(found)[:80]}, which is no text; correct it")
        return found.strip()

    def name(self, row: int) -> str:
        return f"{self.files[self.places[row, 0]]}: the image at byte {self.places[row, 1]}"

    def _text(self, row: int, fields: Sequence[str]) -> Any:
        file, _, _, offset, count, is_json = self.places[row].tolist()
        try:
            content = self._read(file, offset, count).decode("utf-8-sig")
            return one_of(json.loads(content), fields, self.name(row)) if is_json else content
        except (ValueError, RecursionError) as error:  # neither UTF-8 nor JSON
            raise TrainingError(f"{self.name(row)}: what describes it cannot be read ({error})") from None

    def _read(self, file: int, offset: int, count: int) -> bytes:
        try:
            with self.files[file].open("rb") as content:
                content.seek(offset)
                return content.read(count)
        except OSError as error:
            raise TrainingError(f"{self.files[file]} cannot be read: {error.strerror}") from None


def _is_surrogate(character: str) -> bool:
    """Whether a character is half of one, as JSON may write it: no encoding has it."""
    return "\ud800" <= character <= "\udfff"


def _first(members: Mapping[str, Span], suffixes: Sequence[str]) -> Span | None:
    return next((members[suffix] for suffix in suffixes if suffix in members), None)


def one_of(fields: Any, names: Sequence[str], record: str) -> Any:
    """Return the first field that there is. Raises: TrainingError: none is."""
    for name in names:
        if isinstance(fields, Mapping) and fields.get(name) is not None:
            return fields[name]
    raise TrainingError(f"{record} has no field {' or '.join(names)}")


def class_number(value: Any, record: str) -> int:
    """Read the number of a class. Raises: TrainingError: it is none."""
    try:
        number = -1 if isinstance(value, bool) or (isinstance(value, float) and value % 1) else int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number < MOST_CLASSES:
        raise TrainingError(f"{record}: class is {str(value)[:40]!r}; it must be a number from 0 to {MOST_CLASSES - 1}")
    return number
