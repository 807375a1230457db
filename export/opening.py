"""From a checkpoint's path and options to the model that is exported, of any kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.exporter import ExportOptions, export_bundle
from bitdance_edge.export.stages import Exported
from bitdance_edge.export.weights import Source
from bitdance_edge.model import TextCheckpoint, load_generator, load_tokenizer
from bitdance_edge.model.adapter import is_adapter
from bitdance_edge.model.checkpoint import is_tokenizer, locate
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.model.text_checkpoint import is_text_to_image
from bitdance_edge.model.text_config import TextToImageConfig
from bitdance_edge.model.tokenizer_model import TokenizerModel
from bitdance_edge.runtime.bundle.manifest import Bundle, sha256
from bitdance_edge.runtime.bundle.size import Size

WEIGHTS = ("link", "copy")
TOKENIZER_SIZES = "256x256"  # of a tokenizer alone: those that the published ones were measured at


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """How a checkpoint is opened; the first two are of class-conditional models, the others of text-to-image ones.

    A tokenizer alone takes a variant and sizes.

    Attributes:
        variant: of a .pt file.
        tokenizer: autoencoder weights that replace the checkpoint's own.
        sizes: WIDTHxHEIGHT,... in pixels; None: all of the checkpoint's that its tokenizer can announce, or 256x256.
        max_prompt: tokens of the longest prompt, template included; None: the checkpoint's.
        weights: "link" them, which needs some stored in the precision of the export, or "copy" all; None: link those
            that can be linked.
    """

    variant: str | None = None
    tokenizer: str | None = None
    sizes: str | None = None
    max_prompt: int | None = None
    weights: Literal["link", "copy"] | None = None


@dataclass(frozen=True, kw_only=True)
class OpenedCheckpoint:
    model: Exported
    options: ExportOptions
    provenance: dict[str, Any]
    prompts: PromptTokenizer | None = None  # of a text-to-image model
    source: Source | None = None  # where its weights are stored

    @property
    def weights(self) -> Source:
        """All weights by name, as they are stored."""
        return self.model.state_dict() if self.source is None else self.source

    def export(self, folder: str | Path, note: Callable[[str], object] = lambda line: None) -> Bundle:
        """Export it as ``export_bundle`` does."""
        return export_bundle(
            self.model, folder, self.options, self.provenance, prompts=self.prompts, source=self.source, note=note
        )


def open_checkpoint(path: Path, options: ExportOptions, asked: CheckpointOptions) -> OpenedCheckpoint:
    """Open a checkpoint of any kind.

    Raises:
        ModelError: it is not a whole checkpoint.
        ExportError: an option is of the other kind of model, or not one that this model has.
    """
    if is_text_to_image(path):
        _refuse(
            path,
            {"variant": asked.variant, "tokenizer": asked.tokenizer},
            "text-to-image folders say what they are and hold their autoencoder",
        )
        adapter = is_adapter(path)  # what is merged is in no file
        if adapter and asked.weights == "link":
            raise ExportError(f"--link-weights has no effect on {path}: merged weights are written anew; omit it")
        links = asked.weights != "copy" and not adapter
        options = replace(options, link=links, require_links=asked.weights == "link")
        opened = open_text_to_image(path, options, sizes=asked.sizes, max_prompt=asked.max_prompt)
        if asked.weights == "link":
            _require_linkable(opened)
        return opened
    weights = {f"{way}-weights": asked.weights == way for way in WEIGHTS}
    if is_tokenizer(path, asked.variant):
        given = {"tokenizer": asked.tokenizer, "max-prompt": asked.max_prompt, **weights}
        _refuse(path, given, "this checkpoint is a tokenizer alone")
        tokenizer = load_tokenizer(path, variant=asked.variant)
        model = TokenizerModel.of(tokenizer, _parsed(asked.sizes or TOKENIZER_SIZES))
        return OpenedCheckpoint(model=model, options=options, provenance=_provenance(path, asked.variant))
    _refuse(
        path,
        {"sizes": asked.sizes, "max-prompt": asked.max_prompt, **weights},
        "it is for text-to-image folders (with vision_head_config.json or model_index.json)",
    )
    model = load_generator(path, variant=asked.variant, tokenizer=asked.tokenizer)
    return OpenedCheckpoint(model=model, options=options, provenance=_provenance(path, asked.variant))


def _provenance(path: Path, variant: str | None) -> dict[str, Any]:
    hashes = {file.name: sha256(file) for file in locate(path)[0].files}
    return {
        "checkpoint": path.resolve().name,
        "checkpoint_sha256": hashes if len(hashes) > 1 else next(iter(hashes.values())),
        "variant": variant,
    }


def open_text_to_image(
    path: Path, options: ExportOptions, *, sizes: str | None = None, max_prompt: int | None = None
) -> OpenedCheckpoint:
    """Open a text-to-image folder; no weights are read.

    Args:
        sizes: WIDTHxHEIGHT,... in pixels; None: all of the checkpoint's that its tokenizer can announce.
        max_prompt: tokens of the longest prompt, template included; None: the checkpoint's.
    """
    checkpoint = TextCheckpoint.open(path)
    config = checkpoint.config
    if max_prompt is not None:
        if max_prompt < 1:
            raise ExportError(f"--max-prompt is {max_prompt}; it must be at least 1")
        config = replace(config, max_prompt=max_prompt)
    prompts = PromptTokenizer.open(checkpoint.prompt_file, config)
    config = replace(config, sizes=_sizes(sizes, config, prompts))
    return OpenedCheckpoint(
        model=replace(checkpoint, config=config).load(),
        options=options,
        provenance={
            "checkpoint": path.resolve().name,
            "checkpoint_bytes": sum(t.bytes for t in checkpoint.tensors.values()),
        },
        prompts=replace(prompts, config=config),
        source=checkpoint.tensors,
    )


def _require_linkable(opened: OpenedCheckpoint) -> None:
    """Refuse to link weights where none can be linked."""
    stored = {weight.dtype for weight in (opened.source or {}).values()}
    if opened.options.dtype not in stored:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in stored))
        raise ExportError(
            f"--link-weights needs weights stored as --dtype {opened.options.precision}; the checkpoint holds {names}: "
            "choose that, or omit --link-weights"
        )


def _sizes(text: str | None, config: TextToImageConfig, prompts: PromptTokenizer) -> tuple[tuple[int, int], ...]:
    """The sizes asked for, (height, width) each, or all of the checkpoint's that its tokenizer can announce.

    Raises:
        ExportError, ModelError, RequestError: there is none, or one that the model or its tokenizer does not have.
    """
    if text is None:
        if known := tuple(size for size in config.sizes if prompts.announces(*size)):
            return known
        raise ExportError(f"{prompts.file} announces none of this model's sizes; name some with --sizes WIDTHxHEIGHT")
    sizes = _parsed(text)
    for height, width in sizes:
        config.require_size(height, width)
        prompts.suffix(height, width)
    return sizes


def _parsed(text: str) -> tuple[tuple[int, int], ...]:
    """Read WIDTHxHEIGHT,... as (height, width), each once."""
    sizes = [Size.parse(part) for part in text.split(",")]
    return tuple(dict.fromkeys((size.height, size.width) for size in sizes))


def _refuse(path: Path, given: Mapping[str, object], reason: str) -> None:
    """Refuse options that have no effect on this kind of model: name -> value, None or False where it is omitted."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise ExportError(f"--{name} has no effect on {path}: {reason}; omit it")
