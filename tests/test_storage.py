"""Temporary names and claims end with their process, and a folder that is replaced is never lost."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitdance_edge import storage
from bitdance_edge.errors import OutputBusyError
from bitdance_edge.runtime import Bundle, BundleError, StorageError, written_whole
from bitdance_edge.runtime.bundle.files import put_in_place, staged_folder
from bitdance_edge.storage import claimed, remove_abandoned, replace_folder, temporary

HOLD = """
import os, signal, sys
from pathlib import Path
from bitdance_edge.storage import claimed, temporary
folder = Path(sys.argv[1])
with claimed(folder / "out"), temporary(folder, Path.mkdir) as made, temporary(folder, Path.touch, ".tar") as file:
    (made / "half").write_text("half")
    print(made.name, file.name, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_makes_is_not(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        made = set(process.stdout.readline().split())
        remove_abandoned(tmp_path)
        held = names(tmp_path)
        assert made < held and len(held) == 3
        with pytest.raises(OutputBusyError, match=r"another process is writing .*out"), claimed(tmp_path / "out"):
            pass
        with claimed(tmp_path / "other"):
            assert names(tmp_path) > held
        process.communicate("die")
    assert process.returncode == -signal.SIGKILL
    assert names(tmp_path) == held
    (tmp_path / ".writing-notes").touch()  # of another program
    with written_whole(tmp_path / "next.bin") as file:
        file.write(b"next")
    assert names(tmp_path) == {".writing-notes", "next.bin"}


def test_a_claim_ends_with_its_block_and_is_of_one_thread(tmp_path: Path) -> None:
    with claimed(tmp_path / "out"), pytest.raises(OutputBusyError), claimed(tmp_path / "out"):
        pass
    with claimed(tmp_path / "out"):
        pass
    assert not names(tmp_path)


def test_names_are_no_patterns(tmp_path: Path) -> None:
    (tmp_path / ".aXb.writing-1").mkdir()
    for name in ("a*b", "[ab]", "?", "-o", " ", "ä" * 100):
        with claimed(tmp_path / name), staged_folder(tmp_path / name) as staged:
            put_in_place(staged, tmp_path / name, replace=False)
        assert (tmp_path / name).is_dir()
    assert (tmp_path / ".aXb.writing-1").is_dir()


def test_where_no_lock_can_say_age_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    young, old = tmp_path / f".writing-{'0' * 16}", tmp_path / f".writing-{'1' * 16}.tar"
    for path in (young, old):
        path.touch()
    days_ago = time.time() - 2 * storage.ABANDONED_AFTER
    os.utime(old, (days_ago, days_ago))
    monkeypatch.setattr(storage.fcntl, "flock", unsupported)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == {young.name}
    with claimed(tmp_path / "out"), temporary(tmp_path, Path.mkdir) as made:
        assert made.is_dir()
    assert names(tmp_path) == {young.name}


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_in_a_way_that_never_loses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(storage, "_rename_with", lambda *_: False)
    folder = tmp_path / "bundle"
    for content in ("first", "second"):
        with staged_folder(folder) as staged:
            (staged / content).touch()
            put_in_place(staged, folder, replace=content == "second")
        assert names(folder) == {content}
    with staged_folder(folder) as staged, pytest.raises(FileExistsError):
        put_in_place(staged, folder, replace=False)
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "never-made", folder)
    assert names(folder) == {"second"}
    assert names(tmp_path) == {"bundle"}


def test_a_process_killed_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    killed = """
import os, signal, sys
from pathlib import Path
from bitdance_edge import storage
storage._rename_with = lambda *_: False
rename = Path.rename
def dies(self, target):
    if self.name == "new":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = dies
storage.replace_folder(Path(sys.argv[1]) / "new", Path(sys.argv[1]) / "bundle")
"""
    for name in ("new", "bundle"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bundle.json").write_text(name)
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(BundleError, match=r"a process that replaced it was stopped, and what it was is .*replaced-"):
        Bundle.open(tmp_path / "bundle")
    with claimed(tmp_path / "another output"):
        pass
    assert names(tmp_path) == {"new", "bundle"}
    assert (tmp_path / "bundle" / "bundle.json").read_text() == "bundle"


def test_a_file_that_is_there_is_kept_where_it_is_not_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"before")
    with pytest.raises(StorageError, match="File exists"), written_whole(tmp_path / "a.tar", replace=False) as file:
        file.write(b"after")
    assert (tmp_path / "a.tar").read_bytes() == b"before"
    assert names(tmp_path) == {"a.tar"}


def test_links_with_a_temporary_name_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / f".writing-{'a' * 16}").symlink_to(tmp_path / "precious")
    remove_abandoned(tmp_path)
    assert names(tmp_path) == {"precious", f".writing-{'a' * 16}"}
