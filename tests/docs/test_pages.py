"""The pages are what the code is: links lead somewhere, commands parse, extras and versions exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from notes import notes
from pages import LANGUAGES, ROOT, Block, anchors, blocks, links, pages

from bitdance_edge import __version__
from bitdance_edge.cli import COMMANDS, command_parser

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCE = PROJECT["urls"]["Source"]
OWN = re.compile(rf"(?:{SOURCE}/blob|{SOURCE.replace('github.com', 'raw.githubusercontent.com')})/?/?main/(.+)")
NAMES = [page.relative_to(ROOT).as_posix() for page in pages()]


@pytest.mark.parametrize("name", NAMES)
def test_links_and_anchors_lead_somewhere(name: str) -> None:
    page, broken = ROOT / name, []
    for link in links(page):
        own = OWN.fullmatch(link)
        if "://" in link and own is None:
            continue
        path, _, anchor = (own[1] if own else link).partition("#")
        target = ROOT / path if own else page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


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
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 90


def test_every_package_of_the_checkout_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    rooms = {name: Path(folder) for name, folder in settings["package-dir"].items()}
    found = {
        ".".join((name, *path.parent.relative_to(ROOT / folder).parts))
        for name, folder in rooms.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert found == set(settings["packages"])
