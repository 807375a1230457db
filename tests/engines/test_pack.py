"""A packed bundle opens elsewhere, with the same bytes every time."""

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bitdance_edge.cli import main
from bitdance_edge.runtime import BuildError, Bundle, BundleError, RequestError
from bitdance_edge.runtime.backends.engine_fit import engine_path, require_fit
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.pack import copy_shared_files, pack_bundle
from bitdance_edge.runtime.bundle.record import record_path, target_folder


def engine(bundle: Bundle, target: str = "rtx") -> Path:
    return engine_path(target_folder(bundle, target), "head")


def unpacked(archive: Path, folder: Path) -> Bundle:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (bundle,) = folder.iterdir()
    return Bundle.open(bundle)


def test_packed_whole(built_copy: Bundle, library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(built_copy.folder), "-o", str(tmp_path / "one.tar")]) == 0
    assert "unpack it with: tar -xf" in capsys.readouterr().out
    pack_bundle(built_copy, tmp_path / "two.tar", None, engines_only=False)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    opened = unpacked(tmp_path / "one.tar", tmp_path / "there")
    assert opened == Bundle.open(opened.folder)
    assert opened.digest == built_copy.digest
    opened.verified_file(opened.require_fast_previews())
    for stage in opened.stages:
        opened.verified(stage)
        require_fit(opened, target_folder(opened, "rtx"), stage, library.trt, "8.9")


def test_without_duplicate_weights(built_copy: Bundle, library: Library, tmp_path: Path) -> None:
    record_path(target_folder(built_copy, "rtx"), "encoder").unlink()
    packed = pack_bundle(built_copy, tmp_path / "engines.tar", None, engines_only=True)
    opened = unpacked(tmp_path / "engines.tar", tmp_path / "there")
    assert packed.omitted == sum(stage.bytes for name, stage in built_copy.stages.items() if name != "encoder")
    opened.verified("encoder")
    with pytest.raises(BundleError, match=r"head\.onnx is missing"):
        opened.verified("head")
    require_fit(opened, target_folder(opened, "rtx"), "head", library.trt, "8.9")


def test_without_engines(built_copy: Bundle, tmp_path: Path) -> None:
    pack_bundle(built_copy, tmp_path / "onnx.tar", [], engines_only=False)
    opened = unpacked(tmp_path / "onnx.tar", tmp_path / "there")
    assert not (opened.folder / "targets").exists()
    with pytest.raises(BuildError, match="has no engines to stand for its ONNX files"):
        pack_bundle(opened, tmp_path / "engines.tar", None, engines_only=True)
    assert not (tmp_path / "engines.tar").exists()


def test_equal_files_are_stored_once(built_copy: Bundle, tmp_path: Path) -> None:
    twin = built_copy.folder / "targets" / "rtx-8.9"
    (built_copy.folder / "targets" / "rtx").rename(twin)
    for name in ("head.engine", "head.json"):
        other = built_copy.folder / "targets" / "rtx" / name
        other.parent.mkdir(exist_ok=True)
        other.write_bytes((twin / name).read_bytes())
    packed = pack_bundle(built_copy, tmp_path / "twins.tar", None, engines_only=False)
    assert packed.linked == sum((twin / name).stat().st_size for name in ("head.engine", "head.json"))
    opened = unpacked(tmp_path / "twins.tar", tmp_path / "there")
    assert engine(opened).read_bytes() == engine(opened, "rtx:8.9").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda bundle: engine(bundle).write_bytes(b"short"), BuildError, "truncated or altered"),
        (lambda bundle: (bundle.folder / "onnx/fp16/head.onnx").unlink(), BundleError, "head.onnx is missing"),
    ],
)
def test_damaged_is_not_packed(
    built_copy: Bundle, tmp_path: Path, spoil: Callable[[Bundle], object], error: type[Exception], message: str
) -> None:
    spoil(built_copy)
    with pytest.raises(error, match=message):
        pack_bundle(built_copy, tmp_path / "bundle.tar", None, engines_only=False)
    assert not list(tmp_path.glob("*.tar"))


def edit(bundle: Bundle, change: Callable[[dict], object]) -> None:
    path = bundle.folder / "bundle.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("where", ["calibration/notes.txt", "calibration", "targets/rtx/head.json"])
