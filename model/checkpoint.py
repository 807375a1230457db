"""Class-conditional checkpoints under the reference's key names, read without executing anything from the file.

A generator is a folder of ``config.json`` and safetensors, an ImageNet ``.pt``, what the reference's trainer saves, or
a variant of the diffusers port (a folder with ``transformer/``), or an adapter (``adapter.py``), which is merged into
its base; a tokenizer is a safetensors file with its ``config.json``, or the autoencoder's ``.pt``.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bitdance_edge.model.adapter import CONFIG, WEIGHTS, Adapter, is_adapter
from bitdance_edge.model.class_config import GeneratorConfig
from bitdance_edge.model.config import TokenizerConfig
from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.files import moved_into, require_matching, write_json
from bitdance_edge.model.generator import BitDance
from bitdance_edge.model.json_file import read_json
from bitdance_edge.model.ported import TRANSFORMER, is_ported, ported_generator, require_variant_folder
from bitdance_edge.model.tokenizer import Tokenizer
from bitdance_edge.model.values import require_weights
from bitdance_edge.model.variants import GENERATORS, TOKENIZERS
from bitdance_edge.model.weight_files import ENTRIES, Weight, WeightFiles, only_weights

# Our prefix of a key -> the reference's; the backbone's keys have none there, so it comes last.
PREFIXES = {"tokenizer.": "vae.", "head.": "head.net.", "backbone.": ""}
# What other programs put before every key of a generator.
WRAPPERS = ("model.", "runtime_model.")
# Of a generator's config.json, beside those of its autoencoder.
GENERATOR_KEYS = {"dim", "n_layer", "diff_dim"}
TOKENIZER_ENTRIES = ("state_dict", "ema", "model", "module")


def load_generator(path: str | Path, *, variant: str | None = None, tokenizer: str | Path | None = None) -> BitDance:
    """Load a class-conditional generator in float32, ready to sample.

    Args:
        path: a folder with ``config.json`` and its weights, or a file of weights.
        variant: one of ``GENERATORS``; needed where there is no ``config.json`` next to the weights.
        tokenizer: autoencoder weights that replace those of the checkpoint.

    Raises:
        ModelError: the checkpoint is missing or unreadable, its keys and shapes do not match the configuration, or a
            weight is not a finite floating-point number.
    """
    path = _path(path)
    if is_adapter(path):
        return _adapted_generator(Adapter.open(Path(path)), tokenizer)
    weights, config_file = locate(Path(path))
    if variant is not None:
        config = _named(variant, GENERATORS)
    elif config_file is not None:
        values = read_json(config_file)
        read = ported_generator if is_ported(values) else GeneratorConfig.from_json
        config = read(values, str(config_file))
    else:
        raise ModelError(f"{path} has no config.json next to it; give --variant, one of {', '.join(GENERATORS)}")
    state = {_our_key(key): value for key, value in _bare(weights.read(ENTRIES)).items()}
    if tokenizer is not None:
        replacement = load_tokenizer(tokenizer, config=config.tokenizer).state_dict()
        state.update({f"tokenizer.{key}": value for key, value in replacement.items()})
    with torch.device("meta"):
        model = BitDance(config)
    _assign(model, state, weights.files[0], _published_key)
    return model.eval().requires_grad_(False)


def _adapted_generator(adapter: Adapter, tokenizer: str | Path | None) -> BitDance:
    base = load_generator(adapter.base, variant=adapter.variant, tokenizer=tokenizer or adapter.tokenizer)
    config = base.config
    if (names := adapter.class_names) is not None:
        config = replace(config, class_names=names, num_classes=len(names))
    with torch.device("meta"):
        model = BitDance(config)
    _assign(model, adapter.applied(base.state_dict()), adapter.folder / WEIGHTS, lambda key: key)
    return model.eval().requires_grad_(False)


def load_tokenizer(path: str | Path, *, variant: str | None = None, config: TokenizerConfig | None = None) -> Tokenizer:
    """Load an autoencoder in float32; arguments and errors are those of ``load_generator``.

    An autoencoder's ``.pt`` also holds discriminator and loss network; only ``encoder.`` and ``decoder.`` are read.
    """
    weights, config_file = locate(_path(path))
    state = {
        key.removeprefix("vae."): value
        for key, value in _bare(weights.read(TOKENIZER_ENTRIES)).items()
        if key.removeprefix("vae.").startswith(("encoder.", "decoder."))
    }
    if config is None and (variant or config_file):
        config = _tokenizer_config(variant, config_file)
    config = config or _known_tokenizer(state, weights.files[0])
    with torch.device("meta"):
        tokenizer = Tokenizer(config)
    _assign(tokenizer, state, weights.files[0], lambda key: key)
    return tokenizer.eval().requires_grad_(False)


def locate(path: Path) -> tuple[WeightFiles, Path | None]:
    """Find a checkpoint's files of weights, and its ``config.json`` if there is one.

    Raises:
        ModelError: there is no checkpoint, or it is not whole.
    """
    if is_adapter(path):
        return WeightFiles((path / WEIGHTS,)), path / CONFIG
    if path.is_dir():
        require_variant_folder(path)
        folder = path / TRANSFORMER if (path / TRANSFORMER).is_dir() else path
        weights = only_weights(folder)
    elif path.exists() or path.is_symlink():
        weights = WeightFiles((path,))
    else:
        raise ModelError(f"no checkpoint at {path}; give a folder with config.json and .safetensors, or a .pt file")
    file = weights.files[0]
    configs = (file.with_name(f"{file.stem}_config.json"), file.with_suffix(".json"), file.with_name("config.json"))
    return weights, next((config for config in configs if config.exists() or config.is_symlink()), None)


def is_tokenizer(path: Path, variant: str | None = None) -> bool:
    """Whether a checkpoint is an autoencoder alone, by its variant, its JSON, or the names of its weights.

    Raises:
        ModelError: there is no checkpoint, or it cannot be read.
    """
    if variant is not None:
        return variant in TOKENIZERS
    if is_adapter(path):
        return False
    weights, config_file = locate(path)
    if config_file is not None:
        values = read_json(config_file)
        return "ddconfig" in values and not GENERATOR_KEYS & values.keys()
    keys = [key.removeprefix("vae.") for key in _bare(weights.read(TOKENIZER_ENTRIES))]
    return any(key.startswith("decoder.") for key in keys) and not any(key.startswith("head.") for key in keys)


def _tokenizer_config(variant: str | None, config_file: Path | None) -> TokenizerConfig:
    if variant is not None or config_file is None:
        return _named(str(variant), TOKENIZERS)
    return TokenizerConfig.from_json(read_json(config_file), str(config_file))


def _known_tokenizer(state: Mapping[str, Weight], file: Path) -> TokenizerConfig:
    """The published configuration whose weights have these names and shapes.

    Raises:
        ModelError: none has.
    """
    shapes = {key: value.shape for key, value in state.items()}
    for config in TOKENIZERS.values():
        with torch.device("meta"):
            if {key: value.shape for key, value in Tokenizer(config).state_dict().items()} == shapes:
                return config
    raise ModelError(
        f"{file} has no JSON beside it and is not {', '.join(TOKENIZERS)}, whose configuration is known without: "
        f"put the JSON that was published with it there, as {file.stem}_config.json or config.json"
    )


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


def _path(path: object) -> Path:
    if not isinstance(path, str | PathLike) or not isinstance(found := fspath(path), str) or not found:
        said = "empty" if path == "" else f"no path, but of type {type(path).__name__}"
        raise ModelError(f"the checkpoint is {said}; give the path of a file or folder")
    return Path(found)


def _bare(weights: Mapping[str, Weight]) -> Mapping[str, Weight]:
    """Take off what stands before every key, such as the name that a training program gave the model."""
    for wrapper in WRAPPERS:
        if weights and all(key.startswith(wrapper) for key in weights):
            return {key.removeprefix(wrapper): value for key, value in weights.items()}
    return weights


def _our_key(key: str) -> str:
    return next(ours + key.removeprefix(theirs) for ours, theirs in PREFIXES.items() if key.startswith(theirs))


def _published_key(key: str) -> str:
    return next(theirs + key.removeprefix(ours) for ours, theirs in PREFIXES.items() if key.startswith(ours))


def _named(variant: str, table: Mapping[str, Any]) -> Any:
    if variant not in table:
        raise ModelError(f"no variant {variant!r}; there are {', '.join(table)}")
    return table[variant]


def _assign(module: torch.nn.Module, state: Mapping[str, Weight], path: Path, published: Callable[[str], str]) -> None:
    """Load ``state`` into ``module`` in float32, or raise one error with all differences."""
    try:
        require_matching(module.state_dict(), state, path, published)
    except ModelError as error:
        hint = _likely_variant(state) if isinstance(module, BitDance) else None
        advice = f"; keys and shapes are those of {hint}: try --variant {hint}" if hint else ""
        raise ModelError(f"{error}{advice}") from None
    require_weights({published(key): value for key, value in state.items()}, path)
    values = {key: value if isinstance(value, Tensor) else value.read() for key, value in state.items()}
    module.load_state_dict({key: value.float() for key, value in values.items()}, assign=True)


def _likely_variant(state: Mapping[str, Weight]) -> str | None:
    """The published variant with exactly these keys and shapes."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    for name, config in GENERATORS.items():
        with torch.device("meta"):
            wanted = {key: tuple(value.shape) for key, value in BitDance(config).state_dict().items()}
        if wanted == shapes:
            return name
    return None


def _save(state: dict[str, Tensor], config: dict[str, Any], folder: Path, dtype: torch.dtype) -> None:
    weights = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    with moved_into(folder) as unfinished:
        save_file(weights, unfinished / "model.safetensors")
        write_json(unfinished / "config.json", config)
