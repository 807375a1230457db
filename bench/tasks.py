"""What a child process does: runs one contender, or measures the machine. ``child`` is the parent's end.

A request is a line of JSON on standard input, an answer one on standard output; the process ends with its input. Its
memory is measured, so it imports little, and libraries only in the task that needs them.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from bitdance_edge.bench.bits import Predictions
from bitdance_edge.bench.contenders import TORCH
from bitdance_edge.bench.measured import Image, library_bytes, measured, memory
from bitdance_edge.bench.work import Work
from bitdance_edge.errors import BitDanceError
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import Bundle


class Runs(Protocol):
    opened: float

    def image(self) -> Image: ...

    def instructions(self) -> dict[str, str]: ...


class Tasks:
    """A method for each task; its result is the answer."""

    def __init__(self) -> None:
        self.contender: Runs | None = None

    def open(self, kind: str, source: str, bundle: str, threads: int, work: dict[str, Any]) -> dict[str, Any]:
        """Load the contender; ``resting_bytes`` is the process's memory before that, without libraries."""
        wanted = Work.from_json(work)
        if kind not in TORCH:
            import onnxruntime  # noqa: F401  its libraries, before the memory is read

            from bitdance_edge.bench.ours import BundleContender

            resting = memory("VmRSS") - library_bytes()
            self.contender = BundleContender(kind, source, threads, wanted)
        else:
            from bitdance_edge.bench.pytorch import TorchContender

            resting = memory("VmRSS") - library_bytes()
            self.contender = TorchContender(source, bundle, threads, wanted, compiled=kind == "torch-compile")
        return {"opened": self.contender.opened, "resting_bytes": resting}

    def image(self, save: str | None) -> dict[str, Any]:
        """Make one image; with ``save``, tokens, pixels and predictions go to that file."""
        assert self.contender is not None, "nothing is open"
        image, cost = measured(self.contender.image)
        if save is not None:
            predictions = {} if image.predictions is None else image.predictions.arrays()
            with written_whole(Path(save)) as file:
                np.savez_compressed(file, allow_pickle=False, tokens=image.tokens, pixels=image.pixels, **predictions)
        memories = {"peak_bytes": memory("VmHWM"), "library_bytes": library_bytes()}
        products = self.contender.instructions()
        return {**cost, "tokens_sha256": _digest(image.tokens), "products": products, **memories}

    def teacher_forcing(
        self, kind: str, source: str, threads: int, work: dict[str, Any], reference: str
    ) -> dict[str, Any]:
        """Compare a bundle's bits with those of the file ``reference``, and count its launches."""
        from bitdance_edge.bench.peers import backend_of
        from bitdance_edge.bench.teacher_forcing import teacher_forced

        with np.load(reference, allow_pickle=False) as saved:
            predictions = Predictions.load(saved)
        backend = backend_of(kind, bundle := Bundle.open(source), threads)
        counts, launches = teacher_forced(bundle, backend, Work.from_json(work), predictions)
        return {
            "bits": counts.to_json(),
            "launches": [{"stage": item.stage, "sizes": item.sizes, "count": item.count} for item in launches],
        }

    def operators(self, source: str, threads: int, work: dict[str, Any]) -> dict[str, Any]:
        from bitdance_edge.bench.operators import operator_shares

        return operator_shares(source, threads, Work.from_json(work))

    def abilities(self, threads: int) -> dict[str, Any]:
        from bitdance_edge.bench.machine import abilities

        return abilities(threads)


def _digest(tokens: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    tasks = Tasks()
    for line in sys.stdin:
        options = json.loads(line)
        _answer(answers, _done(tasks, options.pop("task"), options))


def _done(tasks: Tasks, task: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run a task; the project's own errors are answers, any other keeps its trace."""
    try:
        return {"done": getattr(tasks, task)(**options)}
    except BitDanceError as error:
        return {"error": str(error)}


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
