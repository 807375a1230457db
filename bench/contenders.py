"""What is compared: bundles on this runtime, their graphs on other runtimes, and PyTorch on the checkpoint."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitdance_edge.bench.errors import BenchError
from bitdance_edge.bench.peers import OPENVINO, OURS, PEERS, require_openvino
from bitdance_edge.runtime.bundle.manifest import Bundle, sha256

TORCH = {"torch": "PyTorch eager", "torch-compile": "torch.compile"}
AGAINST = TORCH | PEERS


@dataclass(frozen=True, kw_only=True)
class Contender:
    """``kind`` is ``OURS`` or one of ``AGAINST``; ``source`` a bundle's folder, or for PyTorch a checkpoint."""

    name: str
    kind: str
    source: str

    @property
    def runs_a_bundle(self) -> bool:
        """Whether it runs the graphs of a bundle."""
        return self.kind not in TORCH

    @property
    def file_name(self) -> str:
        return "".join(c if c.isalnum() or c in "-_" else "_" for c in self.name)


def parse_against(text: str) -> list[str]:
    """Read kinds from ``torch,torch-compile``.

    Raises:
        BenchError: there is no kind, an unknown one, none of PyTorch, or a library is not installed.
    """
    kinds = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not kinds or (set(kinds) - AGAINST.keys()):
        raise BenchError(f"--against is {text!r}; it must be one or more of {', '.join(AGAINST)}, comma-separated")
    if TORCH.keys().isdisjoint(kinds):
        raise BenchError(
            f"--against is {text!r}, without PyTorch, whose tokens the others' are compared with: add torch or "
            "torch-compile"
        )
    if not set(OPENVINO).isdisjoint(kinds):
        require_openvino()
    if importlib.util.find_spec("torch") is None:
        raise BenchError(
            "torch is not installed, and --against needs it: pip install torch==2.13.0 'bitdance-edge[bench]'"
        )
    return kinds


def contenders(bundles: Sequence[Bundle], kinds: Sequence[str], checkpoint: Path) -> list[Contender]:
    """List the contenders in the order of their turns: bundles first. Other runtimes get the graphs of the first.

    Raises:
        BenchError: a bundle is given twice.
    """
    names = [bundle.name for bundle in bundles]
    if len(set(names)) < len(names):
        names = [str(bundle.folder) for bundle in bundles]
    if len(set(names)) < len(names):
        raise BenchError(f"a bundle is given twice: {', '.join(names)}; give each once")
    ours = [Contender(name=n, kind=OURS, source=str(b.folder)) for n, b in zip(names, bundles, strict=True)]
    sources = {kind: str(checkpoint if kind in TORCH else bundles[0].folder) for kind in kinds}
    return [*ours, *(Contender(name=AGAINST[kind], kind=kind, source=sources[kind]) for kind in kinds)]


def require_one_model(bundles: Sequence[Bundle]) -> None:
    """Refuse bundles of different models or sampling.

    Raises:
        BenchError: they differ.
    """
    first = bundles[0]
    for other in bundles[1:]:
        if (other.model, other.sampling) != (first.model, first.sampling) or _origin(other) != _origin(first):
            raise BenchError(
                f"{other.folder} and {first.folder} are not of one model and checkpoint; run "
                "bitdance-edge bench for each of them"
            )


def _origin(bundle: Bundle) -> Any:
    known = bundle.provenance
    return known.get("checkpoint_sha256") or known.get("checkpoint")


def find_checkpoint(bundle: Bundle, given: str | None) -> Path:
    """Find the checkpoint that a bundle was exported from: as given, or by name next to the bundle or in checkpoints/.

    Raises:
        BenchError: none is found, or its weights are not those that the bundle's manifest states.
    """
    name, digest = bundle.provenance.get("checkpoint"), bundle.provenance.get("checkpoint_sha256")
    if given is not None:
        path = Path(given)
        if not _weights(path).is_file():
            raise BenchError(
                f"no checkpoint at {path}; --checkpoint names the folder that the bundle was exported from"
            )
        if digest is not None and sha256(_weights(path)) != digest:
            raise BenchError(
                f"{path} holds other weights than {bundle.folder} was exported from ({name}, SHA-256 "
                f"{str(digest)[:12]}...)"
                ": name that checkpoint, or export the bundle again"
            )
        return path
    if isinstance(name, str) and (digest is not None or "checkpoint_bytes" in bundle.provenance):
        folder = bundle.folder.absolute()
        places = [Path("checkpoints"), folder.parent, folder.parent.parent / "checkpoints", folder.parent.parent]
        for path in (place / name for place in places):
            if _weights(path).is_file() and (digest is None or sha256(_weights(path)) == digest):
                return path
    raise BenchError(
        f"the checkpoint that {bundle.folder} was exported from ({name or 'unknown'}) is not found; "
        "name it with --checkpoint FOLDER"
    )


def _weights(path: Path) -> Path:
    return next(path.glob("*.safetensors"), path) if path.is_dir() else path
