"""Runs of ``bitdance-edge train`` in two processes, as ``accelerate launch`` starts them, one run after the other.

python tests/training_together.py FOLDER RUNS

RUNS is JSON: of each run its arguments, and the signal that the second process sends to itself before which step.
FOLDER gets what each process prints (``RUN-RANK.out``), the digests of its images of each step (``RUN-RANK.images``),
and the exit statuses (``statuses.json``). The processes are forked here, since importing everything takes seconds.
"""

import hashlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from bitdance_edge.cli import main
from bitdance_edge.training.image_set import ImageSet
from bitdance_edge.training.runs import Trainer  # with everything that the processes would import

PROCESSES = 2


def digests(images: ImageSet) -> list[str]:
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images.images]


def started(folder: Path, run: dict[str, Any], rank: int, name: str, port: int) -> int:
    """Fork one process of a run; its id."""
    if (process := os.fork()) != 0:
        return process
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | {k: str(v) for k, v in places.items()}
    output = os.open(folder / f"{name}.out", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    observe(folder / f"{name}.images", run["signal"], run["step"] if rank else -1)
    status = 1
    try:
        status = main(run["arguments"])
    finally:
        sys.stdout.flush()
        os._exit(status)


def observe(images: Path, number: int, stopped: int) -> None:
    """Note the images of each step, and send a signal to this process before one of them."""
    inner = Trainer._batch

    def batch(self: Trainer, step: int) -> ImageSet:
        if step == stopped:
            os.kill(os.getpid(), number)
        found = inner(self, step)
        with images.open("a", encoding="utf-8") as file:
            file.write(f"{step} {' '.join(digests(found))}\n")
        return found

    Trainer._batch = batch  # type: ignore[method-assign]  with other names of arguments


def statuses(folder: Path, run: dict[str, Any], name: str) -> list[int]:
    """Start the processes of a run and wait for them; as a launcher does, end the others when one has failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {started(folder, run, rank, f"{name}-{rank}", port): rank for rank in range(PROCESSES)}
    ended: dict[int, int] = {}
    while len(ended) < PROCESSES:
        process, status = os.wait()
        ended[process] = os.waitstatus_to_exitcode(status)
        if ended[process] != 0:
            for other in ranks.keys() - ended.keys():
                os.kill(other, signal.SIGTERM)
    return [ended[process] for process in ranks]


if __name__ == "__main__":
    folder, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    ended = [statuses(folder, run, str(number)) for number, run in enumerate(wanted)]
    (folder / "statuses.json").write_text(json.dumps(ended), encoding="utf-8")
