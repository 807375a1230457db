"""A model to a bundle: every stage traced, checked against PyTorch, and only then put in its place."""

import copy
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bitdance_edge.export.check import StageError, check_stages
from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.graph import activation_bytes, export_graph, tensor_specs
from bitdance_edge.export.profiles import PROFILES
from bitdance_edge.export.stages import stage_exports
from bitdance_edge.model import BitDance
from bitdance_edge.runtime.bundle import (
    Bundle,
    CacheSpec,
    ModelSpec,
    SamplingSpec,
    StageSpec,
    file_spec,
)
from bitdance_edge.runtime.files import folder_aside, put_in_place

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPE_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    name: str
    profile: str = "kv24"
    precision: str = "fp32"
    force: bool = False  # replace a bundle that is already there

    def __post_init__(self) -> None:
        for field, value, allowed in (("profile", self.profile, PROFILES), ("dtype", self.precision, DTYPES)):
            if value not in allowed:
                raise ExportError(f"{field} is {value!r}; it must be one of {', '.join(allowed)}")


def export_bundle(model: BitDance, folder: str | Path, options: ExportOptions, provenance: dict[str, Any]) -> Bundle:
    """Export every stage of ``model`` (float32) and write a bundle.

    The bundle is written under another name beside ``folder`` and renamed when every stage has passed its check; an
    export that fails or is interrupted leaves nothing.

    Raises:
        ExportError: the folder exists (and not ``force``), cannot be written, or a stage differs from PyTorch.
    """
    folder = Path(folder)
    if folder.exists() and not options.force:
        raise ExportError(f"{folder} exists; export to another folder, or replace it with --force")
    if folder.exists() and not (folder / "bundle.json").is_file():
        raise ExportError(f"{folder} exists and is not a bundle; --force replaces bundles only")
    _require_space(model, folder, options)
    try:
        with folder_aside(folder) as aside:
            bundle = _write(model, aside, options, provenance)
            put_in_place(aside, folder)
    except OSError as error:
        raise ExportError(
            f"cannot write {folder}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    return replace(bundle, folder=folder)


def _write(model: BitDance, folder: Path, options: ExportOptions, provenance: dict[str, Any]) -> Bundle:
    dtype, profile = DTYPES[options.precision], PROFILES[options.profile]
    traced = model if dtype is torch.float32 else copy.deepcopy(model).to(dtype)
    stages: dict[str, StageSpec] = {}
    (folder / "onnx" / options.precision).mkdir(parents=True)
    exports = stage_exports(traced, profile, dtype)
    with tqdm(total=len(exports) + 1, unit="stage", leave=False, disable=None) as progress:
        for name, build in exports.items():
            progress.set_description(f"export {name}")
            path = folder / "onnx" / options.precision / f"{name}.onnx"
            export_graph(build(), path, profile.opset)
            stages[name] = _describe(model, folder, path, options.precision)
            progress.update()
        del traced
        errors = check_stages(model, folder, stages, options.precision, progress.set_description)
    bundle = Bundle(
        folder=folder,
        name=options.name,
        profile=options.profile,
        model=_model_spec(model),
        cache=_cache_spec(model, options.precision),
        sampling=_sampling_spec(model),
        stages={name: _with_error(stage, errors[name]) for name, stage in stages.items()},
        provenance={
            **provenance,
            "exported_with": {
                package: version(package) for package in ("bitdance-edge", "torch", "onnx", "onnxruntime")
            },
        },
        digest="",
    )
    bundle.write()
    return Bundle.open(folder)


def _describe(model: BitDance, folder: Path, path: Path, precision: str) -> StageSpec:
    inputs, outputs = tensor_specs(path)
    weights = path.with_name(f"{path.name}.data")
    sizes = {"R": 2, "B": 1, "N": 1, "T": model.config.tokens_per_step}
    return StageSpec(
        graph=file_spec(folder, path),
        weights=file_spec(folder, weights) if weights.exists() else None,
        precision=precision,
        inputs=inputs,
        outputs=outputs,
        max_error=0.0,
        tolerance=0.0,
        activation_bytes=activation_bytes(path, sizes),
    )


def _with_error(stage: StageSpec, error: StageError) -> StageSpec:
    return replace(stage, max_error=error.worst, tolerance=error.tolerance)


def _model_spec(model: BitDance) -> ModelSpec:
    config = model.config
    return ModelSpec(
        kind="class-conditional",
        tokens_per_step=config.tokens_per_step,
        bits=config.bits,
        grid_height=config.grid,
        grid_width=config.grid,
        image_height=config.resolution,
        image_width=config.resolution,
        patch_side=model.patch_side,
        prompt_tokens=config.prompt_tokens,
        num_classes=config.num_classes,
        class_names=config.class_names,
        decoder_noise=config.tokenizer.gan_decoder,
    )


def _cache_spec(model: BitDance, precision: str) -> CacheSpec:
    config = model.config
    return CacheSpec(
        layers=config.layers,
        heads=config.heads,
        length=config.cache_length,
        head_dim=config.head_dim,
        dtype=DTYPE_NAMES[precision],
    )


def _sampling_spec(model: BitDance) -> SamplingSpec:
    sampling = model.config.sampling
    return SamplingSpec(
        steps=sampling.steps,
        guidance=sampling.guidance,
        guidance_schedule=sampling.guidance_schedule,
        time_shift=model.config.time_shift,
    )


def _require_space(model: BitDance, folder: Path, options: ExportOptions) -> None:
    """Refuse before hours of work what would not fit on the disk."""
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    needed = sum(value.numel() for value in model.parameters()) * DTYPES[options.precision].itemsize
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ExportError(f"{existing} has {free / 1e6:.0f} MB free; the bundle takes about {needed / 1e6:.0f} MB")
