"""From a checkpoint and the export's arguments to what is exported: a model of either kind."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitdance_edge.export.errors import ExportError
from bitdance_edge.export.exporter import ExportOptions, export_bundle
from bitdance_edge.export.stages import Generator
from bitdance_edge.export.weights import Source
from bitdance_edge.model import TextCheckpoint, load_generator
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.model.text_checkpoint import is_text_to_image
from bitdance_edge.model.text_config import TextToImageConfig
from bitdance_edge.runtime.bundle.manifest import Bundle, sha256
from bitdance_edge.runtime.bundle.size import Size


@dataclass(frozen=True, kw_only=True)
class OpenedCheckpoint:
    model: Generator
    options: ExportOptions
    provenance: dict[str, Any]
    prompts: PromptTokenizer | None = None  # of a text-to-image model
    source: Source | None = None  # where its weights are stored

    def export(self, folder: str | Path) -> Bundle:
        """``export_bundle`` of all this."""
        return export_bundle(
            self.model, folder, self.options, self.provenance, prompts=self.prompts, source=self.source
        )


def open_checkpoint(args: argparse.Namespace) -> OpenedCheckpoint:
    """Open what the command line names.

    Raises:
        ModelError: it is not a whole checkpoint.
        ExportError: an argument is of the other kind of model.
    """
    path = Path(args.checkpoint)
    options = ExportOptions(
        name=Path(args.out).name,
        opset=args.opset,
        precision=args.dtype,
        force=args.force,
        fast_previews=args.fast_previews,
    )
    if is_text_to_image(path):
        _refuse(args, ("variant", "tokenizer"), "text-to-image folders say what they are and hold their autoencoder")
        options = replace(options, link=not args.copy_weights)
        opened = open_text_to_image(path, options, sizes=args.sizes, max_prompt=args.max_prompt)
        if args.link_weights:
            _require_linkable(opened)
        return opened
    text_only = ("sizes", "max_prompt", "link_weights", "copy_weights")
    _refuse(args, text_only, "it is for text-to-image folders (with vision_head_config.json or model_index.json)")
    model = load_generator(path, variant=args.variant, tokenizer=args.tokenizer)
    weights = next(path.glob("*.safetensors"), path) if path.is_dir() else path
    provenance = {"checkpoint": path.name, "checkpoint_sha256": sha256(weights), "variant": args.variant}
    return OpenedCheckpoint(model=model, options=options, provenance=provenance)


def open_text_to_image(
    path: Path, options: ExportOptions, *, sizes: str | None = None, max_prompt: int | None = None
) -> OpenedCheckpoint:
    """Open a text-to-image folder; no weights are read.

    Args:
        sizes: WIDTHxHEIGHT,... in pixels; None: all of the checkpoint's that its tokenizer can announce.
        max_prompt: tokens of the longest prompt, template included; None is the checkpoint's.
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
        provenance={"checkpoint": path.name, "checkpoint_bytes": sum(t.bytes for t in checkpoint.tensors.values())},
        prompts=replace(prompts, config=config),
        source=checkpoint.tensors,
    )


def _require_linkable(opened: OpenedCheckpoint) -> None:
    """``--link-weights`` that would link nothing is refused."""
    stored = {weight.dtype for weight in (opened.source or {}).values()}
    if opened.options.dtype not in stored:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in stored))
        raise ExportError(
            f"--link-weights needs weights stored as --dtype {opened.options.precision}; the checkpoint holds {names}: "
            "choose that, or leave --link-weights away"
        )


def _sizes(text: str | None, config: TextToImageConfig, prompts: PromptTokenizer) -> tuple[tuple[int, int], ...]:
    """The sizes asked for, or all of the checkpoint's that its tokenizer can announce."""
    if text is None:
        if known := tuple(size for size in config.sizes if prompts.announces(*size)):
            return known
        raise ExportError(f"{prompts.file} announces none of this model's sizes; name some with --sizes WIDTHxHEIGHT")
    sizes = []
    for part in text.split(","):
        size = Size.parse(part)
        config.require_size(size.height, size.width)
        prompts.suffix(size.height, size.width)
        sizes.append((size.height, size.width))
    return tuple(dict.fromkeys(sizes))


def _refuse(args: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if getattr(args, name) not in (None, False):
            raise ExportError(f"--{name.replace('_', '-')} has no effect on {args.checkpoint}: {reason}; leave it away")
