"""The pages are what the code is: links lead somewhere, commands parse, extras and versions exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from notes import notes
from pages import LANGUAGES, ROOT, Block, anchors, blocks, links, pages, shown_lines, undefined_and_unused

from bitdance_edge import __version__
from bitdance_edge.cli import COMMANDS, command_parser

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCE = PROJECT["urls"]["Source"]
RAW = SOURCE.replace("github.com", "raw.githubusercontent.com")
NAMES = [page.relative_to(ROOT).as_posix() for page in pages()]
PUBLISHED = [ROOT / "pyproject.toml", *(ROOT / "integrations").rglob("pyproject.toml")]
WRITTEN_URL = re.compile(r"https://[\w./%#@:+-]*[\w/]")


def own_file(link: str) -> str | None:
    """The path that a link to this repository leads to; None for other links, and for pages that the host makes."""
    if not link.startswith((f"{SOURCE}/", f"{RAW}/")):
        return None
    if link.split("#")[0] in (f"{SOURCE}/issues", f"{SOURCE}/releases"):
        return None
    found = re.fullmatch(rf"(?:{re.escape(SOURCE)}/(blob|tree)|{re.escape(RAW)})/main/([^#]+)(?:#.*)?", link)
    assert found, f"{link}: link to {SOURCE}/blob/main/FILE, {SOURCE}/tree/main/FOLDER or {RAW}/main/PICTURE"
    assert (ROOT / found[2]).is_dir() == (found[1] == "tree"), f"{link}: a folder is behind tree/, a file behind blob/"
    return found[2]


@pytest.mark.parametrize("name", NAMES)
def test_links_and_anchors_lead_somewhere(name: str) -> None:
    page, broken = ROOT / name, []
    for link in links(page):
        own = own_file(link)
        if "://" in link and own is None:
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / own if own else page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken
    assert undefined_and_unused(page) == (set(), set())


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere_where_the_page_is_published(name: str) -> None:
    """An index shows a README without the repository, and the documentation is built of docs/ alone."""
    page = ROOT / name
    paths = {link.partition("#")[0] for link in links(page) if "://" not in link} - {""}
    if page in [project.parent / "README.md" for project in PUBLISHED]:
        elsewhere = paths
    elif page.is_relative_to(ROOT / "docs"):
        elsewhere = {path for path in paths if not (page.parent / path).resolve().is_relative_to(ROOT / "docs")}
    else:
        elsewhere = set()
    assert not elsewhere, f"write {SOURCE}/blob/main/..."


def test_addresses_of_this_repository_lead_somewhere() -> None:
    """Wherever they are written: pages, settings, and what programs write."""
    written = [ROOT / name for name in NAMES] + PUBLISHED
    written += [path for room in ("bitdance_edge", "serve", "integrations") for path in (ROOT / room).rglob("*.py")]
    for path in written:
        for link in WRITTEN_URL.findall(path.read_text(encoding="utf-8")):
            own = own_file(link)
            assert own is None or (ROOT / own).exists(), f"{path}: {link}"


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    tracked = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"build", "bundles", "demo", "dist", "runs"}
    named = re.findall(
        r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:py|md|ipynb|cpp|txt))?)`", (ROOT / name).read_text(encoding="utf-8")
    )
    assert not [path for path in named if path.split("/")[0] in tracked and not (ROOT / path).exists()]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_say_what_they_are_and_their_commands_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(ROOT / name):
        assert block.language in LANGUAGES, f"{name}: a block does not say whether it is run:\n{block.code}"
        if block.language in ("bash", "console"):
            check_commands(block)
    capsys.readouterr()


def check_commands(block: Block) -> None:
    for line in block.commands():
        words = shlex.split(line, comments=True)
        if block.language == "console" and words[:1] == ["bitdance-edge"] and words[1] in COMMANDS:
            try:
                command_parser([words[1]]).parse_args(words[1:])
            except SystemExit:
                pytest.fail(f"{block.page}: {line}")
        assert "pip install 'bitdance-edge" not in line, f"no index has the package: install from the clone: {line}"
        for extras in re.findall(r"pip install '\.\[([\w,]+)\]'", line):
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys(), line


def test_extras_in_messages_exist() -> None:
    sources = [
        path for room in ("bitdance_edge", "runtime", "engines", "bench") for path in (ROOT / room).rglob("*.py")
    ]
    named = {
        e for p in sources for g in re.findall(r"bitdance-edge\[([\w,]+)\]", p.read_text("utf-8")) for e in g.split(",")
    }
    named |= {extra for command in COMMANDS.values() for extra in command.extras.split(",")}
    assert named <= PROJECT["optional-dependencies"].keys()


def test_every_extra_of_users_is_on_the_first_page() -> None:
    page = (ROOT / "docs" / "get-started.md").read_text(encoding="utf-8")
    of_others = {"plots", "docs", "notebook", "dev"}  # part of others, or for those who change the project
    assert not [e for e in PROJECT["optional-dependencies"].keys() - of_others if f"`{e}`" not in page]


def test_every_command_is_in_the_table_of_commands() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in COMMANDS)


def test_one_version() -> None:
    comfyui = tomllib.loads((ROOT / "integrations" / "comfyui" / "pyproject.toml").read_text(encoding="utf-8"))
    assert comfyui["project"]["version"] == __version__
    assert comfyui["project"]["dependencies"] == [f"bitdance-edge[cpu,text]=={__version__}"]
    wheels = {v for name in NAMES for v in re.findall(r"bitdance_edge-([\d.]+)-py3", (ROOT / name).read_text("utf-8"))}
    assert wheels == {__version__}
    assert notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), __version__)


def test_the_readme_is_one_page() -> None:
    assert shown_lines(ROOT / "README.md") < 90


def test_every_package_of_the_checkout_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    rooms = {name: Path(folder) for name, folder in settings["package-dir"].items()}
    found = {
        ".".join((name, *path.parent.relative_to(ROOT / folder).parts))
        for name, folder in rooms.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(settings["packages"])
