"""Text-to-image checkpoints: the published folder or the diffusers port's; weights are safetensors only.

Published: ``config.json`` with ``model.safetensors`` or its shards, ``ae_config.json`` and ``ae.safetensors``,
``vision_head_config.json`` and ``vision_head.safetensors``, ``projector.safetensors``, ``tokenizer.json``.
The port has one sub-folder for each component, with its ``config.json``, and a ``model_index.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from bitdance_edge.model.adapter import CONFIG, Adapter, is_adapter
from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.files import moved_into, require_matching, write_json
from bitdance_edge.model.json_file import read_json
from bitdance_edge.model.ported import TRANSFORMER
from bitdance_edge.model.tensor_file import StoredTensor
from bitdance_edge.model.text_config import TextToImageConfig
from bitdance_edge.model.text_to_image import TextToImage
from bitdance_edge.model.values import require_finite, require_floats
from bitdance_edge.model.weight_files import STEMS, find_weights


@dataclass(frozen=True)
class Component:
    """The files of one module, in either layout."""

    config: str  # in the published folder; empty where the module has none
    stem: str  # of its weights' file names in the published folder
    ported: str  # sub-folder in the diffusers port
    stored: str  # prefix of the keys in the file
    ours: str  # prefix of the keys in TextToImage


COMPONENTS = {
    "language model": Component("config.json", "model", "text_encoder", "model.", "backbone."),
    "head": Component("vision_head_config.json", "vision_head", "diffusion_head", "net.", "head."),
    "autoencoder": Component("ae_config.json", "ae", "autoencoder", "", "tokenizer."),
    "projector": Component("", "projector", "projector", "", "projector."),
}
# Stored and not needed: the output layer over the vocabulary, and tables that are computed here.
UNUSED = ("lm_head.weight", "rotary_emb.inv_freq")
MARKERS = ("vision_head_config.json", "model_index.json")


def is_text_to_image(path: str | Path) -> bool:
    """Return whether a path is a text-to-image folder, of either layout, or an adapter of one."""
    folder = Path(path)
    if is_adapter(folder):
        folder = _base(folder)
    published, ported = ((folder / marker).is_file() for marker in MARKERS)
    return published or (ported and not (folder / TRANSFORMER).is_dir())


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
        if is_adapter(folder):
            adapter = Adapter.open(folder)
            base = cls.open(adapter.base)
            tensors = {
                key: value for key, value in adapter.applied(base.tensors).items() if isinstance(value, StoredTensor)
            }
            return replace(base, folder=folder, tensors=tensors)
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
            for key, tensor in _stored_tensors(folder, name, part, ported).items():
                if not key.endswith(UNUSED):
                    tensors[part.ours + key.removeprefix(part.stored)] = tensor
        with torch.device("meta"):
            wanted = TextToImage(config).state_dict()
        require_matching(wanted, tensors, folder, stored_key)
        for key, tensor in tensors.items():
            require_floats(stored_key(key), tensor, tensor.file)
        prompt_file = folder / "tokenizer" / "tokenizer.json" if ported else folder / "tokenizer.json"
        return cls(folder, config, tensors, prompt_file)

    def load(self, dtype: torch.dtype | None = None) -> TextToImage:
        """Load the model, ready to sample.

        Args:
            dtype: of all weights. None: each keeps its stored type and is mapped from its file, so that a model larger
                than memory can be opened.

        Raises:
            ModelError: a weight has a value that ``dtype`` cannot hold, such as NaN.
        """
        with torch.device("meta"):
            model = TextToImage(self.config)
        if dtype is not None:
            self.require_finite(dtype)
        state = {key: tensor.read() for key, tensor in self.tensors.items()}
        if dtype is not None:
            state = {key: value.to(dtype) for key, value in state.items()}
        model.load_state_dict(state, assign=True)
        return model.eval().requires_grad_(False)

    def require_finite(self, dtype: torch.dtype) -> None:
        """Read all weights and refuse values that ``dtype`` cannot hold.

        Raises:
            ModelError: a value is NaN, infinite or too large; the error names the file and the key in it.
        """
        for key, tensor in self.tensors.items():
            require_finite(stored_key(key), tensor, tensor.file, dtype)


def _base(folder: Path) -> Path:
    """The checkpoint that an adapter names, whether it is there or not."""
    return folder / str(read_json(folder / CONFIG).get("base_model_name_or_path", ""))


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
            save_file(weights, unfinished / f"{part.stem}.safetensors", {"format": "pt"})
        for name, fields in configs.items():
            write_json(unfinished / name, fields)
        (unfinished / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")


def stored_key(key: str) -> str:
    """Return the key in the file for a key of ``TextToImage``."""
    part = next(part for part in COMPONENTS.values() if key.startswith(part.ours))
    return part.stored + key.removeprefix(part.ours)


def _stored_tensors(folder: Path, name: str, part: Component, ported: bool) -> Mapping[str, StoredTensor]:
    folder, stems = (folder / part.ported, STEMS) if ported else (folder, (part.stem,))
    weights = find_weights(folder, stems)
    if weights is None:
        names = " or ".join(f"{stem}.safetensors" for stem in stems)
        raise ModelError(f"{folder} has no {names}, the weights of the {name}; copy the checkpoint again")
    return {key: tensor for key, tensor in weights.read().items() if isinstance(tensor, StoredTensor)}
