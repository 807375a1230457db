"""Weight files of a checkpoint as links beside a bundle's graphs: their names, and whether the system makes them."""

import errno
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from bitdance_edge.export.errors import ExportError

REASONS = {
    errno.EXDEV: "they are on two file systems, and a hard link needs both on one",
    errno.EPERM: "the system refuses hard links to files of other users, or the file system has none",
    errno.EMLINK: "the file has as many links as its file system allows",
}


def link_names(files: Iterable[Path]) -> dict[Path, str]:
    """Give each file a name of its own in one folder: its own name, after its folder's where several share it.

    The diffusers port names every component's weights ``diffusion_pytorch_model.safetensors``.
    """
    ordered = sorted(set(files))
    shared = Counter(file.name for file in ordered)
    names = {file: file.name if shared[file.name] == 1 else f"{file.parent.name}-{file.name}" for file in ordered}
    repeated = Counter(names.values())
    return {
        file: name if repeated[name] == 1 else f"{i}-{name}" for i, (file, name) in enumerate(names.items(), start=1)
    }


def refusal(names: Mapping[Path, str], folder: Path) -> str | None:
    """Try to link every file into a folder, and return why the system refuses it; None: all can be linked.

    Whatever was linked is removed again.
    """
    for file, name in names.items():
        link = folder / name
        try:
            hard_link(file, link)
        except ExportError as error:
            return str(error)
        link.unlink()
    return None


def hard_link(file: Path, link: Path) -> None:
    """Link a file, or what it is a symbolic link to.

    Raises:
        ExportError: the system refuses it.
    """
    try:
        os.link(file.resolve(), link)
    except OSError as error:
        reason = REASONS.get(error.errno or 0, error.strerror or str(error))
        raise ExportError(f"cannot link {file} into {link.parent}: {reason}") from None
