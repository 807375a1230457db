"""A child process: one contender with its own threads and memory, which does one thing after another when it is told.

Orders come as a line of JSON on standard input, answers leave as one on standard output; it ends with its input.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from bitdance_edge.bench.contenders import OURS
from bitdance_edge.bench.measured import Image, library_bytes, measured, memory
from bitdance_edge.bench.work import Work
from bitdance_edge.runtime.bundle.files import written_whole


class Runs(Protocol):
    opened: float

    def image(self) -> Image: ...


class Worker:
    def __init__(self) -> None:
        self.contender: Runs | None = None

    def open(self, kind: str, source: str, bundle: str, threads: int, work: dict[str, Any]) -> dict[str, Any]:
        """Load what runs; ``resting`` memory is that of the process without libraries, before."""
        wanted = Work.from_json(work)
        if kind == OURS:
            import onnxruntime  # noqa: F401  its libraries, before the memory is looked at

            from bitdance_edge.bench.ours import OurContender

            resting = memory("VmRSS") - library_bytes()
            self.contender = OurContender(source, threads, wanted)
        else:
            from bitdance_edge.bench.pytorch import TorchContender

            resting = memory("VmRSS") - library_bytes()
            self.contender = TorchContender(source, bundle, threads, wanted, compiled=kind == "torch-compile")
        return {"opened": self.contender.opened, "resting_bytes": resting}

    def image(self, save: str | None) -> dict[str, Any]:
        """One image; with ``save``, tokens and pixels go to that file."""
        assert self.contender is not None, "nothing is open"
        image, cost = measured(self.contender.image)
        if save is not None:
            arrays = {"tokens": image.tokens, "pixels": image.pixels}
            if image.unconditional is not None:
                arrays["unconditional"] = image.unconditional
            with written_whole(Path(save)) as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
        memories = {"peak_bytes": memory("VmHWM"), "library_bytes": library_bytes()}
        return {**cost, "tokens_sha256": _digest(image.tokens), **memories}

    def survey(self, source: str, threads: int, work: dict[str, Any], reference: str) -> dict[str, Any]:
        from bitdance_edge.bench.survey import survey

        with np.load(reference, allow_pickle=False) as saved:
            return survey(source, threads, Work.from_json(work), saved["tokens"], saved.get("unconditional"))

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
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    worker = Worker()
    for line in sys.stdin:
        order = json.loads(line)
        _answer(answers, _done(worker, order.pop("do"), order))


def _done(worker: Worker, what: str, options: dict[str, Any]) -> dict[str, Any]:
    """What came of an order; errors that this project defines go to the parent, all others keep their trace."""
    try:
        return {"done": getattr(worker, what)(**options)}
    except Exception as error:
        if not type(error).__module__.startswith("bitdance_edge."):
            raise
        return {"error": str(error)}


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
