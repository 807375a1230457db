"""A bundle and what was built of it as one archive, the same bytes every time."""

import io
import os
import shutil
import tarfile
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from bitdance_edge.runtime.bundle.files import claimed_output, written_whole
from bitdance_edge.runtime.bundle.manifest import MANIFEST, RECORDINGS, Bundle, sha256
from bitdance_edge.runtime.bundle.record import (
    BuildRecord,
    built_folders,
    record_path,
    records,
    source_hashes,
    target_folder,
)
from bitdance_edge.runtime.errors import BuildError, BundleError, RequestError
from bitdance_edge.runtime.values import quoted
from bitdance_edge.storage import TEMPORARY

COPY_CHUNK = 1 << 24  # bytes
Builds = dict[Path, list[BuildRecord]]  # folder of a target -> what is in it


@dataclass(frozen=True)
class Packed:
    files: int
    bytes: int  # of the archive
    omitted: int  # bytes of graphs and weights that an engine stands for
    linked: int  # bytes of files that are in the archive already, and so are links


def pack_bundle(
    bundle: Bundle, archive: Path, targets: Sequence[str] | None, engines_only: bool, *, force: bool = False
) -> Packed:
    """Write a bundle as ``.tar``: one folder of the bundle's name, files in order of their paths, without dates.

    Weights are in the ONNX files and again in each engine. With ``engines_only`` the ONNX files of a stage are omitted
    where every packed target has its engine; the manifest still names them, so the engines can be checked against it.
    Files of equal content are stored once.

    Args:
        targets: whose builds to pack, as given to ``build --target``; None for all.
        force: replace an archive of that name.

    Raises:
        BundleError: a file of the bundle is missing, altered or a link out of it, or the archive would be inside it.
        BuildError: a build is damaged or of another export, or a target is not there.
        RequestError: there is such an archive, and not ``force``.
        OutputBusyError: another process is writing it.
        StorageError: it cannot be written.
    """
    if archive.resolve().is_relative_to(bundle.folder.resolve()):
        raise BundleError(f"{archive} is inside the bundle {bundle.folder}; write it elsewhere")
    with claimed_output(archive):
        if os.path.lexists(archive) and not force:
            raise RequestError(f"{archive} exists; write to another file, or replace it with --force")
        builds = _builds(bundle, targets)
        replaced = {name for name in bundle.stages if engines_only and _has_engine(name, builds)}
        if engines_only and not replaced:
            raise BuildError(
                f"{bundle.folder} has no engines to stand for its ONNX files; build them with: "
                f"bitdance-edge build {quoted(bundle.folder)} --target rtx"
            )
        names = _packed_names(bundle, builds, replaced)
        with written_whole(archive, replace=force) as file:
            linked = _write(bundle, names, file)
            size = file.tell()
    return Packed(len(names), size, sum(bundle.stages[name].bytes for name in replaced), linked)


def bundle_paths(bundle: Bundle) -> list[str]:
    """List the files of a bundle without what was built of it, each checked; raises what ``pack_bundle`` does."""
    return _packed_names(bundle, {}, set())


def _packed_names(bundle: Bundle, builds: Builds, replaced: Set[str]) -> list[str]:
    """The files to pack, by their paths in the bundle; those that the manifest names are checked against it."""
    kept = [spec for name, spec in bundle.stages.items() if name not in replaced]
    # disable=None: no progress line where standard error is not a terminal
    for name in tqdm(sorted(bundle.stages.keys() - replaced), "checking", unit="stage", leave=False, disable=None):
        bundle.verified(name)
    names = {MANIFEST, *(file.path for stage in kept for file in stage.files)}
    described = [bundle.fast_preview, bundle.text.tokenizer if bundle.text is not None else None]
    for file in filter(None, described):
        bundle.verified_file(file)
        names.add(file.path)
    paths = _calibration(bundle)
    for folder, built in builds.items():
        paths += [record_path(folder, record.stage) for record in built]
        paths += [folder / file.name for record in built for file in record.files]
    for path in paths:
        _require_own(bundle, path)
        names.add(path.relative_to(bundle.folder).as_posix())
    return sorted(names)


def _require_own(bundle: Bundle, path: Path) -> None:
    """Refuse a file that a link takes from elsewhere: nothing says that it is the bundle's."""
    if not path.resolve().is_relative_to(bundle.folder.resolve()):
        raise BundleError(f"{path} is a link out of the bundle, to {path.resolve()}; put a copy in its place")


def copy_shared_files(bundle: Bundle) -> int:
    """Make a bundle self-contained: each file that it shares with a checkpoint becomes a copy, whole or not at all.

    Returns:
        bytes copied.
    """
    copied = 0
    with claimed_output(bundle.folder, lock_in=bundle.folder):
        for name in tqdm(bundle.shared_files(), "copying", unit="file", leave=False, disable=None):
            path = bundle.folder / name
            _require_own(bundle, path)
            with path.open("rb") as source, written_whole(path) as copy:
                shutil.copyfileobj(source, copy, COPY_CHUNK)
            copied += path.stat().st_size
    return copied


def _builds(bundle: Bundle, targets: Sequence[str] | None) -> Builds:
    """The builds to pack, each checked against its record and the bundle."""
    there = built_folders(bundle)
    wanted = there if targets is None else [target_folder(bundle, name) for name in targets]
    if missing := [folder.name for folder in wanted if folder not in there]:
        known = ", ".join(folder.name for folder in there) or "none"
        raise BuildError(f"nothing was built for {', '.join(missing)} in {bundle.folder}; there are: {known}")
    found = {folder: list(records(folder)) for folder in wanted}
    for folder, built in found.items():
        for record in built:
            stale = record.sources != source_hashes(bundle, record.stage)
            if reason := record.damage(folder) or ("it was built from another export" if stale else None):
                raise BuildError(
                    f"{folder.name}/{record.stage} is not packed: {reason}; {record.rebuild_command(bundle)}"
                )
    return {folder: built for folder, built in found.items() if built}


def _has_engine(stage: str, builds: Builds) -> bool:
    """Whether every packed target has an engine of a stage."""
    engines = [{record.stage for record in built if record.profiles} for built in builds.values()]
    return bool(engines) and all(stage in names for names in engines)


def _calibration(bundle: Bundle) -> list[Path]:
    """How a bundle was calibrated, without what was recorded."""
    recorded = bundle.folder / RECORDINGS
    files = (path for path in (bundle.folder / "calibration").rglob("*") if path.is_file())
    return [path for path in files if not path.is_relative_to(recorded) and not TEMPORARY.fullmatch(path.name)]


def _write(bundle: Bundle, names: list[str], file: IO[bytes]) -> int:
    """Write the files; returns the bytes of those that became links to an equal one."""
    linked, stored, root = 0, {}, _root(bundle)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in tqdm(names, "packing", unit="file", leave=False, disable=None):
            path = bundle.folder / name
            entry = tarfile.TarInfo(f"{root}/{name}")
            entry.size, entry.mode = path.stat().st_size, 0o644
            digest = sha256(path)
            if entry.size and digest in stored:
                entry.type, entry.linkname = tarfile.LNKTYPE, stored[digest]
                linked, entry.size = linked + entry.size, 0
                tar.addfile(entry, io.BytesIO())
                continue
            stored[digest] = entry.name
            with path.open("rb") as content:
                tar.addfile(entry, content)
    return linked


def _root(bundle: Bundle) -> str:
    """The name of the archive's folder: that of the bundle's, also where it was given as ``.`` or ``..``."""
    named = bundle.folder.absolute()
    return (named.resolve() if named.name == ".." else named).name or bundle.name
