"""Checkpoints under the key names of the reference, read without executing anything from the file.

A generator is a folder of ``config.json`` and one safetensors file, or an ImageNet ``.pt``; a tokenizer is a
safetensors file with its ``config.json``, or the autoencoder's ``.pt``.
"""

import json
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitdance_edge.model.config import GeneratorConfig, TokenizerConfig
from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.generator import BitDance
from bitdance_edge.model.tokenizer import Tokenizer
from bitdance_edge.model.variants import GENERATORS, TOKENIZERS

# Our module -> the prefix under which the reference keeps its weights; the backbone's keys carry none, so it is last.
PREFIXES = {"tokenizer.": "vae.", "head.": "head.net.", "backbone.": ""}
SHOWN = 4  # keys of each kind that an error lists


class Shaped(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...


def load_generator(path: str | Path, *, variant: str | None = None, tokenizer: str | Path | None = None) -> BitDance:
    """Load a class-conditional generator in float32, ready to sample.

    Args:
        path: a folder with ``config.json`` and one ``.safetensors``; or a ``.safetensors`` or ``.pt`` file.
        variant: one of ``GENERATORS``; needed where no ``config.json`` stands beside the weights.
        tokenizer: autoencoder weights that replace those inside the checkpoint.

    Raises:
        ModelError: nothing there, unreadable, or keys and shapes that are not the configuration's.
    """
    weights, config_file = _locate(Path(path))
    if variant is not None:
        config = _named(variant, GENERATORS)
    elif config_file is not None:
        config = GeneratorConfig.from_json(read_json(config_file))
    else:
        raise ModelError(
            f"{path} has no config.json beside it; name what it is with --variant, one of {', '.join(GENERATORS)}"
        )
    state = {_our_key(key): value for key, value in _read_state(weights, ("ema", "model")).items()}
    if tokenizer is not None:
        replacement = load_tokenizer(tokenizer, config=config.tokenizer).state_dict()
        state.update({f"tokenizer.{key}": value for key, value in replacement.items()})
    with torch.device("meta"):
        model = BitDance(config)
    _assign(model, state, weights, _published_key)
    return model.eval().requires_grad_(False)


def load_tokenizer(path: str | Path, *, variant: str | None = None, config: TokenizerConfig | None = None) -> Tokenizer:
    """Load an autoencoder in float32; arguments and errors as for ``load_generator``.

    An autoencoder's ``.pt`` also keeps what its training needed (discriminator, loss network): only ``encoder.`` and
    ``decoder.`` are read.
    """
    weights, config_file = _locate(Path(path))
    config = config or _tokenizer_config(path, variant, config_file)
    state = {
        key.removeprefix("vae."): value
        for key, value in _read_state(weights, ("state_dict", "ema", "model")).items()
        if key.removeprefix("vae.").startswith(("encoder.", "decoder."))
    }
    with torch.device("meta"):
        tokenizer = Tokenizer(config)
    _assign(tokenizer, state, weights, lambda key: key)
    return tokenizer.eval().requires_grad_(False)


def _tokenizer_config(path: str | Path, variant: str | None, config_file: Path | None) -> TokenizerConfig:
    if variant is not None:
        return _named(variant, TOKENIZERS)
    if config_file is None:
        raise ModelError(
            f"{path} has no config.json beside it; name what it is with --variant, one of {', '.join(TOKENIZERS)}"
        )
    fields = read_json(config_file)
    if "ddconfig" not in fields:
        raise ModelError(f"{config_file} has no 'ddconfig'; it does not describe a tokenizer")
    bits = {"z_channels": fields["latent_dim"]} if "latent_dim" in fields else {}
    return TokenizerConfig.from_json({**bits, **fields["ddconfig"]}, fields.get("gan_decoder", False))


def save_generator(model: BitDance, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``config.json`` and ``model.safetensors`` under the reference's key names, each whole or not at all."""
    _save(
        {_published_key(key): value for key, value in model.state_dict().items()},
        model.config.to_json(),
        Path(folder),
        dtype,
    )


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a tokenizer's ``config.json`` and ``model.safetensors``."""
    config = {"ddconfig": tokenizer.config.to_json(), "gan_decoder": tokenizer.config.gan_decoder}
    _save(tokenizer.state_dict(), config, Path(folder), dtype)


def _our_key(key: str) -> str:
    return next(ours + key.removeprefix(theirs) for ours, theirs in PREFIXES.items() if key.startswith(theirs))


def _published_key(key: str) -> str:
    return next(theirs + key.removeprefix(ours) for ours, theirs in PREFIXES.items() if key.startswith(ours))


def _named(variant: str, table: Mapping[str, Any]) -> Any:
    if variant not in table:
        raise ModelError(f"no variant {variant!r}; there are {', '.join(table)}")
    return table[variant]


def _locate(path: Path) -> tuple[Path, Path | None]:
    """The weights file, and the ``config.json`` that belongs to it if there is one."""
    if path.is_dir():
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.pt"))
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise ModelError(f"{path} must hold exactly one .safetensors (or .pt) file; found {found}")
        weights = files[0]
    elif path.is_file():
        weights = path
    else:
        raise ModelError(f"no checkpoint at {path}; give a folder with config.json and .safetensors, or a .pt file")
    configs = (weights.with_name(f"{weights.stem}_config.json"), weights.with_name("config.json"))
    return weights, next((config for config in configs if config.is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"{path} is missing; the checkpoint is not whole: copy it again")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from None


def _read_state(path: Path, entries: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a file; of a ``.pt``, those under the first of ``entries`` that it has."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix != ".pt":
            raise ModelError(f"{path}: checkpoints are .safetensors or .pt files")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path} holds more than tensors and is not opened ({reason}); ask for safetensors") from None
    except (SafetensorError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{path} cannot be read ({reason}); it may be truncated: compare its size, copy it again"
        ) from None
    for entry in entries:
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            return content[entry]
    found = sorted(content)[:SHOWN] if isinstance(content, dict) else type(content).__name__
    raise ModelError(f"{path} has none of the entries {', '.join(entries)}; it holds {found}")


def _assign(module: torch.nn.Module, state: dict[str, Tensor], path: Path, shown: Callable[[str], str]) -> None:
    """Put ``state`` into ``module`` in float32, or say in one error how the two differ."""
    try:
        require_matching(module.state_dict(), state, path, shown)
    except ModelError as error:
        hint = _likely_variant(state) if isinstance(module, BitDance) else None
        advice = f"\nIts sizes are those of {hint}: try --variant {hint}" if hint else ""
        raise ModelError(f"{error}{advice}") from None
    module.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)


def require_matching(
    wanted: Mapping[str, Shaped], state: Mapping[str, Shaped], path: Path, shown: Callable[[str], str]
) -> None:
    """Refuse, in one error, weights that are missing, unexpected or of another shape.

    Args:
        shown: our key of a tensor to the one in the file.
    """
    missing = [f"{shown(key)} {_shape(wanted[key])}" for key in wanted if key not in state]
    unexpected = [f"{shown(key)} {_shape(state[key])}" for key in state if key not in wanted]
    reshaped = [
        f"{shown(key)} {_shape(state[key])}, expected {_shape(wanted[key])}"
        for key in wanted
        if key in state and tuple(state[key].shape) != tuple(wanted[key].shape)
    ]
    complaints = [
        f"{len(keys)} {kind}: {'; '.join(keys[:SHOWN])}{'; ...' if len(keys) > SHOWN else ''}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if complaints:
        raise ModelError(f"{path} is not a checkpoint of this configuration.\n" + "\n".join(complaints))


def _shape(tensor: Shaped) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def _likely_variant(state: dict[str, Tensor]) -> str | None:
    """The published variant whose keys and shapes are exactly these."""
    shapes = {key: value.shape for key, value in state.items()}
    for name, config in GENERATORS.items():
        with torch.device("meta"):
            wanted = {key: value.shape for key, value in BitDance(config).state_dict().items()}
        if wanted == shapes:
            return name
    return None


def _save(state: dict[str, Tensor], config: dict[str, Any], folder: Path, dtype: torch.dtype) -> None:
    weights = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as aside:
            save_file(weights, Path(aside) / "model.safetensors")
            (Path(aside) / "model.safetensors").chmod(0o644)
            (Path(aside) / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            for name in ("model.safetensors", "config.json"):
                (Path(aside) / name).replace(folder / name)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot write {folder} ({error}); free some space or choose another folder") from None
