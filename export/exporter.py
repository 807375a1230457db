"""A model to a bundle: every stage traced and checked against PyTorch, then the folder renamed into place."""

import copy
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bitdance_edge.export import manifest
from bitdance_edge.export.check import check_stages
from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.graph import export_graph
from bitdance_edge.export.links import link_names, refusal
from bitdance_edge.export.manifest import FileHashes
from bitdance_edge.export.opsets import DEFAULT_OPSET, OPSETS
from bitdance_edge.export.preview import with_fast_previews
from bitdance_edge.export.signatures import stage_exports
from bitdance_edge.export.stage_error import StageError
from bitdance_edge.export.stages import Exported
from bitdance_edge.export.weights import Source, WeightPlacer, hollowed
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.model.tensor_file import StoredTensor
from bitdance_edge.model.values import require_finite
from bitdance_edge.runtime.bundle.files import cannot_write, claimed_output, put_in_place, staged_folder
from bitdance_edge.runtime.bundle.graph_properties import graph_properties
from bitdance_edge.runtime.bundle.manifest import MANIFEST, Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.host_memory import available_memory
from bitdance_edge.runtime.window_measure import PATCHES, with_measured_window

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    name: str
    opset: int = DEFAULT_OPSET
    precision: str = "fp32"
    link: bool = False  # take weights that are stored in this precision from the checkpoint's own files, if possible
    require_links: bool = False  # and fail where it is not
    force: bool = False  # replace a bundle that is already there
    fast_previews: bool = True  # fit them, where the bundle can run here
    window_patches: int = PATCHES  # of each setting that the windowed sampler is measured on, where it can run here

    def __post_init__(self) -> None:
        for field, value, allowed in (("opset", self.opset, OPSETS), ("dtype", self.precision, DTYPES)):
            if value not in allowed:
                raise ExportError(f"{field} is {value!r}; it must be one of {', '.join(map(str, allowed))}")

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]


def export_bundle(
    model: Exported,
    folder: str | Path,
    options: ExportOptions,
    provenance: dict[str, Any],
    *,
    prompts: PromptTokenizer | None = None,
    source: Source | None = None,
    note: Callable[[str], object] = lambda line: None,
) -> Bundle:
    """Export every stage of ``model`` and write a bundle.

    The bundle is written under a temporary name next to ``folder`` and renamed when every stage has passed its check;
    an export that fails or is interrupted leaves nothing.

    Args:
        model: class-conditional or a tokenizer alone in float32, or text-to-image with its weights as they are stored.
        prompts: of a text-to-image model.
        source: where the weights are stored, for those that are linked or read one at a time; None: the model's.
        note: called with lines for the user.

    Raises:
        ExportError: the folder exists (and not ``force``), there is too little space for the weights, a file of the
            checkpoint cannot be read, or a stage differs from PyTorch.
        ModelError: a weight has a value that the precision cannot hold.
        OutputBusyError: another process is writing the folder.
        StorageError: the folder cannot be written.
    """
    folder = Path(folder)
    source = model.state_dict() if source is None else source
    read = {weight.file for weight in source.values() if isinstance(weight, StoredTensor)}
    read |= set() if prompts is None else {prompts.file}
    try:
        with claimed_output(folder):
            _require_replaceable(folder, options)
            with staged_folder(folder) as staged:
                names = _links(source, options, staged, note)
                _require_space(source, folder, options, names)
                _require_finite(source, options.dtype)
                bundle = _Export(model, staged, options, prompts, source, names).write(provenance)
                put_in_place(staged, folder, replace=options.force)
    except OSError as error:
        if error.filename is not None and Path(str(error.filename)) in read:
            raise ExportError(f"cannot read {error.filename}: {error.strerror}") from error
        raise cannot_write(folder, error) from error
    return replace(bundle, folder=folder)


