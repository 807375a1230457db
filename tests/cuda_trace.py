"""The trace of the fake CUDA: what would have reached a GPU."""

import os
from collections import Counter
from pathlib import Path


class Trace:
    """What the fake CUDA was asked for since ``start``."""

    def __init__(self) -> None:
        self.path = Path(os.environ["FAKE_CUDA_TRACE"])
        self.offset = 0

    def start(self) -> None:
        self.offset = self.path.stat().st_size if self.path.exists() else 0

    def lines(self, *kinds: str) -> list[str]:
        """Lines whose first word is one of ``kinds``; all without any."""
        with self.path.open(encoding="utf-8") as file:
            file.seek(self.offset)
            lines = file.read().splitlines()
        return [line for line in lines if not kinds or line.split()[0] in kinds]

    def captured(self) -> list[str]:
        """What the last capture recorded."""
        lines = self.lines()
        begin = max(i for i, line in enumerate(lines) if line.startswith("capture begins"))
        end = max(i for i, line in enumerate(lines) if line.startswith("capture ends"))
        return lines[begin + 1 : end]

    def alive(self) -> Counter[str]:
        """What was made and not freed since the start."""
        balance: Counter[str] = Counter()
        pairs = {"malloc": ("memory", 1), "free": ("memory", -1), "pin": ("pinned", 1), "unpin": ("pinned", -1)}
        for line in self.lines():
            first, second = (*line.split(), "")[:2]
            if first in pairs:
                what, by = pairs[first]
                balance[what] += by
            elif first in ("stream", "event", "graph", "context"):
                balance[first] += {"created": 1, "retained": 1, "destroyed": -1, "released": -1}.get(second, 0)
        return Counter({what: count for what, count in balance.items() if count})
