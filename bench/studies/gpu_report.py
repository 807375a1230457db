"""What a run on a GPU has found so far: printed and written row by row, so that running out of time loses nothing."""

import gc
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Report:
    """Sections of rows; ``path`` is rewritten after every row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {"failures": []}
        self.failures = Failures(self)
        self._columns: list[str] = []
        self._section = ""

    def set(self, name: str, value: Any) -> None:
        """Keep one value, and print it."""
        self.values[name] = value
        print(f"{name}: {shown(value)}", flush=True)
        self._write()

    def add(self, section: str, row: Mapping[str, Any]) -> None:
        """Keep one row, and print it under its columns."""
        self.values.setdefault(section, []).append(dict(row))
        if (section, list(row)) != (self._section, self._columns):
            self._section, self._columns = section, list(row)
            print(f"\n{section}", *self._columns, sep=" | ")
        print(*(shown(value) for value in row.values()), sep=" | ", flush=True)
        self._write()

    def extend(self, section: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep rows as they come."""
        for row in rows:
            self.add(section, row)

    def _write(self) -> None:
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(json.dumps(self.values, default=str), encoding="utf-8")
        part.replace(self.path)


class Failures:
    """Parts that failed, while the others go on."""

    def __init__(self, report: Report | None = None) -> None:
        self.report = report

    @contextmanager
    def kept(self, part: str) -> Iterator[None]:
        """Report what fails inside the block, and go on behind it."""
        try:
            yield
        except Exception as error:  # whatever it is, a GPU is lent for minutes
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
            print(f"{part}: {error}", file=sys.stderr, flush=True)
            if self.report is not None:
                self.report.add("failures", {"part": part, "reason": reason})
        finally:
            gc.collect()


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
