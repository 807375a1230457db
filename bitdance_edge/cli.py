"""The command line. Each command imports its room only when it runs, so that ``--help`` is immediate."""

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from bitdance_edge import __version__

# Command -> the module with its ``configure(parser)`` and ``run(args)``, and its line in the list of commands.
COMMANDS = {
    "generate": ("bitdance_edge.commands.generate", "images from a bundle"),
    "tokenize": ("bitdance_edge.commands.tokenize", "an image to binary tokens"),
    "reconstruct": ("bitdance_edge.commands.reconstruct", "an image through the tokenizer and back"),
    "inspect": ("bitdance_edge.commands.inspect", "what a bundle holds and needs, or an engine is"),
    "export": ("bitdance_edge.export.__main__", "a checkpoint to a bundle of ONNX graphs"),
    "build": ("bitdance_edge.commands.build", "TensorRT engines of a bundle"),
    "profile": ("bitdance_edge.commands.profile", "where the time of each stage goes, by module"),
    "compare": ("bitdance_edge.commands.compare", "PyTorch, ONNX Runtime and TensorRT, stage by stage"),
    "pack": ("bitdance_edge.commands.pack", "a bundle and its engines as one archive"),
    "train": ("bitdance_edge.training.__main__", "train a tokenizer or a generator"),
}

# Packages that a command may miss -> the extra that brings them.
EXTRAS = {
    "torch": "export",
    "safetensors": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "cpu",
    "polygraphy": "compare",
    "accelerate": "train",
    "sklearn": "train",
}

Configure = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``bitdance-edge``; the exit status (0 done, 1 a clear error, 130 interrupted)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[argv[0]][0])
        return run_command(f"bitdance-edge {argv[0]}", module.configure, module.run, argv[1:])
    parser = argparse.ArgumentParser(
        prog="bitdance-edge",
        description="BitDance image generators on your own hardware.",
        epilog="bitdance-edge COMMAND --help says more, with an example.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary)
    parser.parse_args(argv)
    return 0


def run_command(prog: str, configure: Configure, run: Run, argv: Sequence[str] | None = None) -> int:
    """Parse and run one command; errors that this project defines become one message, all others keep their trace."""
    parser = argparse.ArgumentParser(prog=prog, formatter_class=argparse.RawDescriptionHelpFormatter)
    configure(parser)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        run(args)
    except KeyboardInterrupt as interrupt:
        print(f"{prog}: interrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        print(f"{prog}: {error.name} is not installed: pip install 'bitdance-edge[{extra}]'", file=sys.stderr)
        return 1
    except Exception as error:
        if not type(error).__module__.startswith("bitdance_edge."):
            raise
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    return 0


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """Let a polite kill clean up as Ctrl-C does."""
    raise KeyboardInterrupt("terminated")


if __name__ == "__main__":
    raise SystemExit(main())
