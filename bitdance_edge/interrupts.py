"""Ctrl-C and a polite kill at any moment of a command: one line, exit status 130, and nothing half done.

Python raises KeyboardInterrupt wherever it happens to be. Two of these places lose it: a callback that Python runs by
itself (of a weak reference, ``__del__``), where it is printed and forgotten, and an import, where extension modules
turn it into an ImportError and stay half loaded. So an interrupt that was lost is raised again, and one that comes
during an import ends the process at once, or where there is something to clean up first, waits for the import.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

INTERRUPTED = 130  # exit status
AGAIN_AFTER = 0.05  # seconds until an interrupt that could not be raised, or was lost, is raised again
SAME_WITHIN = 0.3  # seconds in which a second signal is the first one again, sent to a process and to its group
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
REASONS = {int(signal.SIGTERM): "terminated"}
IMPORTING = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


class Interrupts:
    """What the signals do to one program.

    Args:
        prog: how it is called, for the line that says that it was interrupted.
    """

    def __init__(self, prog: str) -> None:
        self.prog = prog
        self.held = 0  # blocks that have something to clean up
        self.counting = threading.Lock()
        self.received: int | None = None  # the signal that was received
        self.first = 0.0  # when
        self.status: int | None = None  # of the program, once it has ended

    def line(self, reason: object = "") -> str:
        """The line that says that the program was interrupted."""
        return f"{self.prog}: interrupted{f': {reason}' if str(reason) else ''}"

    def hold(self, more: int) -> None:
        """Change the number of blocks that have something to clean up."""
        with self.counting:
            self.held += more

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: raise KeyboardInterrupt as soon as that is safe; the second one kills."""
        if self.status is not None:
            os._exit(self.status)
        if self.received is None:
            self.received, self.first = number, time.monotonic()
            self._deliver(number, frame)
        elif time.monotonic() - self.first > SAME_WITHIN:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def lost(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Raise an interrupt again that was raised where nobody can catch it; other errors are shown unchanged."""
        if unraisable.exc_type is KeyboardInterrupt and self.received is not None:
            self._again(self.received)
        else:
            sys.__unraisablehook__(unraisable)

    def _deliver(self, number: int, frame: FrameType | None) -> None:
        if not _importing(frame):
            raise KeyboardInterrupt(REASONS.get(number, ""))
        if self.held:
            self._again(number)
            return
        with suppress(OSError):
            os.write(2, f"{self.line(REASONS.get(number, ''))}\n".encode())
        os._exit(INTERRUPTED)

    def _again(self, number: int) -> None:
        """Receive the signal once more in a moment, when the main thread has left the place that it is in."""
        timer = threading.Timer(AGAIN_AFTER, self._resend, [number])
        timer.daemon = True
        timer.start()

    def _resend(self, number: int) -> None:
        if self is _current and self.received is not None:
            self.received = None
            if sys.platform == "win32":
                signal.raise_signal(number)
            else:
                signal.pthread_kill(threading.main_thread().ident or 0, number)


_current: Interrupts | None = None  # of the command that runs


@contextmanager
def handled(prog: str) -> Iterator[Interrupts]:
    """Handle the signals of a program while the block runs; those that are ignored, as under nohup, stay ignored."""
    global _current
    interrupts, outer, hook = Interrupts(prog), _current, sys.unraisablehook
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        before = {}
    try:
        _current, sys.unraisablehook = interrupts, interrupts.lost
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, interrupts.receive)
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _current, sys.unraisablehook = outer, hook


@contextmanager
def holding() -> Iterator[None]:
    """Say that the block has something to clean up, so that no interrupt ends the process before that."""
    interrupts = _current or Interrupts("")
    interrupts.hold(1)
    try:
        yield
    finally:
        interrupts.hold(-1)


def require_uninterrupted() -> None:
    """Raise an interrupt that a library has caught and forgotten: what it stopped is not to be put in place."""
    if _current is not None and _current.received is not None:
        raise KeyboardInterrupt(REASONS.get(_current.received, ""))


def heard() -> None:
    """Say that the interrupt has had its effect, where that is an orderly end and no failure."""
    if _current is not None:
        _current.received = None


def interruptible(prog: str, work: Callable[[], int]) -> int:
    """Run ``work``; returns its exit status, or 130 with one line on standard error where it was interrupted."""
    with handled(prog) as interrupts:
        try:
            status = work()
            require_uninterrupted()
        except KeyboardInterrupt as interrupt:
            print(interrupts.line(interrupt), file=sys.stderr)
            return INTERRUPTED
        return status


def run_program(prog: str, work: Callable[[], int]) -> int:
    """Run the program that this process is for; once its exit status is known, a signal ends it with that status."""
    status = interruptible(prog, work)
    leaving = Interrupts(prog)
    leaving.status = status
    with suppress(OSError):
        if sys.stdout is not None:  # it is None where standard output is closed
            sys.stdout.flush()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leaving.receive)
    return status


def _importing(frame: FrameType | None) -> bool:
    """Whether a frame, or one that called it, imports a module."""
    while frame is not None:
        if frame.f_code.co_filename in IMPORTING:
            return True
        frame = frame.f_back
    return False
