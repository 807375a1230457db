"""The PyTorch module that a node of an exported graph came from, kept in the node's metadata."""

import ast
from collections.abc import Iterable
from typing import Protocol

LONGEST = 10_000  # characters of such a list
MODULE_PATH = "pkg.torch.onnx.name_scopes"  # key of the metadata; its value is the repr of a list of names


class Entry(Protocol):
    """One entry of an ONNX node's ``metadata_props``."""

    key: str
    value: str


def enclosing_modules(metadata: Iterable[Entry]) -> list[str] | None:
    """The modules that a node was traced in, outermost first; None where its metadata does not say."""
    for entry in metadata:
        if entry.key == MODULE_PATH:
            return _between_stage_and_operation(entry.value)
    return None


def _between_stage_and_operation(value: str) -> list[str] | None:
    """The modules of a list of names; None where it is none, as in a file that was altered."""
    try:
        names = ast.literal_eval(value) if len(value) <= LONGEST else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return [module for module in names[1:-1] if module]


def innermost_module(metadata: Iterable[Entry]) -> str:
    """The module that a node belongs to, "" where it belongs to the stage itself or does not say."""
    modules = enclosing_modules(metadata)
    return modules[-1] if modules else ""
