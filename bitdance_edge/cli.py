"""The command line. Each command imports its room only when it runs, so that ``--help`` is immediate."""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bitdance_edge import __version__
from bitdance_edge.completion import SHELLS, completion
from bitdance_edge.errors import BitDanceError
from bitdance_edge.imports import failed_import
from bitdance_edge.installation import as_typed
from bitdance_edge.interrupts import interruptible
from bitdance_edge.streams import BROKEN_PIPE, one_line, print_any_name, reader_left


@dataclass(frozen=True)
class Command:
    """One command: its module ``commands.NAME`` has ``configure(parser)`` and ``run(args)``; it needs these extras.

    ``run`` returns an exit status where there is more to say than that the work is done.
    """

    summary: str
    extras: str

    @property
    def runs_bundles_only(self) -> bool:
        return set(self.extras.split(",")) <= {"cpu", "serve"}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with arguments; those of argparse repeat the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, one_line(f"{self.prog}: {message} ({self.prog} --help says more)") + "\n")


COMMANDS = {
    "generate": Command("images from a bundle", "cpu"),
    "tokenize": Command("an image to binary tokens", "cpu"),
    "decode": Command("binary tokens to images", "cpu"),
    "reconstruct": Command("images through the tokenizer and back, and what that keeps", "cpu,calibrate"),
    "bulk": Command("very many images as shards, on one machine or many", "cpu"),
    "evaluate": Command("scores of a bundle's images, of shards or of a folder", "calibrate"),
    "serve": Command("an HTTP API and a page that make images", "cpu,serve"),
    "inspect": Command("what a bundle holds and needs, or what a build is", "cpu"),
    "export": Command("a checkpoint to a bundle of ONNX graphs", "cpu,export"),
    "calibrate": Command("a bundle in INT8, FP8 or 4 bits, and what it lost", "calibrate"),
    "build": Command("what one device wants of a bundle: graphs or engines", "cpu,engines"),
    "profile": Command("where the time of each stage goes, by module", "cpu,rtx"),
    "compare": Command("PyTorch, ONNX Runtime and TensorRT by stage", "export,compare"),
    "bench": Command("the speed of a bundle compared with PyTorch's", "bench"),
    "pack": Command("a bundle and what was built of it as one archive", "cpu"),
    "push": Command("a bundle to a repository on the Hub, with its card", "hub"),
    "train": Command("train a tokenizer or a generator", "train"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; returns the exit status.

    0: done, 1: a clear error, 2: arguments that cannot be parsed, 3: ``calibrate`` missed its budget, 130: interrupted,
    141: nobody reads the output any more.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    print_any_name()
    if argv and argv[0] in COMMANDS:
        return run_command(argv[0], argv[1:])
    parser = command_parser(())
    args = parser.parse_args(argv)
    if args.print_completion is None:
        return parser.error("name a command first, then its arguments")
    try:
        installed = [name for name in COMMANDS if _is_installed(name)]
        print(completion(command_parser(installed), args.print_completion))
    except BitDanceError as error:
        return _failed("bitdance-edge", error)
    return 0


def _is_installed(name: str) -> bool:
    """Whether what the arguments of a command need can be imported; completion knows the others by name alone."""
    try:
        importlib.import_module(f"bitdance_edge.commands.{name}")
    except ImportError as error:
        if failed_import(error) is None:
            raise
        return False
    return True


def command_parser(configured: Collection[str]) -> argparse.ArgumentParser:
    """Make the parser of all commands; only the modules of ``configured`` are imported, and have their arguments."""
    parser = Parser(
        prog="bitdance-edge",
        description="BitDance image generators on your own hardware.",
        epilog="bitdance-edge COMMAND --help says more, with an example.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f"print a script with which SHELL completes commands and options: {', '.join(SHELLS)}",
    )
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=command.summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in configured:
            importlib.import_module(f"bitdance_edge.commands.{name}").configure(subparser)
            subparser.epilog = as_typed(subparser.epilog or "")
            subparser.add_argument("-q", "--quiet", action="store_true", help="print results and errors only")
    return parser


def run_command(name: str, argv: Sequence[str]) -> int:
    """Parse and run one command; errors that this project defines become one message, all others keep their trace."""
    if COMMANDS[name].runs_bundles_only:
        # numpy starts a thread of OpenBLAS for each processor. They took a fifth of the processor time of a small
        # model's first image, and have nothing to do: products are the backend's.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    prog = f"bitdance-edge {name}"
    return interruptible(prog, lambda: _run_command(name, prog, argv))


def _run_command(name: str, prog: str, argv: Sequence[str]) -> int:
    try:
        args = command_parser([name]).parse_args([name, *argv])
        module = importlib.import_module(f"bitdance_edge.commands.{name}")
        with _silenced() if args.quiet else contextlib.nullcontext():
            return module.run(args) or 0
    except ImportError as error:
        if (failed := failed_import(error)) is None:
            raise
        return _failed(prog, as_typed(failed.explained(COMMANDS[name].extras)))
    except BrokenPipeError as error:
        if reader_left():  # as of head -1, after which a program ends without a word
            return BROKEN_PIPE
        return _failed(prog, _said(error))
    except OSError as error:  # a disk or folder that will not do; the rooms name those that they expect
        return _failed(prog, _said(error))
    except BitDanceError as error:
        return _failed(prog, error)


def _said(error: OSError) -> str:
    return f"{error.filename or 'a file, or the output'}: {error.strerror or error}"


def _failed(prog: str, reason: object) -> int:
    print(one_line(f"{prog}: {reason}"), file=sys.stderr)
    return 1


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Drop what a command says on standard error, progress included; an error that ends it is printed afterwards."""
    with Path(os.devnull).open("w", encoding="utf-8") as nothing, contextlib.redirect_stderr(nothing):
        yield
