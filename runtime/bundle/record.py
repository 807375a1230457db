"""The record beside what was built of a stage: from which files, by which library, for which devices.

A build lies in ``targets/<target>/`` of its bundle: a graph or an engine, and a JSON file of this record. It is used
only after its record was found to match the bundle, the library and the device: libraries crash on some builds that do
not match, and run others without a word. Knows files and names; imports no library.
"""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from bitdance_edge.runtime.bundle import schema
from bitdance_edge.runtime.bundle.json_file import read_json
from bitdance_edge.runtime.bundle.limits import (
    Bytes,
    Count,
    FileName,
    FilePath,
    Items,
    Like,
    Name,
    NotNegative,
    OneOf,
    Sha256,
)
from bitdance_edge.runtime.bundle.manifest import Bundle, sha256
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import BuildError, BundleError

FORMAT = 1
TARGETS = "targets"
# Options of an engine: its weights need not all be on the GPU; each can be replaced.
WEIGHT_STREAMING, REFITTABLE = "weight_streaming", "refittable"
Shape = Annotated[list[Count], Items(1, 8)]
Ranges = Annotated[list[Shape], Items(3, 3)]  # the smallest, likeliest and largest shape
Line = Annotated[str, Like(r"[^\x00-\x1f\x7f]{0,200}", "one line of text")]


@dataclass(frozen=True, kw_only=True)
class BuiltFile:
    """A file as it was written: its content, and what the file system says of it.

    While inode, size and times are those of the file that was hashed, nobody has written to it since: the time of
    change cannot be set. It is not hashed again then; a copy of it is.
    """

    name: FileName
    sha256: Sha256
    bytes: Bytes
    inode: int
    modified: int  # ns
    changed: int  # ns

    @classmethod
    def of(cls, path: Path) -> "BuiltFile":
        digest = sha256(path)
        return cls(name=path.name, sha256=digest, **_identity(path.stat()))

    def damage(self, folder: Path) -> str | None:
        """Why the file's bytes are not those that were built, or None."""
        path = folder / self.name
        if not path.is_file():
            return f"{self.name} is missing"
        now = _identity(path.stat())
        if all(getattr(self, name) == value for name, value in now.items()):
            return None
        if now["bytes"] != self.bytes:
            return f"{self.name} has {now['bytes']} bytes, its record says {self.bytes}: it is truncated or altered"
        if sha256(path) != self.sha256:
            return f"{self.name} was altered: its SHA-256 is not the one in its record"
        return None


def _identity(found: os.stat_result) -> dict[str, int]:
    return {
        "bytes": found.st_size,
        "inode": found.st_ino,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
    }


@dataclass(frozen=True, kw_only=True)
class BuildRecord:
    """What a build was made from, by and for.

    Attributes:
        target: as given to ``bitdance-edge build --target``.
        library: "onnxruntime", "tensorrt_rtx" or "tensorrt"; library_version: "" where any version runs it.
        devices: what it runs on: kinds of processor, or compute capabilities of GPUs; empty for any.
        built_on: the GPU that it was built on, "" where none was needed.
        sources: file of the bundle -> SHA-256.
        files: the graph or engine, then its weights.
        precision: element types of the graph, such as "int8+fp16".
        max_images: images that it takes at once; None for any number.
        profiles: profile -> input -> smallest, likeliest and largest shape; of engines.
        layers: layer kind -> element type -> number of layers, as parsed; of engines.
        options: what else the build depends on.
        error: largest error against the bundle's own stage; None where the building machine could not run the build.
        tolerance: the largest ``error`` that was allowed.
        seconds: of building.
    """

    stage: Annotated[str, OneOf(StageName)]
    target: Line
    library: Line
    library_version: Line
    devices: Annotated[tuple[Line, ...], Items(0, 100)]
    built_on: Line
    sources: Mapping[FilePath, Sha256]
    files: Annotated[tuple[BuiltFile, ...], Items(1, 100)]
    precision: Line
    max_images: Count | None
    profiles: Mapping[Line, Mapping[Name, Ranges]]
    layers: Mapping[Line, Mapping[Line, int]]
    options: Mapping[str, Any]
    error: NotNegative | None
    tolerance: NotNegative
    seconds: NotNegative

    @classmethod
    def read(cls, path: Path) -> "BuildRecord":
        """Read a record.

        Raises:
            BuildError: there is none, or it is not whole.
        """
        again = "build again with: bitdance-edge build BUNDLE --target TARGET --force"
        try:
            data, _ = read_json(path)
        except FileNotFoundError:
            raise BuildError(f"{path} is missing, so nothing says what the build beside it is; {again}") from None
        except (OSError, ValueError) as error:
            raise BuildError(f"{path} cannot be read ({error}); {again}") from None
        if not isinstance(data, dict) or type(data.get("format")) is not int or data.pop("format") != FORMAT:
            raise BuildError(f"{path} is not a record of format {FORMAT}; {again}")
        try:
            found = schema.record(cls, data, str(path))
        except BundleError as error:
            raise BuildError(f"{str(error).split(';')[0]}; {again}") from None
        if found.stage != path.stem:
            raise BuildError(f"{path} is the record of another stage, {found.stage}; {again}")
        if Path(found.files[0].name).stem != path.stem:
            raise BuildError(f"{path} names {found.files[0].name} as the graph or engine of {found.stage}; {again}")
        return found

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def streams_weights(self) -> bool:
        return self.options.get(WEIGHT_STREAMING) is True

    def mismatch(self, bundle: Bundle, library_version: str) -> str | None:
        """Why the build is not of this bundle and library, or None; its bytes are not looked at."""
        if self.sources != source_hashes(bundle, self.stage):
            return "it was built from another export of this stage"
        if self.library_version and self.library_version != library_version:
            return f"it was built by {self.library} {self.library_version}, and {library_version} is installed"
        return None

    def damage(self, folder: Path) -> str | None:
        """Why the files in ``folder`` are not those that were built, or None."""
        return next(filter(None, (file.damage(folder) for file in self.files)), None)

    def rebuild_command(self, bundle: Bundle) -> str:
        images = ["--max-images", str(self.max_images)] if self.max_images not in (None, 1) else []
        form = ["--stream-weights"] if self.streams_weights else []
        form += ["--refittable"] if self.options.get(REFITTABLE) is True else []
        command = ["bitdance-edge", "build", str(bundle.folder), "--target", self.target, *images, *form, "--force"]
        return f"build it again with: {shlex.join(command)}"


def source_hashes(bundle: Bundle, stage: str) -> dict[str, str]:
    """The files that a stage is built from, as the manifest names and hashes them."""
    return {file.path: file.sha256 for file in bundle.stage(stage).files}


def target_folder(bundle: Bundle, target: str) -> Path:
    """Where the builds for a target lie; its name is part of a path on any system."""
    return bundle.folder / TARGETS / target.replace(":", "-").replace(",", "-")


def record_path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.json"


def built_folders(bundle: Bundle) -> list[Path]:
    """The folders of all targets that a bundle was built for, by name."""
    root = bundle.folder / TARGETS
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def records(folder: Path) -> Iterator[BuildRecord]:
    """The records in a target's folder, by stage.

    Raises:
        BuildError: one is not whole.
    """
    for path in sorted(folder.glob("*.json")):
        yield BuildRecord.read(path)
