"""Standard streams: names of files, which need not be text nor in the terminal's encoding, and readers that leave."""

import codecs
import io
import os
import select
import sys
from pathlib import Path
from typing import TextIO

HANDLER = "bitdance-names"  # of characters that an encoding lacks
BROKEN_PIPE = 141  # exit status where nobody reads the output any more: that of a program that SIGPIPE ends
MOST_LINE = 2000  # characters of a message; what is longer loses its middle
STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}
BYTES = range(0xDC80, 0xDD00)  # surrogates that Python reads undecodable bytes as (PEP 383)


def print_any_name() -> None:
    """Have standard output write undecodable bytes of names unchanged, and escape characters that it cannot encode."""
    codecs.register_error(HANDLER, _encoded)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=HANDLER)


def one_line(text: str) -> str:
    """A message as a terminal shows it safely: one line, without control characters of names and files, not endless."""
    safe = text if text.isprintable() else "".join(map(_shown, text))
    if len(safe) <= MOST_LINE:
        return safe
    half = MOST_LINE // 2
    return f"{safe[:half]} ... {safe[-half:]}"


def open_closed() -> None:
    """Open the null device for each standard stream that is closed.

    Else a file that is opened later takes its descriptor, and receives what libraries print.
    """
    for name, mode in STREAMS.items():  # in the order of their descriptors: the lowest that is free is taken
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  as long as the process


def reader_left() -> bool:
    """Whether nobody reads standard output or error any more; what is written to it is dropped from now on."""
    broken = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream)]
    for stream in broken:
        _drop(stream)
    return bool(broken)


def flushed(prog: str, status: int) -> int:
    """Write what standard output still holds when a program ends; returns its exit status.

    Args:
        prog: how it is called, for the line that says why its output cannot be written.
        status: of the program, which one that failed keeps.
    """
    try:
        if sys.stdout is not None:  # it is None where standard output is closed
            sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
        return status or BROKEN_PIPE
    except OSError as error:
        print(f"{prog}: standard output: {error.strerror}", file=sys.stderr)
        _drop(sys.stdout)
        return status or 1
    return status


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def _is_broken(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe or a socket without a reader: a flush would not say so again after it has failed."""
    if stream is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)  # errors are always reported
    except (OSError, ValueError):  # it is closed, or of no file
        return False
    return bool(poll.poll(0))


def _drop(stream: TextIO | None) -> None:
    """Have a stream write to nowhere: Python flushes it once more when it ends."""
    assert stream is not None
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode the first character that ``error`` is about; returns where encoding goes on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    if code in BYTES:
        return bytes([code - BYTES.start + 0x80]), error.start + 1
    return codecs.backslashreplace_errors(
        UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    )