def test_links_out_of_the_bundle_are_not_followed(built_copy: Bundle, tmp_path: Path, where: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "notes.txt").write_text("secret", encoding="utf-8")
    link = built_copy.folder / where
    link.parent.mkdir(exist_ok=True)
    if link.is_file():
        shutil.move(link, secret / "notes.txt")
    link.symlink_to(secret if link.name == "calibration" else secret / "notes.txt")
    with pytest.raises(
        BundleError, match=r"is a link out of the bundle, to .*secret; put a copy|notes\.txt; put a copy"
    ):
        pack_bundle(built_copy, tmp_path / "bundle.tar", None, engines_only=False)
    assert not (tmp_path / "bundle.tar").exists()


def test_files_of_links_inside_the_bundle_are_packed(built_copy: Bundle, tmp_path: Path) -> None:
    (built_copy.folder / "calibration").mkdir()
    (built_copy.folder / "calibration" / "report.md").symlink_to(built_copy.folder / "bundle.json")
    pack_bundle(built_copy, tmp_path / "bundle.tar", [], engines_only=False)
    opened = unpacked(tmp_path / "bundle.tar", tmp_path / "there")
    assert (opened.folder / "calibration" / "report.md").read_bytes() == (opened.folder / "bundle.json").read_bytes()


@pytest.mark.parametrize("name", ["../victim", "/etc/passwd", "bundle.json", "onnx/fp16/../../../victim", "", "victim"])
def test_links_that_are_no_files_of_stages_are_refused(built_copy: Bundle, tmp_path: Path, name: str) -> None:
    victim, twin = built_copy.folder.parent / "victim", tmp_path / "twin"
    twin.write_text("precious", encoding="utf-8")
    twin.chmod(0o640)
    victim.hardlink_to(twin)
    edit(built_copy, lambda manifest: manifest.update(links={name: "elsewhere"}))
    for arguments in (["--in-place"], ["-o", str(tmp_path / "bundle.tar")]):
        assert main(["pack", str(built_copy.folder), *arguments]) == 1
    assert victim.stat().st_nlink == 2
    assert victim.stat().st_mode & 0o777 == 0o640


def test_a_folder_that_is_a_link_is_not_rewritten(linked_bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(linked_bundle.folder, tmp_path / "bundle", copy_function=os.link))
    shutil.move(folder / "onnx", tmp_path / "elsewhere")
    (folder / "onnx").symlink_to(tmp_path / "elsewhere")
    before = {path: path.stat().st_ino for path in (tmp_path / "elsewhere").rglob("*")}
    with pytest.raises(BundleError, match="is a link out of the bundle"):
        copy_shared_files(Bundle.open(folder))
    assert {path: path.stat().st_ino for path in (tmp_path / "elsewhere").rglob("*")} == before


@pytest.mark.parametrize("given", [".", "..", "bundle/../bundle"])
def test_the_archive_has_one_folder_of_the_bundles_name(
    built_copy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir({".": built_copy.folder, "..": built_copy.folder / "onnx"}.get(given, built_copy.folder.parent))
    folder = Path(given.replace("bundle", built_copy.folder.name))
    pack_bundle(Bundle.open(folder), tmp_path / "bundle.tar", [], engines_only=False)
    with tarfile.open(tmp_path / "bundle.tar") as tar:
        assert {name.split("/")[0] for name in tar.getnames()} == {built_copy.folder.name}


def test_wrong_places(built_copy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BundleError, match="is inside the bundle"):
        pack_bundle(built_copy, built_copy.folder / "bundle.tar", None, engines_only=False)
    (tmp_path / "link").symlink_to(built_copy.folder / "onnx")
    with pytest.raises(BundleError, match="is inside the bundle"):
        pack_bundle(built_copy, tmp_path / "link" / "bundle.tar", None, engines_only=False)
    (tmp_path / "there.tar").touch()
    with pytest.raises(RequestError, match=r"there\.tar exists; write to another file, or replace it with --force"):
        pack_bundle(built_copy, tmp_path / "there.tar", None, engines_only=False)
    with pytest.raises(BuildError, match=r"nothing was built for rtx-7\.5 .* there are: rtx"):
        pack_bundle(built_copy, tmp_path / "bundle.tar", ["rtx:7.5"], engines_only=False)
    assert main(["pack", str(built_copy.folder), "-o", str(tmp_path / "bundle.zip")]) == 1
    assert "does not end in .tar" in capsys.readouterr().err
