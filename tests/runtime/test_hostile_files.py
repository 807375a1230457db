"""Files beside the manifest that somebody else may have written: tokenizer, preview map, packed archive."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bitdance_edge.runtime import Bundle, BundleError, StorageError
from bitdance_edge.runtime.bundle.manifest import file_spec
from bitdance_edge.runtime.bundle.pack import pack_bundle
from bitdance_edge.runtime.preview import PreviewMap
from bitdance_edge.runtime.prompt import PromptEncoder

pytestmark = pytest.mark.usefixtures("cheap")
TOKENIZERS = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"model": 3}',
    b"[" * 100_000,
    b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": "[UNK]"}}',
    b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
    b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 99999999999999999999}, "unk_token": "a"}}',
)


@pytest.mark.parametrize("content", TOKENIZERS, ids=range(len(TOKENIZERS)))
def test_a_tokenizer_that_is_none(exported: Callable[..., Bundle], tmp_path: Path, content: bytes) -> None:
    bundle = exported("t2i_16x_swiglu")
    assert bundle.text is not None
    path = tmp_path / bundle.text.tokenizer.path
    path.write_bytes(content)
    spoilt = replace(bundle, folder=tmp_path, text=replace(bundle.text, tokenizer=file_spec(tmp_path, path)))
    with pytest.raises(BundleError, match=r"tokenizer\.json .*export") as refused:
        PromptEncoder.open(spoilt)
    assert "\n" not in str(refused.value)


def npy(header: str) -> bytes:
    padded = header + " " * (64 - (len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f2', 'fortran_order': False, 'shape': (4611686018427387904, 48)}"),
        npy("{'descr': '<f2', 'fortran_order': False, 'shape': (145, 48)}"),  # and no values
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (145, 48)}"),
        npy("{'descr': '<c16', 'fortran_order': False, 'shape': (145, 48)}") + bytes(145 * 48 * 16),
        npy("{'descr': '<f2', 'fortran_order': False, 'shape': (145, 48)}") + b"\xff" * (145 * 48 * 2),  # NaN
        npy("[" * 5000),
        b"PK\x05\x06" + bytes(18),  # an archive of arrays, empty
        b"",
    ],
    ids=range(8),
)
def test_a_preview_map_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fast_preview.npy"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"fast_preview\.npy"):
        PreviewMap.load(path, 16, 4)


@pytest.fixture
def archive(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITDANCE_EDGE_CACHE", str(tmp_path / "cache"))
    pack_bundle(bundle, tmp_path / "bundle.tar", [], engines_only=False)
    return tmp_path / "bundle.tar"


def added(archive: Path, **fields: object) -> Path:
    """The archive with one more entry."""
    with tarfile.open(archive, "a") as tar:
        entry = tarfile.TarInfo(f"{Path(tar.getnames()[0]).parts[0]}/more")
        for name, value in fields.items():
            setattr(entry, name, value)
        tar.addfile(entry, io.BytesIO(b"more") if entry.size else None)
    return archive


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../more", "size": 4},
        {"name": "/etc/more", "size": 4},
        {"name": "another/more", "size": 4},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.SYMTYPE, "linkname": "bundle.json"},
        {"type": tarfile.LNKTYPE, "linkname": "../../victim"},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
        {
            "pax_headers": {
                "GNU.sparse.major": "0",
                "GNU.sparse.minor": "1",
                "GNU.sparse.map": "0,0",
                "GNU.sparse.size": "4",
            }
        },
        {"type": tarfile.LNKTYPE, "linkname": "bundle/more"},  # itself, which is not there yet
        {"pax_headers": {"comment": "x" * 10_000}},
    ],
    ids=range(11),
)
def test_an_archive_with_something_that_pack_does_not_write(archive: Path, tmp_path: Path, fields: dict) -> None:
    with pytest.raises(BundleError, match=r"bundle\.tar is not a packed bundle"):
        Bundle.open(added(archive, **fields))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_an_archive_has_bounds(archive: Path, kind: bytes) -> None:
    header, content = tarfile.TarInfo("long"), archive.read_bytes()
    header.type, header.size = kind, 2**31
    archive.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + content)
    os.truncate(archive, 2**32)
    with pytest.raises(BundleError, match=r"bundle\.tar is not a packed bundle .*2,147,483,648 bytes"):
        Bundle.open(archive)
    header.size = 12
    archive.write_bytes((header.tobuf(tarfile.GNU_FORMAT) + b"12 path=abc\n".ljust(512, b"\0")) * 2000 + content)
    with pytest.raises(BundleError, match=r"bundle\.tar is not a packed bundle"):
        Bundle.open(archive)


@pytest.mark.parametrize("time", ["1e300", "nan", "-inf", "x"])
def test_the_time_of_a_member_does_not_matter(archive: Path, bundle: Bundle, time: str) -> None:
    assert Bundle.open(added(archive, size=4, pax_headers={"mtime": time})).digest == bundle.digest


def test_an_archive_has_a_largest_number_of_files(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(archive) as tar:
        monkeypatch.setattr("bitdance_edge.runtime.bundle.unpack.MOST_FILES", len(tar.getnames()))
    with pytest.raises(BundleError, match="is not a packed bundle"):
        Bundle.open(added(archive, size=4))


def test_packed_bundles_need_a_folder(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITDANCE_EDGE_CACHE", "XDG_CACHE_HOME", "HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user that the machine does not know
    with pytest.raises(StorageError, match="set BITDANCE_EDGE_CACHE"):
        Bundle.open(archive)


def test_archives_that_are_none(archive: Path, bundle: Bundle, tmp_path: Path) -> None:
    content = archive.read_bytes()
    for spoilt in (b"", b"x" * 1000, content[:1000], content[: len(content) // 2], bytes(10_000)):
        archive.write_bytes(spoilt)
        with pytest.raises((BundleError, StorageError), match=r"bundle\.tar"):
            Bundle.open(archive)
    assert not list((tmp_path / "cache").glob("*")) or not any((tmp_path / "cache").iterdir())
    archive.write_bytes(content)
    assert Bundle.open(archive).digest == bundle.digest
    shutil.rmtree(tmp_path / "cache")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BundleError, match="no bundle at"):
        Bundle.open(tmp_path / "fifo")
