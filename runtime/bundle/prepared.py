"""Graphs that ONNX Runtime has already optimised for this processor (``bitdance-edge build --target cpu``).

Loading such a graph folds and reorders nothing, and its weights are mapped from the file as they lie there. The forms
are those of one version of the library and one set of instructions; elsewhere the bundle's own graphs are loaded.
https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bitdance_edge.runtime.backends.processor import instructions
from bitdance_edge.runtime.bundle.manifest import Bundle, sha256
from bitdance_edge.runtime.bundle.sidecar import onnx_hashes
from bitdance_edge.runtime.errors import BundleError

log = logging.getLogger(__name__)

FORMAT = 1
FOLDER = "cpu"  # of a bundle


@dataclass(frozen=True, kw_only=True)
class PreparedFile:
    """A file as it was written: by content, and by what the file system says of it.

    While inode, size and times are those of the file that was hashed, nobody has written to it since: the time of
    change cannot be set. It is not read again for its hash then; a copy of it is.
    """

    name: str
    sha256: str
    bytes: int
    inode: int
    modified: int  # ns
    changed: int  # ns

    @classmethod
    def of(cls, path: Path) -> "PreparedFile":
        digest, found = sha256(path), path.stat()
        return cls(name=path.name, sha256=digest, **_identity(found))

    def require_whole(self, folder: Path) -> None:
        """Raises BundleError where the file is missing, truncated or altered."""
        path = folder / self.name
        again = f"make it again with: bitdance-edge build {folder.parent} --target cpu --force"
        if not path.is_file():
            raise BundleError(f"{path} is missing; {again}")
        now = _identity(path.stat())
        if all(getattr(self, name) == value for name, value in now.items()):
            return
        if now["bytes"] != self.bytes:
            raise BundleError(f"{path} has {now['bytes']} bytes and had {self.bytes}: truncated or altered; {again}")
        if sha256(path) != self.sha256:
            raise BundleError(f"{path} was altered: its SHA-256 is not the one in its record; {again}")


def _identity(found: os.stat_result) -> dict[str, int]:
    return {
        "bytes": found.st_size,
        "inode": found.st_ino,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
    }


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The record beside a prepared graph: what it was made from, by and for."""

    stage: str
    onnxruntime: str
    instructions: str
    onnx: Mapping[str, str]  # file of the bundle -> SHA-256
    files: tuple[PreparedFile, ...]

    @classmethod
    def read(cls, record: Path) -> "Prepared | None":
        """The record at a path; None where there is none, or one of another version of this project."""
        try:
            data = json.loads(record.read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            return None
        if data.keys() != {field.name for field in fields(cls)}:
            return None
        return cls(**{**data, "files": tuple(PreparedFile(**file) for file in data["files"])})

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    def mismatch(self, bundle: Bundle, version: str) -> str | None:
        """Why it is not for this bundle, library and processor, or None."""
        if self.onnx != onnx_hashes(bundle, self.stage):
            return "it was made from another export of this stage"
        if self.onnxruntime != version:
            return f"ONNX Runtime {self.onnxruntime} made it, and {version} is installed"
        if self.instructions != instructions():
            return "it was made for a processor with other instructions"
        return None


def graph_path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.onnx"


def record_path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.json"


def prepared_graph(bundle: Bundle, stage: str, version: str) -> Path | None:
    """The graph that was prepared for this processor and version of ONNX Runtime, or None.

    Raises:
        BundleError: it is there, and truncated or altered.
    """
    folder = bundle.folder / FOLDER
    found = Prepared.read(record_path(folder, stage))
    if found is None:
        return None
    if unfit := found.mismatch(bundle, version):
        log.info(
            "%s is not used: %s; bitdance-edge build %s --target cpu", graph_path(folder, stage), unfit, bundle.folder
        )
        return None
    for file in found.files:
        file.require_whole(folder)
    return graph_path(folder, stage)
