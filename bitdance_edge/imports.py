"""Why a package could not be imported: it is missing, or installed and broken, which ``pip install`` does not mend."""

import importlib.util
from dataclasses import dataclass
from types import TracebackType

OURS = "bitdance_edge"


@dataclass(frozen=True)
class FailedImport:
    """A package that this project imports, and could not.

    Attributes:
        where: it is installed; "" where it is not.
        reason: what was said, on one line.
    """

    package: str
    where: str
    reason: str

    def explained(self, extras: str) -> str:
        """One line that says what is wrong and what helps; ``extras`` are those that bring the package."""
        install = f"pip install 'bitdance-edge[{extras}]'"
        if not self.where:
            return f"{self.package} is not installed: {install}"
        again = install.replace("install", "install --force-reinstall", 1)
        return (
            f"{self.package} is installed in {self.where}, but does not load ({self.reason}); install it again: {again}"
        )


def failed_import(error: BaseException, package: str = "") -> FailedImport | None:
    """Find the package behind an error that importing it raised; None: the error is one of this project's own modules.

    Args:
        package: that was imported, where the caller knows it.
    """
    name = getattr(error, "name", None) or ""
    package = package or _outside(error.__traceback__) or name.partition(".")[0]
    if not package or package == OURS:
        return None
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return FailedImport(package, _installed(package), reason)


def _outside(trace: TracebackType | None) -> str:
    """The package that this project's code called last."""
    found = ""
    while trace is not None:
        top = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if top == OURS:
            found = ""
        elif not found and top not in ("importlib", "_frozen_importlib", "_frozen_importlib_external"):
            found = top
        trace = trace.tb_next
    return found


def _installed(package: str) -> str:
    """The folder or file of an installed package, "" where there is none."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    places = list(spec.submodule_search_locations or ())
    return str(places[0] if places else spec.origin or "")
