"""The bundle: one folder with ``bundle.json`` and the files it names, the only thing that passes between rooms.

Knows names, sizes, shapes and checksums; runs nothing. Opens without network and without pickle.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from bitdance_edge.runtime.bundle import schema
from bitdance_edge.runtime.bundle.consistency import require_consistent
from bitdance_edge.runtime.bundle.json_file import read_json
from bitdance_edge.runtime.bundle.limits import Name, OneOf, Text, Within
from bitdance_edge.runtime.bundle.signatures import cache_names
from bitdance_edge.runtime.bundle.specs import (
    MANIFEST,
    CacheSpec,
    FileSpec,
    ModelSpec,
    SamplingSpec,
    StageSpec,
    TextSpec,
    WindowSpec,
)
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.bundle.unpack import unpacked
from bitdance_edge.runtime.errors import BundleError, RequestError
from bitdance_edge.runtime.values import file_path
from bitdance_edge.storage import stopped_replacement

FORMAT = 5
WITHOUT_WINDOW = 4  # the format before: without the windowed sampler and its stages
WITHOUT_OPSET = 3  # and the one before that: sizes as [height, width], and a named profile in place of the opset
RECORDINGS = "calibration/recordings"  # what calibration recorded of this bundle; not shipped


@dataclass(frozen=True, kw_only=True, repr=False)
class Bundle:
    """A bundle's manifest, checked, and the folder that it is in."""

    folder: Path
    name: Name
    opset: Annotated[int, Within(7, 99)]  # of the graphs
    model: ModelSpec
    cache: CacheSpec
    sampling: SamplingSpec  # the defaults of a request
    published: SamplingSpec | None = None  # what the checkpoint was published with; None: the same as ``sampling``
    stages: Mapping[Annotated[str, OneOf(StageName)], StageSpec]  # by StageName
    text: TextSpec | None  # of text-to-image models
    links: Mapping[str, Text]  # file -> the checkpoint's file that it was hard-linked to
    provenance: Mapping[Name, Any]
    fast_preview: FileSpec | None = None  # map from bits to pixels, fitted to the decoder
    window: WindowSpec | None = None  # of the windowed sampler; None: the bundle has no stages for it
    digest: str  # SHA-256 of bundle.json, which holds those of all files

    @classmethod
    def open(cls, folder: str | Path) -> "Bundle":
        """Read and validate ``bundle.json``; the files are checked when a stage is loaded (``verified``).

        ``folder`` may be an archive that ``bitdance-edge pack`` wrote; it is unpacked once, into the user's cache.

        Raises:
            BundleError: there is no bundle, or its manifest is incomplete, of another format or contradicts itself.
            RequestError: ``folder`` is no path.
        """
        folder = file_path("bundle", folder)
        manifest = folder / MANIFEST
        try:
            if folder.is_file():
                folder = unpacked(folder)
                manifest = folder / MANIFEST
            if not manifest.is_file():
                raise BundleError(_no_bundle(folder))
            data, content = read_json(manifest)
        except OSError as error:
            raise BundleError(f"{manifest} cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise BundleError(
                f"{manifest} is not JSON that can be read ({error}); it may be truncated: copy or export it again"
            ) from None
        given = {"folder": folder, "digest": hashlib.sha256(content).hexdigest()}
        bundle: Bundle = schema.record(cls, _current_format(data, manifest), str(manifest), given)
        require_consistent(bundle)
        return bundle

    def __repr__(self) -> str:
        return f"Bundle({self.name}, {self.model.kind}, {', '.join(map(str, self.model.sizes))}, {self.folder})"

    def write(self) -> None:
        """Write ``bundle.json`` into the folder (an exporter's last step, in a folder not yet in its place)."""
        data = {"format": FORMAT, **asdict(self)}
        for derived in ("folder", "digest"):
            del data[derived]
        (self.folder / MANIFEST).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @property
    def published_sampling(self) -> SamplingSpec:
        return self.published or self.sampling

    def require_fast_previews(self) -> FileSpec:
        """The file of the fast previews' map.

        Raises:
            RequestError: the bundle was exported without it.
        """
        if self.fast_preview is None:
            raise RequestError(
                f"{self.name} has no fast previews; ask for full ones (preview_kind 'full'), or export it again with "
                "bitdance-edge export, in fp32 or fp16 and without --no-fast-previews"
            )
        return self.fast_preview

    def require_window(self) -> WindowSpec:
        """What is known of the windowed sampler.

        Raises:
            RequestError: the bundle was exported without it.
        """
        if self.window is None:
            raise RequestError(
                f"{self.name} has no windowed sampler; sample one evaluation after the other (window 1), or export it "
                "again with bitdance-edge export"
            )
        return self.window

    def stage(self, name: str) -> StageSpec:
        """A stage by name.

        Raises:
            BundleError: the bundle has no such stage.
        """
        if name not in self.stages:
            raise BundleError(f"{self.folder} has no {name} stage; it has {', '.join(self.stages)}: export it again")
        return self.stages[name]

    def verified(self, name: str) -> Path:
        """Check that the files of a stage are those of the manifest; returns the graph's path.

        Raises:
            BundleError: a file is missing or its size or SHA-256 differs.
        """
        stage = self.stage(name)
        for file in stage.files:
            self.verified_file(file)
        return self.folder / stage.graph.path

    def verified_file(self, file: FileSpec) -> Path:
        """Check one file of the bundle as ``verified`` does; returns its path."""
        path = self.folder / file.path
        if not path.is_file():
            raise BundleError(f"{path} is missing; copy the whole bundle again or export it again")
        size = path.stat().st_size
        if size != file.bytes:
            raise BundleError(
                f"{path} has {size} bytes, its bundle says {file.bytes}: truncated or altered; copy it again"
            )
        if sha256(path) != file.sha256:
            raise BundleError(f"{path} was altered: its SHA-256 is not the one in {MANIFEST}; copy or export it again")
        return path

    def shared_files(self) -> list[str]:
        """The files that are still hard links to a checkpoint's: a change to one changes the other."""
        return [name for name in self.links if (self.folder / name).stat().st_nlink > 1]

    def cache_names(self) -> Iterator[tuple[str, str]]:
        """Yield the backbone's cache tensors, as pairs of input and output name."""
        yield from cache_names(self.cache)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_spec(folder: Path, path: Path) -> FileSpec:
    """Describe a file of a bundle being written."""
    return FileSpec(path=path.relative_to(folder).as_posix(), sha256=sha256(path), bytes=path.stat().st_size)


