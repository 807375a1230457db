"""Plans as files: ``plan.json`` of a job's folder, which is complete, and shorter ones that people write.

A plan that a person wrote has ``bundle``, ``classes`` or ``prompts``, and any of the other fields; ``settings`` may be
short of some. Paths are relative to the current directory.
"""

from pathlib import Path
from typing import Any

from bitdance_edge.runtime import RequestError
from bitdance_edge.runtime.bundle import schema
from bitdance_edge.runtime.bundle.json_file import read_json
from bitdance_edge.runtime.errors import BundleError
from bitdance_edge.runtime.values import shown
from bitdance_edge.scale.durable import write_durably
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.plan import FORMAT, SETTINGS, Plan, make_plan

NAME = "plan.json"
MOST_BYTES = 2**30
REQUIRED = ("bundle",)
OPTIONAL = ("classes", "prompts", "count", "seed", "settings", "images_at_once", "shard_images", "file_format")
RECORDED = ("format", "job", "bundle_sha256")  # of a plan that was written by this program
COMPLETE = (*RECORDED, *REQUIRED, "count", "seed", "settings", "images_at_once", "shard_images", "file_format")


def read_plan(path: Path, bundle: str | None = None) -> Plan:
    """Read a plan, of a person or of a job's folder, and check it against its bundle.

    Args:
        bundle: folder of the bundle, in place of the one that the plan names.

    Raises:
        ScaleError: it cannot be read, is no plan, has a value that is not allowed, or its bundle is missing or another.
    """
    data = _read(path)
    folder = data.get("bundle") if bundle is None else bundle
    if not isinstance(folder, str):
        raise ScaleError(f'{path} names no bundle; add "bundle": "FOLDER", or give --bundle FOLDER')
    settings, allowed = data.get("settings", {}), (*SETTINGS, "published")
    if not isinstance(settings, dict) or not settings.keys() <= set(allowed):
        raise ScaleError(f"{path}: settings are {shown(settings)}; they may have {', '.join(allowed)}")
    given = {name: data[name] for name in OPTIONAL if name in data}
    for name in ("classes", "prompts"):
        if not isinstance(given.get(name, []), list) and (name, given.get(name)) != ("classes", "all"):
            raise ScaleError(f"{path}: {name} is {shown(given[name])}; give a list")
    try:
        plan = make_plan(folder, **given)
    except RequestError as error:
        raise ScaleError(f"{path}: {error}") from None
    except BundleError as error:
        elsewhere = "" if bundle else ", or give its folder with --bundle FOLDER"
        raise ScaleError(f"{path}: {error}{elsewhere}") from None
    if data.get("bundle_sha256", plan.bundle_sha256) != plan.bundle_sha256:
        raise ScaleError(
            f"{path} is of a bundle with SHA-256 {shown(data['bundle_sha256'])}, and {folder} has "
            f"{plan.bundle_sha256}; give the right one with --bundle FOLDER"
        )
    return plan


def job_plan(folder: Path) -> Plan | None:
    """Read the plan of a job's folder, without its bundle; None where there is none.

    Raises:
        ScaleError: it cannot be read, or was edited.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    data = _read(path)
    kind = "prompts" if "prompts" in data else "classes"
    try:
        fields: dict[str, Any] = {name: data[name] for name in COMPLETE if name not in ("format", "job")}
        plan = Plan(subjects=tuple(data[kind]), **fields)
        if plan.job != data["job"] or not isinstance(plan.bundle, str):
            raise ValueError
    except (LookupError, TypeError, ValueError):
        raise ScaleError(
            f"{path} is not as it was written, so the shards beside it cannot be identified; restore it, or choose "
            "another --out"
        ) from None
    return plan


def write_plan(plan: Plan, folder: Path) -> None:
    """Write ``plan.json`` of a job's folder. Raises: StorageError: it cannot be written, or is there already."""
    with write_durably(folder / NAME, replace=False) as file:
        file.write(f"{plan.to_json()}\n".encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        data, _ = read_json(path, MOST_BYTES)
    except OSError as error:
        raise ScaleError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ScaleError(f"{path} is no plan ({error}); docs/scale.md has an example") from None
    if not isinstance(data, dict):
        raise ScaleError(f"{path} is no plan: it is no JSON object; docs/scale.md has an example")
    if unknown := [name for name in data if name not in (*REQUIRED, *OPTIONAL, *RECORDED)]:
        named = ", ".join(map(schema.plain, unknown[:4]))
        raise ScaleError(f"{path} has {named}; a plan may have {', '.join((*REQUIRED, *OPTIONAL))}")
    if data.get("format", FORMAT) != FORMAT:
        raise ScaleError(f"{path} has format {shown(data['format'])}; this version reads {FORMAT}")
    return data
