"""Text is UTF-8 whatever the locale is."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_rooms import ROOMS, ROOT

CHECKPOINT = ROOT / "checkpoints" / "digits-4x"
NAMES = ["Grün", "œuf", "円", "\N{ROCKET}", *"456789"]


CALLS = {"read_text": 1, "write_text": 2}  # positional arguments of those that name an encoding by place
RUNS = ("run", "Popen", "check_output", "check_call")


def without_encoding(tree: ast.AST) -> Iterator[int]:
    """The lines of calls that read or write text in the encoding of the locale."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given, name = {keyword.arg for keyword in node.keywords}, node.func.attr
            text = len(node.args) < CALLS[name] if name in CALLS else name in RUNS and "text" in given
            if text and "encoding" not in given:
                yield node.lineno


@pytest.mark.parametrize("room", sorted({room.split("/")[0] for room in ROOMS}))
def test_every_call_says_its_encoding(room: str) -> None:
    files = (ROOT / room).rglob("*.py")
    found = [(file, line) for file in files for line in without_encoding(ast.parse(file.read_text(encoding="utf-8")))]
    assert not [f"{file.relative_to(ROOT)}:{line}" for file, line in found]


def test_class_names_are_read_in_another_locale(tmp_path: Path) -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "class_names": NAMES}, ensure_ascii=False)
    (tmp_path / "config.json").write_text(text, encoding="utf-8-sig")  # some editors put a byte order mark first
    program = (
        "import locale, sys; from pathlib import Path; from bitdance_edge.model import GeneratorConfig\n"
        "from bitdance_edge.model.files import write_json; from bitdance_edge.model.json_file import read_json\n"
        "folder = Path(sys.argv[1]); config = GeneratorConfig.from_json(read_json(folder / 'config.json'))\n"
        "write_json(folder / 'written.json', config.to_json())\n"
        "print(locale.getpreferredencoding(False), ascii(config.class_names))\n"
    )
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=ascii_only, capture_output=True, encoding="ascii", check=True)
    assert done.stdout.split(maxsplit=1) == ["ANSI_X3.4-1968", f"{tuple(NAMES)!a}\n"]
    assert json.loads((tmp_path / "written.json").read_text(encoding="utf-8"))["class_names"] == NAMES
