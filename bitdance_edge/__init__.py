"""BitDance image generators on your own hardware: export once, calibrate, compile, run."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitdance_edge.runtime import BitDanceError, Bundle, Pipeline, Request, Size

__version__ = "0.1.0"

__all__ = ["BitDanceError", "Bundle", "Pipeline", "Request", "Size"]


def __getattr__(name: str) -> object:
    """The public names, loaded on first use: ``import bitdance_edge`` itself costs nothing."""
    if name in __all__:
        return getattr(import_module("bitdance_edge.runtime"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
