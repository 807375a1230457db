"""Files of prompts: a text file, JSON lines as GenEval's metadata, or a folder of texts as DPG-Bench has them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.runtime.bundle.json_file import parse_json
from bitdance_edge.runtime.reading import read_text
from bitdance_edge.scale.errors import ScaleError


@dataclass(frozen=True)
class Prompt:
    """A prompt, and where it came from: the name of its file without suffix, or the whole line of its metadata."""

    text: str
    name: str = ""
    metadata: Mapping[str, Any] | None = None
    line: str = ""


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts, in the order of the lines, or of the names in a folder (numbers by value).

    A ``.jsonl`` file has a JSON object with ``prompt`` in each line; a folder has one prompt in each ``.txt`` file; any
    other file has one prompt a line. Empty lines are skipped.

    Raises:
        ScaleError: there is none, or a line is not as described.
        RequestError: a file cannot be read.
    """
    if path.is_dir():
        prompts = [Prompt(read_text(file, "prompt").strip(), file.stem) for file in _texts(path)]
    elif path.suffix == ".jsonl":
        prompts = list(_lines(path))
    else:
        lines = read_text(path, "file of prompts").splitlines()
        prompts = [Prompt(line.strip()) for line in lines if line.strip()]
    if empty := [prompt.name for prompt in prompts if not prompt.text]:
        raise ScaleError(f"{path / f'{empty[0]}.txt'} is empty; write a prompt, or remove the file")
    if not prompts:
        raise ScaleError(f"{path} holds no prompt; write one a line, or one a .txt file of a folder")
    return prompts


def _texts(folder: Path) -> list[Path]:
    found = folder.glob("*.txt")
    return sorted(
        found, key=lambda file: (not file.stem.isdecimal(), int(file.stem) if file.stem.isdecimal() else 0, file.stem)
    )


def _lines(path: Path) -> Iterator[Prompt]:
    for number, line in enumerate(read_text(path, "file of prompts").split("\n"), 1):  # JSON may hold others
        if not line.strip():
            continue
        try:
            data = parse_json(line.encode())
            text = data["prompt"].strip()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ScaleError(f'{path}, line {number}: it is no JSON object with "prompt": "..." ({error})') from None
        if not text:
            raise ScaleError(f"{path}, line {number}: the prompt is empty")
        yield Prompt(text, "", data, line)
