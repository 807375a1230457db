"""The PyTorch module that a node of an exported graph came from, kept in the node's metadata."""

import ast
from collections.abc import Iterable
from typing import Protocol

MODULE_PATH = "pkg.torch.onnx.name_scopes"  # key of the metadata; its value is the repr of a list of names


class Entry(Protocol):
    """One entry of an ONNX node's ``metadata_props``."""

    key: str
    value: str


def enclosing_modules(metadata: Iterable[Entry]) -> list[str] | None:
    """The modules that a node was traced in, outermost first; None where its metadata does not say."""
    for entry in metadata:
        if entry.key == MODULE_PATH:
            return [module for module in ast.literal_eval(entry.value)[1:-1] if module]  # between stage and operation
    return None


def innermost_module(metadata: Iterable[Entry]) -> str:
    """The module that a node belongs to, "" where it belongs to the stage itself or does not say."""
    modules = enclosing_modules(metadata)
    return modules[-1] if modules else ""
