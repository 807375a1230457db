"""A checkpoint named ``OWNER/NAME``: which of its repository's files an export reads, and where they are then."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bitdance_edge.runtime import HubError
from bitdance_edge.runtime.bundle.hub import download, is_hub_name

LICENSE = re.compile(r"^license:\s*[\"']?([^\s\"']+)", re.MULTILINE)  # in the front matter of a model card
CARD = ("README.md", "LICENSE*")
# Of a text-to-image model as published, and as ported to diffusers: what model/text_checkpoint.py reads.
PUBLISHED = ("*.json", "model*.safetensors", "ae.safetensors", "vision_head.safetensors", "projector.safetensors")
PARTS = ("text_encoder", "diffusion_head", "autoencoder", "projector")
PORTED = (
    "model_index.json",
    "tokenizer/tokenizer.json",
    *(f"{part}/*.{kind}" for part in PARTS for kind in ("json", "safetensors")),
)


@dataclass(frozen=True)
class Checkpoint:
    """What ``export`` opens: a path, the autoencoder's file where it has one of its own, and where they are from."""

    path: Path
    tokenizer: str | None
    provenance: dict[str, str]


def find_checkpoint(name: str, variant: str | None, tokenizer: str | None, revision: str | None) -> Checkpoint:
    """Find a checkpoint on this machine, or download it where it is named ``OWNER/NAME``.

    Args:
        variant: of a repository of ``.pt`` files: which of them.
        tokenizer: a file here, or one of the repository.

    Raises:
        HubError: it cannot be downloaded, or ``revision`` is given for a checkpoint that is here.
    """
    if not is_hub_name(name):
        if revision is not None:
            raise HubError(f"--revision is of a repository on the Hub, and {name} is a path here; omit it")
        path = Path(name)
        return Checkpoint(path, tokenizer, _license(path if path.is_dir() else path.parent))
    asked = tokenizer if tokenizer and not Path(tokenizer).exists() else None
    usual = [] if variant is None else [weights_file(variant), asked or "ae_d16c32.pt"]
    downloaded = download(name, revision, partial(needed_files, variant=variant, tokenizer=asked), usual)
    pinned = {"hub": downloaded.repository, "hub_revision": downloaded.revision, **_license(downloaded.folder)}
    if variant is None:
        return Checkpoint(downloaded.folder, tokenizer, pinned)
    if asked is not None or tokenizer is None:
        (file,) = (path for path in downloaded.folder.glob(asked or "ae_*.pt"))
        tokenizer = str(file)
    return Checkpoint(downloaded.folder / weights_file(variant), tokenizer, pinned)


def weights_file(variant: str) -> str:
    """The file of a variant in the repository of the published class-conditional models."""
    return f"BitDance_{variant.replace('-', '_')}.pt"


def needed_files(files: Sequence[str], *, variant: str | None, tokenizer: str | None) -> list[str]:
    """Of a repository's files those that an export reads, and the card.

    Raises:
        HubError: they are of no checkpoint, or there are several and ``variant`` does not say which.
    """
    if variant is not None:
        return [*_variant_files(files, variant, tokenizer), *_matching(files, CARD)]
    if "vision_head_config.json" in files:
        patterns = PUBLISHED
    elif "model_index.json" in files:
        patterns = PORTED
    elif "config.json" in files and _matching(files, ("*.safetensors",)):
        patterns = ("config.json", "*.safetensors")
    else:
        weights = _matching(files, ("BitDance_*.pt",))
        known = ", ".join(name.removeprefix("BitDance_").removesuffix(".pt").replace("_", "-") for name in weights)
        raise HubError(
            f"it has several models: choose one with --variant: {known}" if known else "it holds no checkpoint"
        )
    return _matching(files, (*patterns, *CARD))


def _variant_files(files: Sequence[str], variant: str, tokenizer: str | None) -> list[str]:
    weights = weights_file(variant)
    if weights not in files:
        raise HubError(f"it has no {weights} for --variant {variant}; it has {', '.join(_matching(files, ('*.pt',)))}")
    found = _matching(files, (tokenizer or "ae_*.pt",))
    if len(found) != 1:
        raise HubError(
            f"autoencoders there: {', '.join(_matching(files, ('ae_*',))) or 'none'}; choose one by --tokenizer"
        )
    return [weights, *found]


def _matching(files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The files that match a pattern, none of which reaches into a sub-folder that it does not name."""
    return [
        name for name in files if any(fnmatch.fnmatch(name, p) and name.count("/") == p.count("/") for p in patterns)
    ]


def _license(folder: Path) -> dict[str, str]:
    """The licence that the card of a checkpoint names: in its folder, or in the one above."""
    for place in (folder, folder.absolute().parent):
        try:
            card = (place / "README.md").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        front = card.removeprefix("---\n").partition("\n---\n")[0] if card.startswith("---\n") else ""
        if found := LICENSE.search(front):
            return {"license": found[1]}
    return {}