def _no_bundle(folder: Path) -> str:
    said = f"no bundle at {folder}: it has no {MANIFEST}"
    if (kept := stopped_replacement(folder)) is not None:
        return f"{said}; a process that replaced it was stopped, and what it was is {kept}: rename that back"
    return f"{said}; make one with: bitdance-edge export"


def _current_format(data: Any, manifest: Path) -> dict[str, Any]:
    """Convert a manifest's content to today's format, where it has an older one that is still read.

    Raises:
        BundleError: the format is another.
    """
    found = data.get("format") if isinstance(data, dict) else None
    if found == WITHOUT_OPSET and type(found) is int:
        try:
            data = _from_format_3(data)
        except (AttributeError, LookupError, TypeError, ValueError):
            raise BundleError(f"{manifest} is not whole; copy or export the bundle again") from None
    elif found not in (WITHOUT_WINDOW, FORMAT) or type(found) is not int:
        provenance = data.get("provenance") if isinstance(data, dict) else None
        checkpoint = provenance.get("checkpoint") if isinstance(provenance, dict) else None
        checkpoint = checkpoint if isinstance(checkpoint, str) and checkpoint.isprintable() else "CHECKPOINT"
        command = shlex.join(["bitdance-edge", "export", checkpoint, "-o", str(manifest.parent), "--force"])
        raise BundleError(
            f"{manifest} has format {schema.shown(found)}; this version reads {WITHOUT_OPSET} to {FORMAT}: "
            f"export it again with: {command}"
        )
    if found != FORMAT and "window" in data:
        raise BundleError(f"{manifest} has format {found} and a window, which that has not; copy or export it again")
    return {name: value for name, value in data.items() if name != "format"}


def _from_format_3(data: dict[str, Any]) -> dict[str, Any]:
    profile = data.pop("profile")
    model = {**data["model"], "sizes": [{"width": w, "height": h} for h, w in data["model"]["sizes"]]}
    text = data.get("text")
    if text is not None:
        swapped = {"x".join(reversed(size.split("x"))): ids for size, ids in text["suffixes"].items()}
        text = {**text, "suffixes": swapped}
    # Profiles were named after their opset: two digits.
    return {**data, "opset": int(re.findall(r"\d\d", profile)[0]), "model": model, "text": text}
