"""The parent's end of a process that runs ``tasks`` with its own threads and memory."""

import json
import os
import subprocess
import sys
from typing import Any

from bitdance_edge.bench.errors import BenchError

# numpy's and PyTorch's libraries read these once, when they are loaded.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GRACE = 5.0  # seconds to end in


class Child:
    """The parent's end of one process, which answers one request at a time.

    Args:
        name: what it runs, for errors.
        threads: of the libraries in it.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bitdance_edge.bench.tasks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=environment,
        )

    def ask(self, task: str, **options: Any) -> dict[str, Any]:
        """Have the process do one of ``Tasks``.

        Raises:
            BenchError: the task fails, or the process has died (its own trace is above on standard error).
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"task": task, **options}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self.process.wait()
            killed = " (killed: out of memory?)" if status < 0 else ""
            raise BenchError(f"the process of {self.name} ended with status {status}{killed} during the task {task!r}")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.name}: {answer['error']}")
        return answer["done"]

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
