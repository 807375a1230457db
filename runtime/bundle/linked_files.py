"""Files of weights that are symbolic links, as in a model hub's cache: ONNX Runtime reads weights below one folder.

A graph that is opened from memory names that folder (``session.model_external_initializers_file_folder_path``).
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from bitdance_edge.runtime.bundle.module_paths import Entry

LOCATION = "location"


def has_links(external: Iterable[Sequence[Entry]], folder: Path) -> bool:
    """Return whether a file of weights in ``folder`` is a link, by tensors' ``external_data``."""
    return any((folder / location).is_symlink() for location in _locations(external))


def follow_links(external: Iterable[Sequence[Entry]], folder: Path) -> Path:
    """Rewrite tensors' ``external_data`` to where their files are; return the folder that the paths start from."""
    external = list(external)
    if not _locations(external):
        return folder
    real = {location: (folder / location).resolve() for location in _locations(external)}
    root = Path(os.path.commonpath([path.parent for path in real.values()]))
    for entries in external:
        for entry in entries:
            if entry.key == LOCATION:
                entry.value = real[entry.value].relative_to(root).as_posix()
    return root


def _locations(external: Iterable[Sequence[Entry]]) -> set[str]:
    return {entry.value for entries in external for entry in entries if entry.key == LOCATION}
