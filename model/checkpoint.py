"""Class-conditional checkpoints under the reference's key names, read without executing anything from the file.

A generator is a folder of ``config.json`` and one safetensors file, or an ImageNet ``.pt``; a tokenizer is a
safetensors file with its ``config.json``, or the autoencoder's ``.pt``.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitdance_edge.model.class_config import GeneratorConfig
from bitdance_edge.model.config import TokenizerConfig
from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.fields import read_json
from bitdance_edge.model.files import SHOWN, moved_into, require_matching, write_json
from bitdance_edge.model.generator import BitDance
from bitdance_edge.model.tokenizer import Tokenizer
from bitdance_edge.model.variants import GENERATORS, TOKENIZERS

# Our prefix of a key -> the reference's; the backbone's keys have none there, so it comes last.
PREFIXES = {"tokenizer.": "vae.", "head.": "head.net.", "backbone.": ""}


def load_generator(path: str | Path, *, variant: str | None = None, tokenizer: str | Path | None = None) -> BitDance:
    """Load a class-conditional generator in float32, ready to sample.

    Args:
        path: a folder with ``config.json`` and one ``.safetensors``, or a ``.safetensors`` or ``.pt`` file.
        variant: one of ``GENERATORS``; needed where there is no ``config.json`` next to the weights.
        tokenizer: autoencoder weights that replace those of the checkpoint.

    Raises:
        ModelError: the checkpoint is missing or unreadable, or its keys and shapes do not match the configuration.
    """
    weights, config_file = _locate(Path(path))
    if variant is not None:
        config = _named(variant, GENERATORS)
    elif config_file is not None:
        config = GeneratorConfig.from_json(read_json(config_file), str(config_file))
    else:
        raise ModelError(f"{path} has no config.json next to it; give --variant, one of {', '.join(GENERATORS)}")
    state = {_our_key(key): value for key, value in _read_state(weights, ("ema", "model")).items()}
    if tokenizer is not None:
        replacement = load_tokenizer(tokenizer, config=config.tokenizer).state_dict()
        state.update({f"tokenizer.{key}": value for key, value in replacement.items()})
    with torch.device("meta"):
        model = BitDance(config)
    _assign(model, state, weights, _published_key)
    return model.eval().requires_grad_(False)


def load_tokenizer(path: str | Path, *, variant: str | None = None, config: TokenizerConfig | None = None) -> Tokenizer:
    """Load an autoencoder in float32; arguments and errors are those of ``load_generator``.

    An autoencoder's ``.pt`` also holds discriminator and loss network; only ``encoder.`` and ``decoder.`` are read.
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
        raise ModelError(f"{path} has no config.json next to it; give --variant, one of {', '.join(TOKENIZERS)}")
    return TokenizerConfig.from_json(read_json(config_file), str(config_file))


def save_generator(model: BitDance, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write ``config.json`` and ``model.safetensors`` under the reference's key names, each completely or not at all.

    Raises:
        ModelError: the folder cannot be written.
    """
    _save(
        {_published_key(key): value for key, value in model.state_dict().items()},
        model.config.to_json(),
        Path(folder),
        dtype,
    )


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a tokenizer's ``config.json`` and ``model.safetensors``; errors are those of ``save_generator``."""
    _save(tokenizer.state_dict(), tokenizer.config.to_json(), Path(folder), dtype)


def _our_key(key: str) -> str:
    return next(ours + key.removeprefix(theirs) for ours, theirs in PREFIXES.items() if key.startswith(theirs))


def _published_key(key: str) -> str:
    return next(theirs + key.removeprefix(ours) for ours, theirs in PREFIXES.items() if key.startswith(ours))


def _named(variant: str, table: Mapping[str, Any]) -> Any:
    if variant not in table:
        raise ModelError(f"no variant {variant!r}; there are {', '.join(table)}")
    return table[variant]


def _locate(path: Path) -> tuple[Path, Path | None]:
    """The weights file, and its ``config.json`` if there is one."""
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


def _read_state(path: Path, entries: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a file; of a ``.pt``, those under the first of ``entries`` that it has."""
    if path.suffix not in (".safetensors", ".pt"):
        raise ModelError(f"{path} is not a checkpoint; checkpoints are .safetensors or .pt files")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{path} holds more than tensors and is not opened ({reason}); use a .safetensors file"
        ) from None
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}; check its permissions and the disk"
        ) from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{path} cannot be read ({reason}); it may be truncated: compare its size, copy it again"
        ) from None
    for entry in entries:
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            return content[entry]
    found = sorted(content)[:SHOWN] if isinstance(content, dict) else type(content).__name__
    raise ModelError(f"{path} has none of the entries {', '.join(entries)}; it holds {found}")


def _assign(module: torch.nn.Module, state: dict[str, Tensor], path: Path, published: Callable[[str], str]) -> None:
    """Load ``state`` into ``module`` in float32, or raise one error with all differences."""
    try:
        require_matching(module.state_dict(), state, path, published)
    except ModelError as error:
        hint = _likely_variant(state) if isinstance(module, BitDance) else None
        advice = f"\nKeys and shapes are those of {hint}: try --variant {hint}" if hint else ""
        raise ModelError(f"{error}{advice}") from None
    module.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)


def _likely_variant(state: dict[str, Tensor]) -> str | None:
    """The published variant with exactly these keys and shapes."""
    shapes = {key: value.shape for key, value in state.items()}
    for name, config in GENERATORS.items():
        with torch.device("meta"):
            wanted = {key: value.shape for key, value in BitDance(config).state_dict().items()}
        if wanted == shapes:
            return name
    return None


def _save(state: dict[str, Tensor], config: dict[str, Any], folder: Path, dtype: torch.dtype) -> None:
    weights = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    with moved_into(folder) as unfinished:
        save_file(weights, unfinished / "model.safetensors")
        write_json(unfinished / "config.json", config)
