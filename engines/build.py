"""Building one stage for a target: in a thread that can be cancelled, checked, and put in place whole or not at all."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from bitdance_edge.engines.check import BuildCheck, tolerance
from bitdance_edge.engines.plan import PlannedStage
from bitdance_edge.engines.progress import BuildWatch
from bitdance_edge.engines.targets.interface import Built, Job, Target
from bitdance_edge.runtime.bundle.files import cannot_write, staged_folder, written_whole
from bitdance_edge.runtime.bundle.record import BuildRecord, BuiltFile, record_path, source_hashes, target_folder
from bitdance_edge.runtime.errors import BuildError

POLL_SECONDS = 0.1  # between two looks at the build, and the longest wait before Ctrl-C is heard

Watcher = Callable[[BuildWatch], None]


def build_stage(
    planned: PlannedStage, target: Target, check: BuildCheck, cancel: threading.Event, watcher: Watcher
) -> BuildRecord:
    """Build one stage, check it, and put it with its record into ``targets/<target>/`` of the bundle.

    Args:
        check: of the bundle, the same for all its stages.
        watcher: is called every tenth of a second meanwhile.

    Raises:
        BundleError: the graph is not the one in the manifest.
        BuildFailure: the library refuses the stage, or what it built differs from the bundle's own.
        BuildError: another build of the same stage and target was put in place at the same moment.
        StorageError: the folder cannot be written.
        Cancelled: ``cancel`` was set. KeyboardInterrupt passes through after the library has stopped.
    """
    job, watch = planned.job, BuildWatch(cancel)
    job.bundle.verified(job.stage)
    folder = target_folder(job.bundle, target.name)
    try:
        with staged_folder(folder / job.stage) as staged:
            record = _in_thread(lambda: _build_and_check(job, target, check, staged, watch), watch, watcher)
            watch.require_wanted(job.stage)
            return _put_in_place(record, staged, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        _remove_empty(folder)


def _build_and_check(job: Job, target: Target, check: BuildCheck, staged: Path, watch: BuildWatch) -> BuildRecord:
    built = target.build(job, staged, watch)
    record = _record(job, target, built, watch.seconds)
    _write(record, staged)
    with watch.phase_of("checking"):
        return replace(record, error=check.error(target, job, record, staged))


def _in_thread(work: Callable[[], BuildRecord], watch: BuildWatch, watcher: Watcher) -> BuildRecord:
    """Run the build in a thread of its own; this one receives Ctrl-C, and raises it when the build has stopped."""
    with ThreadPoolExecutor(1) as pool:
        future: Future[BuildRecord] = pool.submit(work)
        try:
            while not wait([future], POLL_SECONDS).done:
                watcher(watch)
        except BaseException:
            watch.cancel.set()
            raise  # leaving the pool waits for the library, which stops at its next step
        return future.result()


def _record(job: Job, target: Target, built: Built, seconds: float) -> BuildRecord:
    return BuildRecord(
        stage=job.stage,
        target=target.name,
        library=target.library,
        library_version=target.library_version,
        devices=built.devices,
        built_on=built.built_on,
        sources=source_hashes(job.bundle, job.stage),
        files=tuple(BuiltFile.of(path) for path in built.files),
        precision=job.facts.label,
        max_images=job.max_images,
        profiles=job.ranges,
        layers=built.layers,
        options=job.options,
        error=None,
        tolerance=tolerance(job),
        seconds=round(seconds, 2),
    )


def _put_in_place(record: BuildRecord, staged: Path, folder: Path) -> BuildRecord:
    """Move the files, then write the record: files without a record are never used."""
    path = record_path(folder, record.stage)
    path.unlink(missing_ok=True)
    try:
        for file in record.files:
            (staged / file.name).replace(folder / file.name)
        # Described again in their place: renaming a file changes what the file system says of it.
        placed = replace(record, files=tuple(BuiltFile.of(folder / file.name) for file in record.files))
        _write(placed, folder)
    except BaseException:
        for file in record.files:
            (folder / file.name).unlink(missing_ok=True)
        raise
    # Of two processes that build the same, the one that writes its record last sees the files of the other.
    if damage := placed.damage(folder):
        path.unlink(missing_ok=True)
        raise BuildError(
            f"another process built {record.stage} for {record.target} at the same time ({damage}); when it has "
            "ended, run the same command again"
        )
    return placed


def _write(record: BuildRecord, folder: Path) -> None:
    with written_whole(record_path(folder, record.stage)) as file:
        file.write(record.to_json().encode())


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # a folder that holds other builds stays
        folder.rmdir()
        folder.parent.rmdir()
