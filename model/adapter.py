"""A fine-tuned generator stored as its difference from another checkpoint: low-rank additions, and whole weights.

The files and keys are those of PEFT (huggingface.co/docs/peft, "PEFT checkpoint format"); what a class-conditional
generator needs beside them is under ``bitdance`` in ``adapter_config.json``.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.fields import Fields
from bitdance_edge.model.files import moved_into, write_json
from bitdance_edge.model.json_file import read_json
from bitdance_edge.model.lora import LoraLinear, lora_layers, merged
from bitdance_edge.model.tensor_file import StoredTensor, read_header
from bitdance_edge.model.values import require_weights

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
READ_FOR_DIGEST = 2**20  # bytes of each file, at its beginning and at its end


@dataclass(frozen=True)
class MergedTensor(StoredTensor):
    """A stored weight that is read with its low-rank addition."""

    lora_a: StoredTensor
    lora_b: StoredTensor
    scale: float

    def read(self) -> Tensor:
        return merged(super().read(), self.lora_a.read(), self.lora_b.read(), self.scale)


@dataclass(frozen=True)
class Adapter:
    """An adapter whose headers were read; ``base`` is the checkpoint that it changes.

    Attributes:
        variant: of a base without ``config.json``.
        tokenizer: autoencoder weights that replace those of the base.
        class_names: of a class-conditional generator whose classes are its own; None: those of the base.
    """

    folder: Path
    base: Path
    variant: str | None
    tokenizer: str | None
    class_names: tuple[str, ...] | None
    scale: float
    tensors: Mapping[str, StoredTensor]  # by the key of the file, without PREFIX

    @classmethod
    def open(cls, folder: Path) -> "Adapter":
        """Read an adapter, and check that its base is the one that it was trained on.

        Raises:
            ModelError: a file is missing or damaged, or the base is not there or another one.
        """
        source = folder / CONFIG
        fields = Fields(read_json(source), str(source))
        fields.only("peft_type", "LORA")
        rank, alpha = fields.integer("r"), fields.positive("lora_alpha")
        ours = fields.part("bitdance")
        base = Path(fields.text("base_model_name_or_path", ""))
        base = base if base.is_absolute() else folder / base
        if not base.exists():
            raise ModelError(f"{source}: base_model_name_or_path is {base}, which is not there; correct the path")
        if ours.text("base_digest", "") != checkpoint_digest(base):
            raise ModelError(
                f"{source}: {base} is not the checkpoint that this adapter was trained on; correct the path"
            )
        names = ours.left.get("class_names")
        tensors = {key.removeprefix(PREFIX): value for key, value in read_header(folder / WEIGHTS).items()}
        require_weights(tensors, folder / WEIGHTS)
        return cls(
            folder=folder,
            base=base,
            variant=ours.text("variant", "none") if "variant" in ours.left else None,
            tokenizer=ours.text("tokenizer", "none") if "tokenizer" in ours.left else None,
            class_names=None if names is None else ours.texts("class_names"),
            scale=alpha / rank,
            tensors=tensors,
        )

    def applied(self, state: Mapping[str, StoredTensor | Tensor]) -> dict[str, StoredTensor | Tensor]:
        """Return the base's weights, by our keys, with this adapter's changes; stored ones are merged when read.

        Raises:
            ModelError: the adapter has a layer that the base lacks, or of another shape.
        """
        changed = dict(state)
        for key, value in self.tensors.items():
            layer, _, part = key.partition(".lora_")
            if not part:
                changed[key] = value.read() if isinstance(state.get(key), Tensor) else value
                continue
            if part != "A.weight":
                continue
            weight, lora_b = state.get(f"{layer}.weight"), self.tensors.get(f"{layer}.lora_B.weight")
            if weight is None or lora_b is None or (lora_b.shape[0], value.shape[1]) != tuple(weight.shape):
                raise ModelError(f"{self.folder / WEIGHTS}: {layer} does not fit {self.base}; copy the adapter again")
            if isinstance(weight, StoredTensor):
                stored = (weight.file, weight.stored, weight.shape, weight.offset, weight.bytes)
                changed[f"{layer}.weight"] = MergedTensor(*stored, value, lora_b, self.scale)
            else:
                changed[f"{layer}.weight"] = merged(weight, value.read(), lora_b.read(), self.scale)
        return changed


def is_adapter(path: str | Path) -> bool:
    """Return whether a path is the folder of an adapter."""
    return (Path(path) / CONFIG).is_file()


def save_adapter(
    model: nn.Module,
    folder: Path,
    base: Path,
    *,
    dtype: torch.dtype,
    variant: str | None = None,
    tokenizer: str | None = None,
    class_names: tuple[str, ...] | None = None,
) -> None:
    """Write the additions of a model, and the other weights that were trained, each file completely or not at all.

    Args:
        base: the checkpoint that the model was made of; it and ``tokenizer`` are found by their absolute paths.

    Raises:
        ModelError: the folder cannot be written.
    """
    layers = dict(lora_layers(model))
    rank, scale = _of_all(layers)
    weights = {}
    for name, layer in layers.items():
        weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"] = layer.lora_a, layer.lora_b
    added = {f"{name}.{part}" for name in layers for part in ("lora_a", "lora_b")}
    whole = {name: value for name, value in model.named_parameters() if value.requires_grad and name not in added}
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": scale * rank,
        "target_modules": sorted(layers),
        "modules_to_save": sorted(name.rpartition(".")[0] for name in whole),
        "base_model_name_or_path": str(base.resolve()),
        "bitdance": {
            "base_digest": checkpoint_digest(base),
            **({"variant": variant} if variant else {}),
            **({"tokenizer": str(Path(tokenizer).resolve())} if tokenizer else {}),
            **({"class_names": list(class_names)} if class_names is not None else {}),
        },
    }
    stored = {
        PREFIX + name: value.detach().to("cpu", dtype).contiguous() for name, value in {**weights, **whole}.items()
    }
    with moved_into(folder) as unfinished:
        save_file(stored, unfinished / WEIGHTS, {"format": "pt"})
        write_json(unfinished / CONFIG, config)


def checkpoint_digest(path: Path) -> str:
    """Return a SHA-256 of a checkpoint's weight files: of their names, sizes, first and last MiB."""
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as content:
            digest.update(content.read(READ_FOR_DIGEST))
            content.seek(max(0, file.stat().st_size - READ_FOR_DIGEST))
            digest.update(content.read(READ_FOR_DIGEST))
    return digest.hexdigest()


def _of_all(layers: Mapping[str, LoraLinear]) -> tuple[int, float]:
    """The rank and the scale, which all layers share."""
    layer = next(iter(layers.values()))
    return layer.lora_a.shape[0], layer.scale
