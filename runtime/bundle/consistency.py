"""Whether the records of a manifest agree: sizes with patches, cache with model, and what the stages take and give.

The loop sizes buffers by one record and binds them by another, so that none is believed alone. The graphs themselves
are compared with the manifest when they are loaded (``backends.signature``).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from bitdance_edge.runtime.bundle.signatures import (
    FLOAT,
    MODULATION,
    Signature,
    Tensor,
    Tensors,
    image_signatures,
    loop_signatures,
)
from bitdance_edge.runtime.bundle.specs import (
    TEXT_TO_IMAGE,
    CacheSpec,
    FileSpec,
    ModelSpec,
    StageSpec,
    TensorSpec,
    TextSpec,
    WindowSpec,
    dim_factor,
    dim_size,
)
from bitdance_edge.runtime.bundle.stage_names import WINDOW_STAGES, StageName
from bitdance_edge.runtime.errors import BundleError

UNQUANTISED = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # precision of a stage -> its element type


class Manifest(Protocol):
    """What is compared of a bundle."""

    @property
    def folder(self) -> Path: ...
    @property
    def model(self) -> ModelSpec: ...
    @property
    def cache(self) -> CacheSpec: ...
    @property
    def stages(self) -> Mapping[str, StageSpec]: ...
    @property
    def text(self) -> TextSpec | None: ...
    @property
    def links(self) -> Mapping[str, str]: ...
    @property
    def fast_preview(self) -> FileSpec | None: ...
    @property
    def window(self) -> WindowSpec | None: ...


def require_consistent(bundle: Manifest) -> None:
    """Compare the records of a manifest with each other.

    Raises:
        BundleError: two do not agree; names both.
    """
    try:
        _require_model(bundle.model)
        if bundle.model.generates:
            _require_room(bundle)
            _require_subjects(bundle)
        else:
            _require_tokenizer(bundle)
        _require_files(bundle)
        _require_stages(bundle)
    except _Contradiction as found:
        raise BundleError(f"{bundle.folder} contradicts itself: {found}; copy or export it again") from None


class _Contradiction(Exception):
    """Two records that do not agree."""


def _require(agree: bool, text: str) -> None:
    if not agree:
        raise _Contradiction(text)


def _require_model(model: ModelSpec) -> None:
    side, per_step = model.patch_side, model.tokens_per_step
    _require(side == 1 or side * side == per_step, f"patches of {side}x{side} have {per_step} tokens")
    square = model.pixels_per_token * side
    for size in model.sizes:
        found = model.size(size)
        fits = size.width % square == 0 and size.height % square == 0 and found.tokens % per_step == 0
        _require(fits, f"images of {size} do not consist of patches of {per_step} tokens")
    _require(len(set(model.sizes)) == len(model.sizes), "a size is named twice")


def _require_room(bundle: Manifest) -> None:
    """Check that prompt and image fit into the cache; the last patch is never an input."""
    model, cache = bundle.model, bundle.cache
    least = min(model.prompt_tokens, cache.layers, cache.heads, cache.length, cache.head_dim)
    _require(least > 0, "a generator has a prompt and a cache, and one of their sizes is 0")
    needed = model.prompt_tokens + max(model.size(size).tokens for size in model.sizes) - model.tokens_per_step
    _require(needed <= cache.length, f"the cache has {cache.length} places, prompt and image take {needed}")


def _require_subjects(bundle: Manifest) -> None:
    """Check what is drawn: classes, or prompts with what follows them."""
    model, text = bundle.model, bundle.text
    _require((text is not None) == (model.kind == TEXT_TO_IMAGE), f"the model is {model.kind}, text is {text}")
    classes, names = model.num_classes, len(model.class_names)
    _require(names in (0, classes), f"{classes} classes have {names} names")
    _require((classes == 0) == (text is not None), f"a {model.kind} model has {classes} classes")
    if text is None:
        return
    sizes, known = set(map(str, model.sizes)), set(text.suffixes)
    _require(sizes == known, f"sizes are {', '.join(sorted(sizes))}, prompts announce {', '.join(sorted(known))[:80]}")
    for size, ids in text.suffixes.items():
        longest = text.max_prompt + len(ids)
        agree = longest == model.prompt_tokens
        _require(agree, f"prompts for {size} have {longest} tokens, the model takes {model.prompt_tokens}")


def _require_tokenizer(bundle: Manifest) -> None:
    """Check that a tokenizer alone has nothing that generates."""
    model, cache = bundle.model, bundle.cache
    others = [name for name in bundle.stages if name not in (StageName.DECODER, StageName.ENCODER)]
    _require(not others, f"the model is a tokenizer, and has stages {', '.join(others)}")
    _require(bundle.text is None and bundle.fast_preview is None, "the model is a tokenizer, and has text or previews")
    counts = (model.prompt_tokens, model.num_classes, len(model.class_names), cache.layers, cache.heads, cache.length)
    _require(not any(counts), "the model is a tokenizer, and has prompts, classes or a cache")


def _require_files(bundle: Manifest) -> None:
    """Check that a file is described the same wherever it is named, and that only files of stages are links."""
    files = [file for stage in bundle.stages.values() for file in stage.files]
    others = [bundle.fast_preview, bundle.text.tokenizer if bundle.text else None]
    known = {}
    for file in (*files, *(other for other in others if other is not None)):
        _require(known.setdefault(file.path, file) == file, f"{file.path} is described twice, differently")
    paths = {file.path for file in files}
    for name in bundle.links:
        _require(name in paths, f"links has {name[:80]!r}, which is no file of a stage")
    for name, stage in bundle.stages.items():
        folder = stage.graph.path.rpartition("/")[0]
        beside = all(file.path.rpartition("/")[0] == folder for file in stage.weights)
        _require(beside, f"weights of {name} are not in the folder of its graph")


def _require_stages(bundle: Manifest) -> None:
    """Check what each stage takes and gives, and that what one gives is what another takes."""
    model, found = bundle.model, bundle.stages
    missing = [name for name in WINDOW_STAGES if name not in found]
    _require(bundle.window is None or not missing, f"it has a windowed sampler without {', '.join(missing)}")
    floats, widths = bundle.cache.dtype, {}
    head = found.get(StageName.HEAD) or found.get(StageName.MODULATION)
    tensors = () if head is None else (*head.inputs, *head.outputs)
    modulations = sum(tensor.name.startswith(MODULATION) for tensor in tensors)
    for name, signature in loop_signatures(model, bundle.cache, modulations).items():
        if name in found:
            _require_signature(name, found[name], signature, floats, widths)
    for size in model.sizes:
        for name, signature in image_signatures(model, model.size(size)).items():
            if name in found:
                _require_signature(name, _sized(found[name], model.size(size).dims), signature, floats, widths)
    for name, stage in found.items():
        kind = UNQUANTISED.get(stage.precision, floats)
        _require(kind == floats, f"{name} is {stage.precision}, the cache {floats}")


def _require_signature(name: str, stage: StageSpec, wanted: Signature, floats: str, widths: dict[str, int]) -> None:
    _require_tensors(f"{name}'s inputs", stage.inputs, wanted.inputs, floats, widths)
    _require_tensors(f"{name}'s outputs", stage.outputs, wanted.outputs, floats, widths)


def _require_tensors(
    what: str, tensors: tuple[TensorSpec, ...], wanted: Tensors, floats: str, widths: dict[str, int]
) -> None:
    names = [tensor.name for tensor in tensors]
    if sorted(names) != sorted(wanted):
        missing = ", ".join(wanted.keys() - set(names))[:80]
        extra = ", ".join(name for name in names if name not in wanted or names.count(name) > 1)[:80]
        raise _Contradiction(f"{what} lack {missing or 'nothing'} and have {extra or 'nothing'} in excess")
    for tensor in tensors:
        kind, shape = _filled(wanted[tensor.name], floats, tensor, widths)
        _require(tensor.dtype == kind, f"{what}: {tensor.name} is {tensor.dtype}, {kind} is expected")
        _require(tensor.shape == shape, f"{what}: {tensor.name} is {_listed(tensor.shape)}, not {_listed(shape)}")


def _filled(wanted: Tensor, floats: str, tensor: TensorSpec, widths: dict[str, int]) -> Tensor:
    """What is wanted of a tensor, with the bundle's element type, and the widths as they are where they stand first."""
    kind, shape = wanted
    filled = []
    for dim, found in zip(shape, (*tensor.shape, *[0] * len(shape)), strict=False):
        if isinstance(dim, str) and dim.islower():
            filled.append(widths.setdefault(dim, found) if isinstance(found, int) else widths.get(dim, dim))
        else:
            filled.append(dim)
    return floats if kind == FLOAT else kind, tuple(filled)


def _sized(stage: StageSpec, dims: Mapping[str, int]) -> StageSpec:
    """A stage whose tensors have the dimensions of one image size filled in."""

    def fill(tensor: TensorSpec) -> TensorSpec:
        shape = (
            dim_size(dim, dims) if isinstance(dim, str) and dim_factor(dim)[1] in dims else dim for dim in tensor.shape
        )
        return replace(tensor, shape=tuple(shape))

    return replace(stage, inputs=tuple(map(fill, stage.inputs)), outputs=tuple(map(fill, stage.outputs)))


def _listed(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
