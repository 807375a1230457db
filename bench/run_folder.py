"""The folder of a comparison: every run is kept as soon as it is done, so that an interrupted comparison continues."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitdance_edge.bench.contenders import Contender
from bitdance_edge.bench.errors import BenchError
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.storage import TEMPORARY

FORMAT = 3  # of the kept files; 3: they say how each stage multiplies


class RunFolder:
    """A folder that is new, or holds runs of the same comparison.

    Args:
        identity: what makes it the same comparison; more rounds or threads may be added later.
        force: delete runs that are there.

    Raises:
        BenchError: the folder holds something else.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], force: bool) -> None:
        self.runs = folder / "runs"
        identity, known = {"format": FORMAT, **identity}, folder / "comparison.json"
        if force and known.is_file():
            shutil.rmtree(self.runs, ignore_errors=True)
            known.unlink()
        if known.is_file():
            found = read_json(known)
            if changed := [name for name, value in identity.items() if found.get(name) != value]:
                raise BenchError(
                    f"{folder} holds runs with other {', '.join(changed)}; write to another folder with -o, or start "
                    "over with --force"
                )
        elif folder.exists() and any(not TEMPORARY.fullmatch(path.name) for path in folder.iterdir()):
            raise BenchError(f"{folder} is not empty and holds no comparison; write to another folder with -o")
        write_json(known, identity)

    def of_threads(self, threads: int, name: str) -> Path:
        return self.runs / f"t{threads}-{name}"

    def of(self, contender: Contender, threads: int, name: str) -> Path:
        return self.of_threads(threads, f"{contender.file_name}-{name}")

    def round(self, contender: Contender, threads: int, number: int) -> Path:
        return self.of(contender, threads, f"round{number + 1}.json")

    def complete(self, contender: Contender, threads: int, rounds: int) -> bool:
        """Whether a contender has nothing left to run."""
        files = [self.round(contender, threads, number) for number in range(rounds)]
        files += [self.of(contender, threads, name) for name in ("image.npz", "open.json", "warm-up.json")]
        return all(file.is_file() for file in files)


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read a kept file, made first where it is missing."""
    if not path.is_file():
        write_json(path, make())
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a kept file.

    Raises:
        BenchError: it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path} is damaged ({error}); start over with --force, or delete it") from None
    if not isinstance(found, dict):
        raise BenchError(f"{path} holds something else; start over with --force, or delete it")
    return found


def write_json(path: Path, value: Any) -> None:
    with written_whole(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())
