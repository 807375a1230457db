"""Which files hold a module's weights: a whole file, shards with an index or without, or one named by its precision.

File names are those that transformers and diffusers write; as there, a whole file takes precedence over shards.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.fields import Fields
from bitdance_edge.model.files import SHOWN
from bitdance_edge.model.json_file import read_json, shown
from bitdance_edge.model.pickle_file import PICKLE, ZIP, read_pickled
from bitdance_edge.model.placeholder import require_content
from bitdance_edge.model.tensor_file import StoredTensor, read_header

STEMS = ("model", "diffusion_pytorch_model")
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
ENTRIES = ("ema", "model", "state_dict", "module")  # of a pickled file, the first that there is

Weight = Tensor | StoredTensor


@dataclass(frozen=True)
class WeightFiles:
    """The files of a module's weights; ``index`` says which of them has a key, where an index does."""

    files: tuple[Path, ...]
    index: Mapping[str, Path] = field(default_factory=dict)

    def read(self, entries: Sequence[str] = ENTRIES) -> dict[str, Weight]:
        """Return all weights by their keys, still in their files; what wraps a module in training is off the keys.

        Raises:
            ModelError: a file is missing or damaged, or two weights have one key.
        """
        contents = {file: _read_file(file, entries) for file in self.files}
        found: dict[str, Weight] = {}
        for file, weights in contents.items():
            for key, weight in weights.items():
                if self.index.get(key, file) != file:
                    continue
                if key in found:
                    raise ModelError(f"{file}: {key} is in another file too; copy the checkpoint again")
                found[key] = weight
        if lost := [key for key, file in self.index.items() if key not in contents[file]]:
            raise ModelError(
                f"{self.index[lost[0]]} has no {lost[0]}, which its index names; copy the checkpoint again"
            )
        return _unwrapped(found, self.files[0])


def find_weights(folder: Path, stems: Sequence[str] = STEMS) -> WeightFiles | None:
    """Find a module's safetensors files in a folder, by the ``stems`` that their names begin with; None: none there.

    Raises:
        ModelError: shards are missing, or an index names no files or others than the folder's own.
    """
    for stem in stems:
        if _is_there(whole := folder / f"{stem}.safetensors"):
            return WeightFiles((whole,))
    for stem in stems:
        for pattern in (f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.*.json"):
            if indices := sorted(folder.glob(pattern)):
                return _indexed(indices[0])
    for stem in stems:
        if shards := _numbered(folder, stem):
            return WeightFiles(shards)
        if len(named := sorted(folder.glob(f"{stem}.*.safetensors"))) == 1:  # such as model.fp16.safetensors
            return WeightFiles((named[0],))
    return None


def only_weights(folder: Path) -> WeightFiles:
    """Find the weights of a folder that holds one module: as ``find_weights`` does, or the only file of weights.

    Raises:
        ModelError: there is none or more than one, or as ``find_weights`` raises.
    """
    if (found := find_weights(folder)) is not None:
        return found
    for suffixes in (SUFFIXES[:1], SUFFIXES[1:]):
        files = sorted(file for file in folder.iterdir() if file.suffix in suffixes)
        if len(files) == 1:
            return WeightFiles((files[0],))
        if files:
            names = ", ".join(file.name for file in files[-SHOWN:])
            raise ModelError(f"{folder} must hold one file of weights; found {len(files)}: {names}: name one of them")
    exported = (folder / "bundle.json").is_file()
    instead = (
        "it is a bundle: give the checkpoint that it was exported from" if exported else "give a checkpoint's folder"
    )
    raise ModelError(f"{folder} must hold a file of weights ({', '.join(SUFFIXES)}), and holds none; {instead}")


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()  # a link to a missing file is an error of its own, not no file


def _numbered(folder: Path, stem: str) -> tuple[Path, ...]:
    """The shards of a module without an index, all of them."""
    name = re.compile(rf"{re.escape(stem)}(?:\.\w+)?-(\d+)-of-(\d+)(?:\.\w+)?\.safetensors")
    shards = {file: match for file in sorted(folder.iterdir()) if (match := name.fullmatch(file.name))}
    if not shards:
        return ()
    count = max(int(match[2]) for match in shards.values())
    if {int(match[1]) for match in shards.values()} != set(range(1, count + 1)) or len(shards) != count:
        raise ModelError(f"{folder} has {len(shards)} of {count} files of {stem}; download the others")
    return tuple(shards)


def _indexed(index: Path) -> WeightFiles:
    folder = index.parent
    weight_map = Fields(read_json(index), str(index)).part("weight_map").left
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index}: weight_map.{key} is {shown(name)}; it must be the name of a file beside it")
    if not weight_map:
        raise ModelError(f"{index} names no weights; copy it again")
    files = tuple(folder / name for name in sorted(set(weight_map.values())))
    if missing := [file.name for file in files if not _is_there(file)]:
        raise ModelError(
            f"{folder} lacks {', '.join(missing[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}: "
            f"{index.name} names {len(files)} files and {len(missing)} are missing; download them again"
        )
    return WeightFiles(files, {key: folder / name for key, name in weight_map.items()})


def _read_file(file: Path, entries: Sequence[str]) -> Mapping[str, Weight]:
    """Read a file by what it holds, whatever its name."""
    start = require_content(file)
    # A safetensors file begins with the length of its header, whose first byte may be any.
    if start[4:9] == b"\0\0\0\0{":
        return read_header(file)
    if start.startswith((ZIP, PICKLE)):
        return read_pickled(file, entries)
    if file.suffix == SUFFIXES[0]:
        return read_header(file)
    raise ModelError(
        f"{file} is not a checkpoint, which is a .safetensors or .pt file; it may be damaged: compare its size, copy "
        "it again"
    )


def _unwrapped(weights: Mapping[str, Weight], file: Path) -> dict[str, Weight]:
    """Take off the keys what DistributedDataParallel (module.) and torch.compile (_orig_mod.) put on them."""
    found: dict[str, Weight] = {}
    for key, weight in weights.items():
        plain = key.replace("_orig_mod.", "")
        while plain.startswith("module."):
            plain = plain.removeprefix("module.")
        if plain in found:
            raise ModelError(f"{file} has {plain} twice, once as {key}; save one model's weights alone")
        found[plain] = weight
    return found
