"""Text-to-image checkpoints: the published folder, or the diffusers port's, by safetensors only.

Published: ``config.json`` with ``model*.safetensors``, ``ae_config.json`` and ``ae.safetensors``,
``vision_head_config.json`` and ``vision_head.safetensors``, ``projector.safetensors``, ``tokenizer.json``.
The port keeps the same in one sub-folder a component, each with a ``config.json``, and a ``model_index.json``.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from bitdance_edge.model.checkpoint import SHOWN, read_json, require_matching
from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.tensor_file import StoredTensor, read_header
from bitdance_edge.model.text_config import TextToImageConfig
from bitdance_edge.model.text_to_image import TextToImage


@dataclass(frozen=True)
class Component:
    """Where one module of the model is kept, in either layout."""

    config: str  # of the published folder; empty where the module has none
    weights: str
    ported: str  # sub-folder of the diffusers port
    stored: str  # prefix of its keys in the file
    ours: str  # prefix of its keys in TextToImage


COMPONENTS = {
    "language model": Component("config.json", "model*.safetensors", "text_encoder", "model.", "backbone."),
    "head": Component("vision_head_config.json", "vision_head.safetensors", "diffusion_head", "net.", "head."),
    "autoencoder": Component("ae_config.json", "ae.safetensors", "autoencoder", "", "tokenizer."),
    "projector": Component("", "projector.safetensors", "projector", "", "projector."),
}
# Stored beside what is needed: the output layer over the vocabulary, and tables that are computed here.
UNUSED = ("lm_head.weight", "rotary_emb.inv_freq")
MARKERS = ("vision_head_config.json", "model_index.json")


def is_text_to_image(path: str | Path) -> bool:
    """Whether a checkpoint is a text-to-image folder of either layout."""
    return any((Path(path) / marker).is_file() for marker in MARKERS)


@dataclass(frozen=True)
class TextCheckpoint:
    """A checkpoint whose headers were read and found to be whole: no weights are in memory yet."""

    folder: Path
    config: TextToImageConfig
    tensors: Mapping[str, StoredTensor]  # by the key in TextToImage
    prompt_file: Path  # tokenizer.json

    @classmethod
    def open(cls, folder: str | Path) -> "TextCheckpoint":
        """Read configurations and headers.

        Raises:
            ModelError: a file is missing, truncated or of another model, or its shapes are not the configuration's.
        """
        folder = Path(folder)
        if not is_text_to_image(folder):
            raise ModelError(f"{folder} is no text-to-image checkpoint; it has neither {' nor '.join(MARKERS)}")
        ported = not (folder / MARKERS[0]).is_file()
        language, head, autoencoder = (
            read_json(folder / part.ported / "config.json" if ported else folder / part.config)
            for part in COMPONENTS.values()
            if part.config
        )
        config = TextToImageConfig.from_json(language, head, autoencoder)
        tensors = {}
        for name, part in COMPONENTS.items():
            for key, tensor in _stored_tensors(folder, name, part, ported):
                if not key.endswith(UNUSED):
                    tensors[part.ours + key.removeprefix(part.stored)] = tensor
        with torch.device("meta"):
            wanted = TextToImage(config).state_dict()
        require_matching(wanted, tensors, folder, stored_key)
        prompt_file = folder / "tokenizer" / "tokenizer.json" if ported else folder / "tokenizer.json"
        return cls(folder, config, tensors, prompt_file)

    def load(self, dtype: torch.dtype | None = None) -> TextToImage:
        """The model, ready to sample.

        Args:
            dtype: of all weights; None leaves each as it is stored and maps it from its file, so that a model larger
                than the memory can be opened.
        """
        with torch.device("meta"):
            model = TextToImage(self.config)
        state = {key: tensor.read() for key, tensor in self.tensors.items()}
        if dtype is not None:
            state = {key: value.to(dtype) for key, value in state.items()}
        model.load_state_dict(state, assign=True)
        return model.eval().requires_grad_(False)


def load_text_to_image(folder: str | Path) -> TextToImage:
    """Load a text-to-image checkpoint in float32; errors as for ``TextCheckpoint.open``."""
    return TextCheckpoint.open(folder).load(torch.float32)


def save_text_to_image(
    model: TextToImage, folder: str | Path, tokenizer_json: str, dtype: torch.dtype = torch.float32
) -> None:
    """Write the published folder, each file whole or not at all; ``tokenizer_json`` is the text of that file."""
    folder = Path(folder)
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in model.state_dict().items()}
    configs = {
        "config.json": model.config.language_json(),
        "vision_head_config.json": model.config.head_json(),
        "ae_config.json": model.config.autoencoder_json(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as aside:
            for part in COMPONENTS.values():
                weights = {
                    part.stored + key.removeprefix(part.ours): value
                    for key, value in state.items()
                    if key.startswith(part.ours)
                }
                save_file(weights, Path(aside) / part.weights.replace("*", ""), {"format": "pt"})
            for name, fields in configs.items():
                (Path(aside) / name).write_text(json.dumps(fields, indent=1) + "\n")
            (Path(aside) / "tokenizer.json").write_text(tokenizer_json)
            for file in sorted(Path(aside).iterdir()):
                file.chmod(0o644)
                file.replace(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot write {folder} ({error}); free some space or choose another folder") from None


def stored_key(key: str) -> str:
    """The key of a tensor as its file has it."""
    part = next(part for part in COMPONENTS.values() if key.startswith(part.ours))
    return part.stored + key.removeprefix(part.ours)


def _stored_tensors(folder: Path, name: str, part: Component, ported: bool) -> Iterator[tuple[str, StoredTensor]]:
    folder, pattern = (folder / part.ported, "*.safetensors") if ported else (folder, part.weights)
    files = _shards(folder) if ported or part.weights.startswith("model") else sorted(folder.glob(pattern))
    if not files:
        raise ModelError(f"{folder} has no {pattern}, the weights of the {name}; copy the whole checkpoint again")
    for file in files:
        yield from read_header(file).items()


def _shards(folder: Path) -> list[Path]:
    """The files of a sharded module, all of which its index names."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if not indices:
        return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    weight_map: dict[str, Any] = read_json(indices[0]).get("weight_map", {})
    files = sorted({folder / name for name in weight_map.values()})
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {', '.join(missing[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}: "
            f"{indices[0].name} names {len(files)} files and {len(missing)} are missing; download them again"
        )
    return files
