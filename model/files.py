"""What both kinds of checkpoint share: comparing keys and shapes, and writing a folder of files."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from bitdance_edge.model.errors import ModelError
from bitdance_edge.storage import temporary

SHOWN = 4  # keys of each kind that an error lists


class HasShape(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...


def require_matching(
    wanted: Mapping[str, HasShape], state: Mapping[str, HasShape], path: Path, published: Callable[[str], str]
) -> None:
    """Compare the keys and shapes of a checkpoint with those wanted.

    Args:
        published: returns the key in the file for one of ours.

    Raises:
        ModelError: weights are missing, unexpected or of another shape; one error lists all kinds.
    """
    missing = [f"{published(key)} {_shape(wanted[key])}" for key in wanted if key not in state]
    unexpected = [f"{published(key)} {_shape(state[key])}" for key in state if key not in wanted]
    reshaped = [
        f"{published(key)} {_shape(state[key])}, expected {_shape(wanted[key])}"
        for key in wanted
        if key in state and tuple(state[key].shape) != tuple(wanted[key].shape)
    ]
    complaints = [
        f"{len(keys)} {kind}: {'; '.join(keys[:SHOWN])}{'; ...' if len(keys) > SHOWN else ''}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if complaints:
        raise ModelError(f"{path} does not match its configuration: {'; '.join(complaints)}")


def _shape(tensor: HasShape) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


@contextmanager
def moved_into(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to write to; its files are moved into ``folder`` at the end, so that none is incomplete.

    Raises:
        ModelError: the folder cannot be made or written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary(folder, Path.mkdir) as unfinished:
            yield unfinished
            for file in sorted(unfinished.iterdir()):
                file.chmod(0o644)
                file.replace(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write {folder} ({error}); choose a folder that you may write to, on a disk with enough space"
        ) from None


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
