"""Text-to-image checkpoints: the published folder or the diffusers port's; weights are safetensors only.

Published: ``config.json`` with ``model*.safetensors``, ``ae_config.json`` and ``ae.safetensors``,
``vision_head_config.json`` and ``vision_head.safetensors``, ``projector.safetensors``, ``tokenizer.json``.
The port has one sub-folder for each component, with its ``config.json``, and a ``model_index.json``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.fields import Fields, read_json
from bitdance_edge.model.files import SHOWN, moved_into, require_matching, write_json
from bitdance_edge.model.tensor_file import StoredTensor, read_header
from bitdance_edge.model.text_config import TextToImageConfig
from bitdance_edge.model.text_to_image import TextToImage


@dataclass(frozen=True)
class Component:
    """The files of one module, in either layout."""

    config: str  # in the published folder; empty where the module has none
    weights: str  # in the published folder; may be a pattern
    ported: str  # sub-folder in the diffusers port
    stored: str  # prefix of the keys in the file
    ours: str  # prefix of the keys in TextToImage


COMPONENTS = {
    "language model": Component("config.json", "model*.safetensors", "text_encoder", "model.", "backbone."),
    "head": Component("vision_head_config.json", "vision_head.safetensors", "diffusion_head", "net.", "head."),
    "autoencoder": Component("ae_config.json", "ae.safetensors", "autoencoder", "", "tokenizer."),
    "projector": Component("", "projector.safetensors", "projector", "", "projector."),
}
# Stored and not needed: the output layer over the vocabulary, and tables that are computed here.
UNUSED = ("lm_head.weight", "rotary_emb.inv_freq")
MARKERS = ("vision_head_config.json", "model_index.json")


def is_text_to_image(path: str | Path) -> bool:
    """Return whether a path is a text-to-image folder, of either layout."""
    return any((Path(path) / marker).is_file() for marker in MARKERS)


@dataclass(frozen=True)
class TextCheckpoint:
    """A checkpoint whose headers were read and checked; its weights are not in memory yet."""

    folder: Path
    config: TextToImageConfig
    tensors: Mapping[str, StoredTensor]  # by the key in TextToImage
    prompt_file: Path  # tokenizer.json

    @classmethod
    def open(cls, folder: str | Path) -> "TextCheckpoint":
        """Read configurations and headers.

        Raises:
            ModelError: a file is missing, truncated or of another model, or shapes do not match the configuration.
        """
        folder = Path(folder)
        if not is_text_to_image(folder):
            raise ModelError(f"{folder} is not a text-to-image checkpoint; it has neither {' nor '.join(MARKERS)}")
        ported = not (folder / MARKERS[0]).is_file()
        language, head, autoencoder = (
            folder / part.ported / "config.json" if ported else folder / part.config
            for part in COMPONENTS.values()
            if part.config
        )
        config = TextToImageConfig.from_json(
            read_json(language),
            read_json(head),
            read_json(autoencoder),
            (str(language), str(head), str(autoencoder)),
        )
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
        """Load the model, ready to sample.

        Args:
            dtype: of all weights. None: each keeps its stored type and is mapped from its file, so that a model larger
                than memory can be opened.
        """
        with torch.device("meta"):
            model = TextToImage(self.config)
        state = {key: tensor.read() for key, tensor in self.tensors.items()}
        if dtype is not None:
            state = {key: value.to(dtype) for key, value in state.items()}
        model.load_state_dict(state, assign=True)
        return model.eval().requires_grad_(False)


def load_text_to_image(folder: str | Path) -> TextToImage:
    """Load a text-to-image checkpoint in float32; errors are those of ``TextCheckpoint.open``."""
    return TextCheckpoint.open(folder).load(torch.float32)


def save_text_to_image(
    model: TextToImage, folder: str | Path, tokenizer_json: str, dtype: torch.dtype = torch.float32
) -> None:
    """Write the published folder, each file completely or not at all; ``tokenizer_json`` is the text of that file.

    Raises:
        ModelError: the folder cannot be written.
    """
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in model.state_dict().items()}
    configs = {
        "config.json": model.config.language_json(),
        "vision_head_config.json": model.config.head_json(),
        "ae_config.json": model.config.autoencoder_json(),
    }
    with moved_into(Path(folder)) as unfinished:
        for part in COMPONENTS.values():
            weights = {
                part.stored + key.removeprefix(part.ours): value
                for key, value in state.items()
                if key.startswith(part.ours)
            }
            save_file(weights, unfinished / part.weights.replace("*", ""), {"format": "pt"})
        for name, fields in configs.items():
            write_json(unfinished / name, fields)
        (unfinished / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")


def stored_key(key: str) -> str:
    """Return the key in the file for a key of ``TextToImage``."""
    part = next(part for part in COMPONENTS.values() if key.startswith(part.ours))
    return part.stored + key.removeprefix(part.ours)


def _stored_tensors(folder: Path, name: str, part: Component, ported: bool) -> Iterator[tuple[str, StoredTensor]]:
    folder, pattern = (folder / part.ported, "*.safetensors") if ported else (folder, part.weights)
    files = _shards(folder) if ported or part.weights.startswith("model") else sorted(folder.glob(pattern))
    if not files:
        raise ModelError(f"{folder} has no {pattern}, the weights of the {name}; copy the checkpoint again")
    for file in files:
        yield from read_header(file).items()


def _shards(folder: Path) -> list[Path]:
    """The weight files of a module: those that its index names, or the only one."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if not indices:
        return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    weight_map = Fields(read_json(indices[0]), str(indices[0])).part("weight_map").left
    files = sorted({folder / str(name) for name in weight_map.values()})
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {', '.join(missing[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}: "
            f"{indices[0].name} names {len(files)} files and {len(missing)} are missing; download them again"
        )
    return files
