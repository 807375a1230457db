"""What is written beside the shards: a sidecar for each, written last, and a manifest of all when the job is done.

A shard is made where its sidecar carries the digest of this job and the file has the bytes that it names. Everything
else is made again.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from bitdance_edge.runtime.bundle import schema
from bitdance_edge.runtime.bundle.json_file import read_json
from bitdance_edge.runtime.bundle.limits import Bytes, FileName, Sha256, Within
from bitdance_edge.runtime.bundle.manifest import sha256
from bitdance_edge.runtime.errors import BundleError
from bitdance_edge.scale.durable import write_durably
from bitdance_edge.scale.plan import MOST_IMAGES, Plan

FORMAT = 1
MANIFEST = "manifest.json"
MOST_MANIFEST = 2**32
Number = Annotated[int, Within(0, MOST_IMAGES)]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A shard that is made.

    Attributes:
        job: digest of the plan.
        shard: its number; ``images``: of it, from ``first_image`` of the job.
        file, bytes, sha256: the file beside the sidecar.
        made_by: what made it: version, backend, device, and the stages that ran as built for it.
    """

    job: Sha256
    shard: Number
    first_image: Number
    images: Number
    file: FileName
    bytes: Bytes
    sha256: Sha256
    made_by: Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """A shard that has to be made again, and why; the reason is "" where nothing of it is there."""

    shard: int
    reason: str


def write_record(plan: Plan, folder: Path, shard: int, made_by: dict[str, Any]) -> Record:
    """Describe a shard that is complete, and write its sidecar."""
    path, images = folder / plan.file(shard), plan.images_of(shard)
    record = Record(
        job=plan.job,
        shard=shard,
        first_image=images.start,
        images=len(images),
        file=path.name,
        bytes=path.stat().st_size,
        sha256=sha256(path),
        made_by=made_by,
    )
    with write_durably(sidecar(plan, folder, shard)) as file:
        file.write(_json({"format": FORMAT, **asdict(record)}))
    return record


def sidecar(plan: Plan, folder: Path, shard: int) -> Path:
    return folder / f"{plan.name(shard)}.json"


def check(plan: Plan, folder: Path, shard: int, *, content: bool = False) -> Record | Problem:
    """Find out whether a shard is made; with ``content`` also whether each byte of it is as it was written."""
    record, path = _read(plan, folder, shard), folder / plan.file(shard)
    if isinstance(record, Problem):
        return record
    if not path.is_file():
        return Problem(shard, f"{path} is missing")
    if (found := path.stat().st_size) != record.bytes:
        return Problem(shard, f"{path} has {found:,} bytes, not {record.bytes:,}")
    if content and sha256(path) != record.sha256:
        return Problem(shard, f"{path} was altered: its SHA-256 is not the one in {sidecar(plan, folder, shard).name}")
    return record


def write_manifest(plan: Plan, folder: Path, records: Iterable[Record]) -> Path:
    """Write the manifest of a job whose shards are all made, in order; returns its path."""
    with write_durably(folder / MANIFEST) as file:
        file.write(_json(_manifest(plan, list(records))))
    return folder / MANIFEST


def manifest_problem(plan: Plan, folder: Path, records: list[Record]) -> str:
    """Say what is wrong with the manifest of a job whose shards are all there; "" where nothing is."""
    path = folder / MANIFEST
    if not path.is_file():
        return f"{path} is missing"
    try:
        found, _ = read_json(path, MOST_MANIFEST)
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({error})"
    return "" if found == _manifest(plan, records) else f"{path} is not of these shards"


def _manifest(plan: Plan, records: list[Record]) -> dict[str, Any]:
    shards = [
        {name: getattr(record, name) for name in ("file", "first_image", "images", "bytes", "sha256")}
        for record in records
    ]
    return {
        "format": FORMAT,
        "job": plan.job,
        "bundle_sha256": plan.bundle_sha256,
        "images": plan.images,
        "made_by": makers(records),
        "content_sha256": content_digest(records),
        "shards": shards,
    }


def makers(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The distinct makers of shards; where there are several, bits of their images may differ by rounding."""
    distinct = {json.dumps(record.made_by, sort_keys=True) for record in records}
    return [json.loads(each) for each in sorted(distinct)]


def content_digest(records: Iterable[Record]) -> str:
    """The SHA-256 of the shards' own, in order: one number that says whether two folders hold the same."""
    return hashlib.sha256("\n".join(record.sha256 for record in records).encode()).hexdigest()


def leftovers(folder: Path) -> Iterator[str]:
    """Yield the names of files in a folder that have the names of shards, sidecars or the manifest."""
    for path in sorted(folder.iterdir()):
        if path.name == MANIFEST or (path.stem.isdecimal() and path.suffix in (".tar", ".parquet", ".npz", ".json")):
            yield path.name


def _read(plan: Plan, folder: Path, shard: int) -> Record | Problem:
    path, images = sidecar(plan, folder, shard), plan.images_of(shard)
    try:
        data, _ = read_json(path)
        if not isinstance(data, dict) or type(data.pop("format", None)) is not int:
            raise ValueError
        record = schema.record(Record, data, str(path))
    except FileNotFoundError:
        return Problem(shard, "")
    except OSError as error:
        return Problem(shard, f"{path} cannot be read: {error.strerror or error}")
    except (ValueError, BundleError):
        return Problem(shard, f"{path} is not as it was written")
    if record.job != plan.job:
        return Problem(shard, f"{path} is of another job ({record.job[:12]}...)")
    found = record.shard, record.first_image, record.images, record.file
    right = found == (shard, images.start, len(images), plan.file(shard))
    return record if right else Problem(shard, f"{path} is not as it was written")


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=1) + "\n").encode()
