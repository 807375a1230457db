"""Runs of the command for tests: what it printed, and its folder."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commanding import status_of

CHECKPOINT = Path(__file__).parent / "fixtures" / "cc_4x_patch" / "state.safetensors"
SHORT = ("--steps", "2", "--patches", "2", "--rounds", "2")


@dataclass(frozen=True)
class Done:
    status: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        """The last line."""
        assert self.status == 0, self.stderr
        return json.loads(self.stdout.splitlines()[-1])

    @property
    def complaint(self) -> str:
        """The one line of an error."""
        assert self.status in (1, 2) and self.stdout == ""
        return self.stderr.strip().splitlines()[-1]


@dataclass(frozen=True)
class Compared:
    """A comparison that was run: its folder is the last of the arguments."""

    folder: Path
    report: dict[str, Any]
    arguments: tuple[str | Path, ...]


def bench(*arguments: str | Path) -> Done:
    """The command in this process; its contenders have processes of their own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = status_of("bench", *arguments, "--json")
    return Done(status, out.getvalue(), err.getvalue())
