"""A pipeline called as diffusers' pipelines are: ``pipe("a red circle", num_inference_steps=20).images``.

A thin layer over ``Request``: it renames arguments, and every other field of a request is taken under its own name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from PIL import Image

from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.bundle.specs import CLASS_CONDITIONAL
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.events import Event, ImageDone, PatchDone
from bitdance_edge.runtime.image import GeneratedImage
from bitdance_edge.runtime.request import MAX_SEED, Request
from bitdance_edge.runtime.values import counted, items, shown, whole

# What to draw: a prompt, or a class by id or name; or several.
Subject = str | int | Sequence[str | int]
# (pipeline, patches done, patches in total, {"tokens": int8 [B, P, C]}) -> ignored
Callback = Callable[[Any, int, int, dict[str, Any]], object]


class Streaming(Protocol):
    """What a call needs of a pipeline."""

    @property
    def bundle(self) -> Bundle: ...

    def stream(self, request: Request) -> Iterator[Event]: ...


@dataclass(frozen=True, repr=False)
class PipelineOutput:
    """What a call gives: ``images`` for Pillow, and ``generated`` with the tokens, seed and settings of each."""

    images: list[Image.Image]
    generated: list[GeneratedImage]

    def __repr__(self) -> str:
        return f"PipelineOutput({counted(len(self.images), 'image')})"


def called_request(
    pipeline: Streaming, subject: Subject, named: Mapping[str, Any], others: Mapping[str, Any]
) -> Request:
    """Make the request of a call.

    Args:
        named: the arguments of ``Pipeline.__call__`` under their names there.
        others: fields of ``Request`` under their own names.

    Raises:
        RequestError: an argument is unknown or of another type, or two say the same thing.
    """
    callback = named["callback_on_step_end"]
    if callback is not None and not callable(callback):
        raise RequestError(f"callback_on_step_end is {shown(callback)}; give a function")
    known = {field.name for field in fields(Request)} - {"classes", "prompts", "count", "steps", "guidance", "seed"}
    if unknown := others.keys() - known:
        raise RequestError(
            f"unknown argument {', '.join(sorted(unknown))}; a call takes {', '.join((*named, *sorted(known)))}"
        )
    kind = "classes" if pipeline.bundle.model.kind == CLASS_CONDITIONAL else "prompts"
    request: dict[str, Any] = {
        kind: subject,
        "count": named["num_images_per_prompt"],
        "steps": named["num_inference_steps"],
        "guidance": named["guidance_scale"],
        **_size(named["width"], named["height"], others),
        **_seeds(named["seed"], named["generator"]),
    }
    if twice := request.keys() & {name for name, value in others.items() if value is not None}:
        raise RequestError(f"{', '.join(sorted(twice))} and generator are both given; omit one of the two")
    return Request(**{**others, **request})


def _size(width: int | None, height: int | None, others: Mapping[str, Any]) -> dict[str, Any]:
    if width is None and height is None:
        return {}
    if width is None or height is None or others.get("size") is not None:
        raise RequestError(
            f"width is {shown(width)} and height {shown(height)}; give both, or size='WIDTHxHEIGHT' in their place"
        )
    return {"size": Size(width=width, height=height)}


def _seeds(seed: int | None, generator: Any) -> dict[str, Any]:
    """Seeds as a request takes them; a generator of PyTorch stands for the seed that it was given."""
    if generator is None:
        return {"seed": seed}
    if seed is not None:
        raise RequestError("seed and generator are both given; omit one of the two")
    found = [_seed(item) for item in items("generator", generator)]
    return {"seed": found[0]} if not isinstance(generator, Iterable) else {"seeds": found}


def _seed(generator: Any) -> int:
    if hasattr(generator, "initial_seed"):
        return int(generator.initial_seed()) % 2**63  # PyTorch's own seeds have 64 bits
    if not isinstance(generator, int | np.integer):
        raise RequestError(f"generator is {shown(generator)}; give a torch.Generator, or seed= with a whole number")
    return whole("generator", generator, 0, MAX_SEED)


def run_call(pipeline: Streaming, request: Request, callback: Callback | None) -> PipelineOutput:
    """Generate all images of a request; ``callback`` is called after each patch of a batch.

    Raises:
        RequestError: as ``Pipeline.stream``.
    """
    generated: list[GeneratedImage] = []
    for event in pipeline.stream(request):
        _tell(pipeline, event, callback)
        if isinstance(event, ImageDone):
            generated.append(event.image)
    images = [image.to_pil() for image in generated if image.pixels is not None]
    return PipelineOutput(images=images, generated=generated)


def _tell(pipeline: Streaming, event: Event, callback: Callback | None) -> None:
    if callback is not None and isinstance(event, PatchDone):
        callback(pipeline, event.patch, event.patches, {"tokens": event.tokens})
