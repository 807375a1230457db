"""A job comes out the same however it is stopped, damaged or shared out; what is not its own is refused."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import psutil
import pytest
from bulking import IMAGES, SHARDS, InThisProcess, copied, digests, made, small_plan
from commanding import status_of

from bitdance_edge.errors import OutputBusyError
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.files import claimed_output
from bitdance_edge.scale.bulk import prepare, run_job
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.events import Added, Event
from bitdance_edge.scale.local import LocalEngine
from bitdance_edge.scale.plan import Plan, make_plan
from bitdance_edge.scale.plan_file import write_plan
from bitdance_edge.scale.records import sidecar

ALL = range(SHARDS)


def resumed(plan: Plan, folder: Path) -> tuple[list[int], list[str]]:
    """Go on with a job in this process; returns the shards that were made and what was said."""
    shards: list[int] = []
    said: list[str] = []

    def engine(left: Sequence[int]) -> Generator[Event, None, None]:
        shards.extend(left)
        yield from InThisProcess(folder)(left)

    run_job(plan, folder, ALL, engine, said.append)
    return shards, said


def workers() -> list[psutil.Process]:
    """The worker processes of this one that are alive."""
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "spawn_main" in str(child.cmdline())]


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bitdance_edge", "bulk", *map(str, arguments), "--threads", "1"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def partial(job: Plan, whole: Path, tmp_path: Path) -> Path:
    """The job, interrupted after four shards."""
    return copied(job, whole, tmp_path / "partial", range(4))


def test_two_worker_processes_write_the_bytes_of_one(job: Plan, whole: Path, tmp_path: Path) -> None:
    engine = LocalEngine(folder=tmp_path, devices=("cpu", "cpu"), threads=1)
    outcome = run_job(job, tmp_path, ALL, engine)
    assert (outcome.made, outcome.kept, outcome.images) == (SHARDS, 0, SHARDS * IMAGES)
    assert digests(job, tmp_path) == digests(job, whole)
    assert (tmp_path / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()


def test_a_job_goes_on_where_it_stopped(job: Plan, whole: Path, partial: Path) -> None:
    assert resumed(job, partial) == (list(range(4, SHARDS)), ["12 shards of 96 images; 4 of 12 are made already"])
    assert digests(job, partial) == digests(job, whole)


def test_a_finished_job_opens_no_bundle(whole: Path, job: Plan) -> None:
    outcome = run_job(job, whole, ALL, LocalEngine(folder=whole, bundle="/nowhere"))
    assert (outcome.made, outcome.kept) == (0, SHARDS)


def test_a_killed_worker_is_started_again(job: Plan, whole: Path, partial: Path) -> None:
    killed: set[int] = set()

    def engine(left: Sequence[int]) -> Generator[Event, None, None]:
        for event in LocalEngine(folder=partial, devices=("cpu",), threads=1)(left):
            yield event
            for worker in workers() if len(killed) < 2 and isinstance(event, Added) else ():
                worker.kill()
                killed.add(worker.pid)

    said: list[str] = []
    run_job(job, partial, ALL, engine, said.append)
    assert digests(job, partial) == digests(job, whole)
    assert sum("it is started again" in line for line in said) == 2


def test_a_worker_that_dies_again_and_again_ends_the_job(job: Plan, partial: Path) -> None:
    def engine(left: Sequence[int]) -> Generator[Event, None, None]:
        for event in LocalEngine(folder=partial, devices=("cpu",), threads=1)(left):
            for worker in workers():
                worker.kill()
            yield event

    with pytest.raises(ScaleError, match=r"died .* for the 3rd time"):
        run_job(job, partial, ALL, engine)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_command_goes_on(number: int, job: Plan, whole: Path, tmp_path: Path) -> None:
    write_plan(job, tmp_path)
    process = started(tmp_path / "plan.json", "--out", tmp_path)
    wait_for((tmp_path / "00002.json").exists, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    if number != signal.SIGKILL:
        assert process.returncode == 130 and "shards are made; the same command goes on" in error
        assert not list(tmp_path.glob(".writing-*"))
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert len(list(tmp_path.glob("*.tar"))) < SHARDS
    again = started(tmp_path / "plan.json", "--out", tmp_path)
    output, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert output.strip() == str(tmp_path / "manifest.json")
    assert digests(job, tmp_path) == digests(job, whole)
    assert not list(tmp_path.glob(".writing-*"))


def test_a_truncated_shard_is_made_again(job: Plan, whole: Path, partial: Path) -> None:
    os.truncate(partial / "00001.tar", 1000)
    shards, said = resumed(job, partial)
    assert shards[0] == 1 and len(shards) == SHARDS - 3
    assert "00001.tar has 1,000 bytes, not " in said[0] and said[0].endswith("shard 1 is made again")
    assert digests(job, partial) == digests(job, whole)


def test_the_sidecar_of_another_job_does_not_count(job: Plan, whole: Path, partial: Path, tmp_path: Path) -> None:
    other = make_plan(job.bundle, classes=[0], count=IMAGES * 3, shard_images=IMAGES, seed=99, settings={"steps": 1})
    made(other, tmp_path / "other")
    for name in ("00002.json", "00002.tar"):
        shutil.copy(tmp_path / "other" / name, partial / name)
    shards, said = resumed(job, partial)
    assert shards[0] == 2 and "00002.json is of another job" in said[0]
    assert digests(job, partial) == digests(job, whole)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"job": 3}'])
def test_a_sidecar_that_is_damaged_does_not_count(content: str, job: Plan, whole: Path, partial: Path) -> None:
    (partial / "00000.json").write_text(content)
    shards, said = resumed(job, partial)
    assert shards[0] == 0 and "00000.json" in said[0]
    assert digests(job, partial) == digests(job, whole)


def test_a_shard_without_its_sidecar_is_made_again(job: Plan, whole: Path, partial: Path) -> None:
    (partial / "00003.json").unlink()
    assert resumed(job, partial)[0] == list(range(3, SHARDS))
    assert digests(job, partial) == digests(job, whole)


def test_two_machines_share_a_job_by_ranges(job: Plan, whole: Path, tmp_path: Path) -> None:
    for folder, shards in ((tmp_path / "one", range(7)), (tmp_path / "two", range(7, SHARDS))):
        outcome = run_job(job, folder, shards, InThisProcess(folder))
        assert outcome.made == len(shards) and outcome.manifest is None
    for file in (tmp_path / "two").glob("000*"):
        shutil.move(file, tmp_path / "one")
    assert resumed(job, tmp_path / "one")[0] == []
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()


def test_the_folder_of_another_job_is_refused(job: Plan, bundle: Bundle, partial: Path) -> None:
    before = {file: file.read_bytes() for file in partial.iterdir()}
    other = small_plan(bundle.folder, seed=8, settings={"steps": 3})
    with pytest.raises(ScaleError, match=r"another job's, with steps .* instead of 3; seed 7 instead of 8"):
        run_job(other, partial, ALL, InThisProcess(partial))
    (partial / "plan.json").unlink()
    with pytest.raises(ScaleError, match=r"holds 00000\.json and no plan\.json"):
        run_job(job, partial, ALL, InThisProcess(partial))
    assert {file: file.read_bytes() for file in partial.iterdir()}.items() <= before.items()


def test_a_bundle_does_not_become_the_folder_of_a_job(job: Plan, bundle: Bundle) -> None:
    before = sorted(bundle.folder.iterdir())
    with pytest.raises(ScaleError, match="is a bundle; choose another --out"):
        run_job(job, bundle.folder, range(SHARDS), InThisProcess(bundle.folder))
    assert sorted(bundle.folder.iterdir()) == before


def test_of_two_jobs_that_begin_at_once_one_has_the_folder(
    job: Plan, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def before_the_other(folder: Path) -> None:
        monkeypatch.undo()
        write_plan(small_plan(bundle.folder, seed=8), folder)

    monkeypatch.setattr("bitdance_edge.scale.bulk.job_plan", before_the_other)
    folder = tmp_path / "two words"
    with pytest.raises(ScaleError, match="is another job's, with seed 8 instead of 7") as refused:
        prepare(job, folder)
    assert str(refused.value).endswith(f"bulk '{folder / 'plan.json'}' --out '{folder}'")


def test_the_same_shards_are_not_made_twice_at_once(job: Plan, partial: Path) -> None:
    with (
        claimed_output(partial / "shards 0-11", lock_in=partial),
        pytest.raises(OutputBusyError, match="another process is writing"),
    ):
        run_job(job, partial, ALL, InThisProcess(partial))


def test_a_worker_that_writes_elsewhere_is_noticed(job: Plan, partial: Path, tmp_path: Path) -> None:
    shutil.copytree(partial, tmp_path / "local")
    with pytest.raises(ScaleError, match="must write one shared folder"):
        run_job(job, partial, ALL, InThisProcess(tmp_path / "local"))


def test_a_bundle_that_cannot_be_opened_is_said_once(job: Plan, partial: Path) -> None:
    with pytest.raises(ScaleError, match="no bundle at /nowhere"):
        run_job(job, partial, ALL, LocalEngine(folder=partial, bundle="/nowhere", devices=("cpu", "cpu")))


def test_verify_names_what_is_missing_or_damaged(
    job: Plan, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    assert status_of("bulk", "verify", folder) == 0
    assert "whole: 12 shards of 96 images" in capsys.readouterr().out
    content = bytearray((folder / "00004.tar").read_bytes())
    content[700] ^= 1
    (folder / "00004.tar").write_bytes(content)
    sidecar(job, folder, 5).unlink()
    assert status_of("bulk", "verify", folder) == 1
    said = capsys.readouterr()
    assert "shard 4: " in said.out and "was altered" in said.out and "shard 5: is not made" in said.out
    assert "add --discard" in said.err and f"bulk {folder / 'plan.json'} --out {folder}" in said.err
    assert status_of("bulk", "verify", folder, "--shards", "6-11") == 0
    assert status_of("bulk", "verify", folder, "--discard") == 1
    assert resumed(job, folder)[0] == [4, 5]
    assert status_of("bulk", "verify", folder) == 0
    (folder / "manifest.json").unlink()
    assert status_of("bulk", "verify", folder) == 1
    assert "manifest.json is missing" in capsys.readouterr().out


def test_the_command_refuses_what_has_no_effect(
    bundle: Bundle, partial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = partial / "plan.json", tmp_path / "out"
    for arguments, said in [
        ((bundle.folder, "--classes", "0"), "give --out DIR"),
        ((bundle.folder, "--out", out), "give --classes or --prompts"),
        ((plan, "--out", out, "--seed", "1", "--format", "npz"), "omit --seed, --format"),
        ((bundle.folder, "--classes", "0", "--out", out, "--bundle", "x"), "omit --bundle"),
        ((bundle.folder, out, "--classes", "0", "--out", out), "are for: "),
        (("verify",), "give the folder of a job"),
        (("verify", tmp_path), "has no plan.json"),
        (("verify", partial, "--count", "3", "--out", out), "so --count, --out would change nothing"),
        ((plan, "--out", out, "--shards", "12"), "shards 0 to 11"),
        ((plan, "--out", out, "--engine", "slurm"), "it must be local or ray"),
        ((plan, "--out", out, "--workers", "3"), "are for --engine ray"),
        ((plan, "--out", out, "--engine", "ray", "--device", "cuda:1"), "one of auto, cpu, cuda"),
    ]:
        assert status_of("bulk", *arguments) == 1
        assert said in capsys.readouterr().err
    assert not out.exists()