@dataclass
class _Export:
    """One export into an empty folder."""

    model: Exported
    folder: Path
    options: ExportOptions
    prompts: PromptTokenizer | None
    source: Source
    names: Mapping[Path, str]  # file of the checkpoint -> its link's name

    def write(self, provenance: dict[str, Any]) -> Bundle:
        options, folder = self.options, self.folder
        model = manifest.model_spec(self.model)
        graphs = folder / "onnx" / options.precision
        graphs.mkdir(parents=True)
        weights = WeightPlacer(self.source, options.dtype, self.names)
        files = FileHashes(folder)
        stages: dict[str, StageSpec] = {}
        traced = hollowed(self.model, self.source, options.dtype)
        exports = stage_exports(traced, OPSETS[options.opset], options.dtype)
        with tqdm(total=len(exports) + 1, unit="stage", leave=False, disable=None) as progress:
            for name, build in exports.items():
                progress.set_description(f"export {name}")
                properties = graph_properties(options.name, name, provenance)
                export_graph(build(), graphs / f"{name}.onnx", options.opset, weights, properties)
                progress.set_description(f"checksum {name}")
                stages[name] = manifest.stage_spec(files, graphs / f"{name}.onnx", options.precision, model)
                progress.update()
            del traced, exports
            errors = self._check(stages, progress.set_description)
        bundle = Bundle(
            folder=folder,
            name=options.name,
            opset=options.opset,
            model=model,
            cache=manifest.cache_spec(self.model, options.precision),
            sampling=manifest.sampling_spec(self.model),
            published=manifest.published_spec(self.model),
            stages={name: _with_error(stage, errors.get(name)) for name, stage in stages.items()},
            window=manifest.window_spec(self.model),
            text=self.prompts and manifest.text_spec(self.prompts, folder),
            links={link.relative_to(folder).as_posix(): str(file) for link, file in sorted(weights.links.items())},
            provenance={
                **provenance,
                "exported_with": {
                    package: version(package) for package in ("bitdance-edge", "torch", "onnx", "onnxruntime")
                },
            },
            digest="",
        )
        bundle.write()
        bundle = Bundle.open(folder)
        runs_here = options.precision != "bf16" and can_check(self.source)
        if not (runs_here and bundle.model.generates):
            return bundle
        if options.window_patches:
            bundle = with_measured_window(bundle, options.window_patches)
        return with_fast_previews(bundle) if options.fast_previews else bundle

    def _check(self, stages: dict[str, StageSpec], note: Callable[[str], object]) -> dict[str, StageError]:
        """Compare with PyTorch and return the errors by stage; none where this machine has too little memory."""
        if not can_check(self.source):
            return {}
        model = self.model
        if any(value.dtype != torch.float32 for value in model.parameters()):
            model = copy.deepcopy(model).float()
        return check_stages(model, self.folder, stages, self.options.precision, note)


def memory_to_check(source: Source) -> int:
    """Bytes that the check takes: the weights in float32, once for PyTorch and once for ONNX Runtime."""
    return 2 * sum(math.prod(weight.shape) for weight in source.values()) * torch.float32.itemsize


def can_check(source: Source) -> bool:
    """Whether this machine has the memory for the check; so it is taken to be where free memory is not known."""
    available = available_memory()
    return available is None or memory_to_check(source) <= available


def _with_error(stage: StageSpec, error: StageError | None) -> StageSpec:
    return stage if error is None else replace(stage, max_error=error.worst, tolerance=error.tolerance)


def _require_replaceable(folder: Path, options: ExportOptions) -> None:
    """Refuse a folder that is there, unless it is a bundle that may be replaced."""
    if os.path.lexists(folder) and not options.force:
        raise ExportError(f"{folder} exists; export to another folder, or replace it with --force")
    if os.path.lexists(folder) and not (folder / MANIFEST).is_file():
        raise ExportError(f"{folder} exists and is not a bundle; --force replaces bundles only")


def _links(source: Source, options: ExportOptions, staged: Path, note: Callable[[str], object]) -> Mapping[Path, str]:
    """Name the links to files with weights of the export's precision; none where the system refuses them.

    Raises:
        ExportError: it refuses them, and links were asked for.
    """
    if not options.link:
        return {}
    names = link_names(
        weight.file for weight in source.values() if isinstance(weight, StoredTensor) and weight.dtype == options.dtype
    )
    if (reason := refusal(names, staged)) is None:
        return names
    if options.require_links:
        raise ExportError(f"{reason}; omit --link-weights to copy the weights")
    note(f"weights are copied into the bundle: {reason}")
    return {}


def _require_finite(source: Source, dtype: torch.dtype) -> None:
    """Read every weight before the work, and refuse values that ``dtype`` cannot hold."""
    for key, weight in tqdm(source.items(), desc="check weights", unit="weight", leave=False, disable=None):
        require_finite(key, weight, weight.file if isinstance(weight, StoredTensor) else Path("the checkpoint"), dtype)


def _require_space(source: Source, folder: Path, options: ExportOptions, names: Mapping[Path, str]) -> None:
    """Refuse before the work what would not fit on the disk."""
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    linked = {
        key
        for key, weight in source.items()
        if isinstance(weight, StoredTensor) and weight.dtype == options.dtype and weight.file in names
    }
    copied = sum(math.prod(weight.shape) for key, weight in source.items() if key not in linked)
    needed, free = copied * options.dtype.itemsize, shutil.disk_usage(existing).free
    if needed > free:
        raise ExportError(f"{existing} has {free / 1e6:.0f} MB free; the bundle takes about {needed / 1e6:.0f} MB")
