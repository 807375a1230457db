"""A job: what is left of it, made by an engine, with one progress bar and a manifest at the end."""

import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bitdance_edge.runtime.bundle.files import cannot_write, claimed_output
from bitdance_edge.runtime.bundle.specs import MANIFEST as BUNDLE
from bitdance_edge.runtime.errors import StorageError
from bitdance_edge.runtime.values import counted, quoted
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.events import Added, Engine, Said
from bitdance_edge.scale.plan import Plan
from bitdance_edge.scale.plan_file import NAME, job_plan, write_plan
from bitdance_edge.scale.records import MANIFEST, Problem, Record, check, leftovers, makers, write_manifest

MOST_SAID = 10  # shards that are made again, each with its reason
RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run did: shards and images that it made, those that were made before, and the job's manifest, if any."""

    made: int
    kept: int
    images: int
    manifest: Path | None


def parse_shards(text: str, plan: Plan) -> range:
    """Read ``0-99`` or ``7``, both ends included.

    Raises:
        ScaleError: it is no such range, or not of this plan.
    """
    found = RANGE.fullmatch(text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
    if not 0 <= first <= last < plan.shards:
        raise ScaleError(f"--shards is {text[:40]!r}; the job has shards 0 to {plan.shards - 1}: write FIRST-LAST")
    return range(first, last + 1)


def run_job(plan: Plan, folder: Path, shards: range, engine: Engine, say: Say = lambda line: None) -> Outcome:
    """Make the shards that are not made yet; once all of the plan are, write the manifest.

    Raises:
        ScaleError: the folder is another job's, or a shard cannot be made.
        StorageError, OutputBusyError: the folder cannot be written, or another process makes the same shards.
        KeyboardInterrupt: it was interrupted; the message says what is made.
    """
    prepare(plan, folder)
    with claimed_output(folder / f"shards {shards.start}-{shards.stop - 1}", lock_in=folder):
        states = [check(plan, folder, shard) for shard in shards]
        left = [state for state in states if isinstance(state, Problem)]
        kept = [state for state in states if isinstance(state, Record)]
        _say_again([problem for problem in left if problem.reason], say)
        job = f"{counted(plan.shards, 'shard')} of {counted(plan.images, 'image')}"
        say(f"{job}; {len(kept)} of {len(shards)} are made already")
        made = _made(plan, folder, left, kept, engine, say) if left else []
        return Outcome(
            made=len(made),
            kept=len(kept),
            images=sum(record.images for record in made),
            manifest=_manifest(plan, folder, say),
        )


def prepare(plan: Plan, folder: Path) -> None:
    """Make the folder of a job and write its plan, or find that it is there already.

    Raises:
        ScaleError: the folder is another job's or a bundle, or holds shards and no plan.
        StorageError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if (folder / BUNDLE).is_file():
        raise ScaleError(f"{folder} is a bundle; choose another --out")
    found = job_plan(folder)
    if found is None:
        if names := list(leftovers(folder)):
            raise ScaleError(
                f"{folder} holds {names[0]} and no {NAME}, so it may be another job's; choose another --out, or put "
                f"that job's {NAME} back"
            )
        try:
            write_plan(plan, folder)
        except StorageError:  # another command, begun at the same moment, may have written its own
            found = job_plan(folder)
            if found is None:
                raise
    if found is not None and found.job != plan.job:
        raise ScaleError(
            f"{folder} is another job's, with {'; '.join(plan.differences(found))}. Choose another --out, or go on "
            f"with that job: bitdance-edge bulk {quoted(folder / NAME)} --out {quoted(folder)}"
        )


def _made(
    plan: Plan, folder: Path, left: Sequence[Problem], kept: Sequence[Record], engine: Engine, say: Say
) -> list[Record]:
    """Make the shards that are left, with one progress bar over all images."""
    records: list[Record] = []
    before = sum(record.images for record in kept)
    total = before + sum(len(plan.images_of(problem.shard)) for problem in left)
    try:
        with (
            tqdm(total=total, initial=before, unit="image", leave=False, disable=None) as progress,
            closing(engine([problem.shard for problem in left])) as events,
        ):
            for event in events:
                if isinstance(event, Added):
                    progress.update(event.images)
                elif isinstance(event, Said):
                    say(event.line)
                else:
                    _require_here(plan, folder, event)
                    records.append(event)
    except KeyboardInterrupt as interrupt:
        # A cluster's workers may have made more than they have said.
        made = sum(isinstance(check(plan, folder, problem.shard), Record) for problem in left)
        done = f"{len(kept) + made} of {len(kept) + len(left)} shards are made; the same command goes on"
        raise KeyboardInterrupt(f"{interrupt}; {done}" if str(interrupt) else done) from None
    return records


def _require_here(plan: Plan, folder: Path, record: Record) -> None:
    """Refuse a worker that writes elsewhere, before it makes the rest."""
    if isinstance(found := check(plan, folder, record.shard), Problem):
        why = found.reason or f"{plan.file(record.shard)} is not in it"
        raise ScaleError(
            f"a worker says that it made shard {record.shard}, but in {folder} {why}; all workers must "
            "write one shared folder"
        )


def _manifest(plan: Plan, folder: Path, say: Say) -> Path | None:
    """Write the manifest where all shards of the plan are made."""
    records = []
    for shard in range(plan.shards):
        if isinstance(found := check(plan, folder, shard), Problem):
            return None
        records.append(found)
    if len(found := makers(records)) > 1:
        say(f"the shards were made in {len(found)} ways, whose images may differ in single bits: see {MANIFEST}")
    return write_manifest(plan, folder, records)


def _say_again(problems: Sequence[Problem], say: Say) -> None:
    """Say why shards are made again."""
    for problem in problems[:MOST_SAID]:
        say(f"{problem.reason}; shard {problem.shard} is made again")
    if len(problems) > MOST_SAID:
        say(f"{len(problems) - MOST_SAID} more shards are made again")
