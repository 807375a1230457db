"""The command line. Each command imports its room only when it runs, so that ``--help`` is immediate."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bitdance_edge import __version__
from bitdance_edge.errors import BitDanceError
from bitdance_edge.imports import failed_import
from bitdance_edge.interrupts import interruptible


@dataclass(frozen=True)
class Command:
    """One command: its module ``commands.NAME`` has ``configure(parser)`` and ``run(args)``; it needs these extras."""

    summary: str
    extras: str


COMMANDS = {
    "generate": Command("images from a bundle", "cpu"),
    "tokenize": Command("an image to binary tokens", "cpu"),
    "reconstruct": Command("an image through the tokenizer and back", "cpu"),
    "serve": Command("an HTTP API and a page that make images", "cpu,serve"),
    "inspect": Command("what a bundle holds and needs, or what a build is", "cpu"),
    "export": Command("a checkpoint to a bundle of ONNX graphs", "cpu,export"),
    "calibrate": Command("a bundle in INT8, FP8 or 4 bits, and what it lost", "calibrate"),
    "build": Command("what one device wants of a bundle: graphs or engines", "cpu,engines"),
    "profile": Command("where the time of each stage goes, by module", "cpu,rtx"),
    "compare": Command("PyTorch, ONNX Runtime and TensorRT by stage", "export,compare"),
    "bench": Command("the speed of a bundle compared with PyTorch's", "bench"),
    "pack": Command("a bundle and what was built of it as one archive", "cpu"),
    "train": Command("train a tokenizer or a generator", "train"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bitdance-edge``; the exit status (0 done, 1 a clear error, 130 interrupted)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        return run_command(argv[0], argv[1:])
    parser = argparse.ArgumentParser(
        prog="bitdance-edge",
        description="BitDance image generators on your own hardware.",
        epilog="bitdance-edge COMMAND --help says more, with an example.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary)
    parser.parse_args(argv)
    return 0


def run_command(name: str, argv: Sequence[str]) -> int:
    """Parse and run one command; errors that this project defines become one message, all others keep their trace."""
    prog = f"bitdance-edge {name}"
    return interruptible(prog, lambda: _run_command(COMMANDS[name], name, prog, argv))


def _run_command(command: Command, name: str, prog: str, argv: Sequence[str]) -> int:
    try:
        module = importlib.import_module(f"bitdance_edge.commands.{name}")
        parser = argparse.ArgumentParser(prog=prog, formatter_class=argparse.RawDescriptionHelpFormatter)
        module.configure(parser)
        module.run(parser.parse_args(argv))
    except ImportError as error:
        if (failed := failed_import(error)) is None:
            raise
        print(f"{prog}: {failed.explained(command.extras)}", file=sys.stderr)
        return 1
    except OSError as error:  # a disk or folder that will not do; the rooms name those that they expect
        print(f"{prog}: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except BitDanceError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0
