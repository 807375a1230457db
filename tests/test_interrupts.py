"""A command ends at once, with one line and status 130, at whatever moment it is interrupted."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitdance_edge.cli import COMMANDS

STOPS = (signal.SIGINT, signal.SIGTERM)
RUN = """
import os, signal, sys, threading, time, weakref, gc
from pathlib import Path
from bitdance_edge.interrupts import SAME_WITHIN, holding, run_program
send = lambda number=int(sys.argv[1]): os.kill(os.getpid(), number)
def work():
{work}
raise SystemExit(run_program("program", work))
"""
# A module search that sends the signal when a module is looked for, so that it arrives in the middle of an import.
COMMAND = """
import os, sys
from importlib.abc import MetaPathFinder
_, number, wanted, *arguments = sys.argv
class Sends(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == wanted:
            os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, Sends())
from bitdance_edge.__main__ import main
sys.argv = ["bitdance-edge", *arguments]
raise SystemExit(main())
"""


def run(work: str, stop: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    """Status, standard output and standard error of a program whose work is these lines."""
    lines = "".join(f"    {line}\n" for line in work.strip().splitlines())
    command = [sys.executable, "-c", RUN.format(work=lines), str(int(stop))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("stop", STOPS)
def test_an_interrupt_in_the_middle_of_the_work_is_one_line(stop: signal.Signals) -> None:
    said = {signal.SIGINT: "program: interrupted\n", signal.SIGTERM: "program: interrupted: terminated\n"}[stop]
    assert run("send()\ntime.sleep(10)", stop) == (130, "", said)


def test_an_interrupt_that_a_callback_loses_comes_again() -> None:
    work = """
class Thing: pass
thing = Thing()
weakref.finalize(thing, send)
del thing
for _ in range(1000):
    time.sleep(0.01)
print("ran on")
return 0
"""
    assert run(work, signal.SIGTERM) == (130, "", "program: interrupted: terminated\n")


def test_an_interrupt_that_a_library_swallows_is_no_success() -> None:
    work = """
try:
    send()
    time.sleep(1)
except BaseException:
    pass
return 0
"""
    assert run(work) == (130, "", "program: interrupted\n")


def test_an_import_with_something_to_clean_up_ends_first(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, sys, time\nos.kill(os.getpid(), int(sys.argv[1]))\nprint('imported')\n"
    )
    held = f"""
sys.path.insert(0, {str(tmp_path)!r})
with holding():
    try:
        import slow
        time.sleep(10)
    finally:
        print("cleaned up")
"""
    assert run(held) == (130, "imported\ncleaned up\n", "program: interrupted\n")
    free = held.replace("with holding():", "if True:")
    assert run(free) == (130, "", "program: interrupted\n")


def test_the_second_interrupt_kills_and_the_same_one_twice_does_not() -> None:
    work = """
try:
    send(), send()
    time.sleep(10)
finally:
    {second}
    print("cleaned up", flush=True)
"""
    assert run(work.format(second="pass")) == (130, "cleaned up\n", "program: interrupted\n")
    again = "time.sleep(SAME_WITHIN + 0.1); send()"
    assert run(work.format(second=again))[:2] == (-signal.SIGINT, "")


def test_a_finished_program_keeps_its_status() -> None:
    assert run("import atexit; atexit.register(lambda: (send(), time.sleep(10)))\nreturn 3") == (3, "", "")


def test_what_is_ignored_stays_ignored() -> None:
    work = "send()\ntime.sleep(0.2)\nprint('went on')\nreturn 0"
    lines = RUN.format(work="".join(f"    {line}\n" for line in work.splitlines()))
    script = f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{lines}"
    done = subprocess.run([sys.executable, "-c", script, "2"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


IMPORTS = {  # a module that is imported while a command starts, or in its run
    "generate": ("numpy", ["bundle", "--classes", "0"]),
    "serve": ("bitdance_edge.serve.settings", ["bundle"]),
    "export": ("bitdance_edge.export.exporter", ["checkpoint", "-o", "out"]),
    "calibrate": ("onnx", ["bundle", "--precision", "int8", "-o", "out"]),
    "build": ("bitdance_edge.engines.targets", ["bundle", "--target", "cpu"]),
    "bench": ("bitdance_edge.bench.comparison", ["bundle"]),
    "compare": ("bitdance_edge.engines.reports.compare", ["bundle"]),
    "profile": ("bitdance_edge.engines.engine_run", ["bundle"]),
    "pack": ("bitdance_edge.runtime", ["bundle", "-o", "out.tar"]),
    "train": ("torch", ["digits-tokenizer", "--out", "out"]),
}


@pytest.mark.parametrize("command", IMPORTS)
def test_an_interrupt_while_a_command_imports_is_one_line(command: str, tmp_path: Path) -> None:
    assert command in COMMANDS
    module, arguments = IMPORTS[command]
    stop = STOPS[len(command) % 2]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(int(stop)), module, command, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    reason = ": terminated" if stop == signal.SIGTERM else ""
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == f"bitdance-edge {command}: interrupted{reason}\n"
    assert not list(tmp_path.iterdir())
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("module", ["argparse", "bitdance_edge.cli", "dataclasses"])
def test_an_interrupt_before_the_command_is_known(module: str) -> None:
    command = [sys.executable, "-S", "-c", COMMAND, "2", module, "pack", "--help"]
    path = ":".join(sys.path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (130, "bitdance-edge: interrupted\n")
