"""Scripts with which a shell completes commands, options and file names, written by shtab (https://docs.iterative.ai/shtab)."""

import argparse
from typing import Any

from bitdance_edge.errors import BitDanceError

SHELLS = ("bash", "zsh", "tcsh", "fish")


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """Write the script of a parser whose commands have all their arguments.

    Raises:
        BitDanceError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise BitDanceError("--print-completion needs shtab: pip install 'bitdance-edge[completion]'") from None
    _complete_files(parser, shtab.FILE)
    return shtab.complete(parser, shell)


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Have arguments without choices of their own complete as files: most are files, folders or free text."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _complete_files(subparser, files)
        elif action.nargs != 0 and not action.choices:
            action.complete = files  # type: ignore[attr-defined]  what shtab reads
