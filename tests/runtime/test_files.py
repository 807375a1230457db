"""Files and folders are written whole or not at all, and an error says what helps."""

import errno
import os
from pathlib import Path

import pytest

from bitdance_edge.runtime import StorageError, written_whole
from bitdance_edge.runtime.bundle.files import put_in_place, staged_folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file.bin"
    with written_whole(path) as file:
        file.write(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert names(path.parent) == {"file.bin"}


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_not_replaced(tmp_path: Path, linked: bool) -> None:
    pipe, path = tmp_path / "pipe", tmp_path / ("link" if linked else "pipe")
    os.mkfifo(pipe)
    if linked:
        path.symlink_to(pipe)
    with pytest.raises(StorageError, match="is a pipe, device or socket; give the name of a file"), written_whole(path):
        pass
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "No space left on device; free some space on that disk, or choose another folder"),
        (errno.EACCES, "Permission denied; get permission to write there, or choose another folder"),
        (errno.EROFS, "Read-only file system; the file system is mounted read-only: choose another folder"),
        (errno.EIO, "Input/output error; choose another folder"),
    ],
)
def test_an_error_of_storage_says_what_helps(tmp_path: Path, code: int, message: str) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"before")
    with pytest.raises(StorageError) as refused, written_whole(path):
        raise OSError(code, os.strerror(code))
    assert str(refused.value) == f"cannot write {path}: {message}"
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == {"file.bin"}


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="choose another folder"), written_whole(tmp_path / "file" / "x.png"):
        pass
    assert names(tmp_path) == {"file"}


def test_errors_of_other_files_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), written_whole(tmp_path / "copy"):
        (tmp_path / "missing").read_bytes()
    assert not names(tmp_path)


def test_a_staged_folder_that_is_not_put_in_place_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt), staged_folder(folder) as staged:
        (staged / "half").write_bytes(b"")
        raise KeyboardInterrupt
    assert not names(tmp_path)
    for content in ("first", "second"):
        with staged_folder(folder) as staged:
            (staged / content).write_bytes(b"")
            put_in_place(staged, folder, replace=True)
        assert names(folder) == {content}
    assert names(tmp_path) == {"folder"}
