"""The table of rooms in docs/architecture.md is what the code does: nothing imports a room that its row omits."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The modules of the package itself that every room may import.
SHARED = ("bitdance_edge.errors", "bitdance_edge.imports", "bitdance_edge.interrupts", "bitdance_edge.storage")
ROW = re.compile(r"^\| `([\w/]+)/` \|[^|\n]*\|([^|\n]*)\|$", re.MULTILINE)


def allowed() -> dict[str, set[str]]:
    """Room -> rooms that it may import, as docs/architecture.md says."""
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return {room: set(re.findall(r"`([\w/]+)/`", names)) for room, names in ROW.findall(table)}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


ROOMS = {room: names for room, names in allowed().items() if room not in ("checkpoints", "examples", "tests")}


def room_of(path: str) -> str | None:
    """The longest room that a path with slashes is in."""
    return max((room for room in ROOMS if f"{path}/".startswith(f"{room}/")), key=len, default=None)


def test_the_table_names_every_room() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"integrations"}
    assert packages == {room for room in ROOMS if "/" not in room}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_what_its_row_names(room: str) -> None:
    files = [path for path in (ROOT / room).rglob("*.py") if room_of(path.relative_to(ROOT).as_posix()) == room]
    may = ROOMS[room] | {room}
    wrong = []
    for path in files:
        for module in imported(path):
            inside = module.removeprefix("bitdance_edge.").replace(".", "/")
            if module.split(".")[0] != "bitdance_edge" or module in SHARED or room == "bitdance_edge":
                continue
            target = room_of(inside) or "bitdance_edge"
            if target not in may:
                wrong.append(f"{path.relative_to(ROOT)}: {module}")
    assert not wrong


LIGHT = {"runtime": {"torch", "onnx", "transformers", "scipy"}, "model": {"onnx", "onnxruntime", "transformers"}}


@pytest.mark.parametrize("room", sorted(LIGHT))
def test_a_light_room_imports_no_heavy_package(room: str) -> None:
    packages = {module.split(".")[0] for path in (ROOT / room).rglob("*.py") for module in imported(path)}
    assert not packages & LIGHT[room]
