"""Whether a memory plan fits: how decoding gives way, what is refused and what would fit instead."""

import re
from collections.abc import Iterator
from dataclasses import replace

from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.image_stage import IMAGE_STAGES
from bitdance_edge.runtime.memory_plan import ENGINES, Execution, MemoryPlan, StageNeed, plan_memory
from bitdance_edge.runtime.values import quoted, shown

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
# Bytes of one weight, by the narrowest element type of a stage; 4 bits with their share of a scale.
WEIGHT_BYTES = {
    "fp32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "int8": 1.0,
    "fp8": 1.0,
    "int4": 0.5 + 2 / 128,
    "nvfp4": 0.5 + 1 / 16,
}
# The stages that hold nearly all weights, and whose products can be quantised.
QUANTISED = (StageName.BACKBONE, StageName.MODULATION, StageName.HEAD)


def fitted(plan: MemoryPlan, free: int) -> MemoryPlan | None:
    """Fit a plan into ``free`` bytes: decode in parts, or in turn with the loop, where it must be.

    Returns:
        None: it does not fit.
    """
    for overlapped in (True,) if plan.arenas else (True, False):
        for at_once in range(plan.decoder_images, 0, -1):
            changed = _decoding(plan, at_once, overlapped)
            if changed.total <= free:
                return changed
    return None


def least_memory(plan: MemoryPlan) -> MemoryPlan:
    """The plan with as little memory for the decoder as it can do with."""
    return _decoding(plan, 1, overlapped=plan.arenas)


def require_memory(bundle: Bundle, images: int, free: int, how: Execution = ENGINES) -> MemoryPlan:
    """Plan ``images`` at once, as they fit into ``free`` bytes.

    Raises:
        RequestError: they do not fit; with the numbers, and with what would.
    """
    if (found := fitted(plan_memory(bundle, images, how), free)) is not None:
        return found
    raise RequestError(refusal(bundle, images, free, how))


def refusal(bundle: Bundle, images: int, free: int, how: Execution = ENGINES) -> str:
    """Say what ``images`` at once take at least, what is free, and what would fit."""
    least = least_memory(plan_memory(bundle, images, how))
    alternatives = "; ".join(_alternatives(bundle, images, free, how))
    what = "1 image at once takes" if images == 1 else f"{images} images at once take"
    return (
        f"{what} {least.total / 1e6:.0f} MB, of which weights "
        f"{least.weights / 1e6:.0f}, cache {least.cache / 1e6:.0f}, tensors {least.tensors / 1e6:.0f}, activations "
        f"{least.activations / 1e6:.0f} and {least.allowance / 1e6:.0f} set aside for driver and libraries; "
        f"{free / 1e6:.0f} MB are free. "
        + (
            f"What would fit: {alternatives}"
            if alternatives
            else "No form of this bundle would fit: take a smaller model"
        )
    )


def most_images(bundle: Bundle, largest: int, free: int, how: Execution = ENGINES) -> int:
    """Find the most images, up to ``largest``, that fit at once; 0 where not even one does."""
    for images in range(largest, 0, -1):
        if fitted(plan_memory(bundle, images, how), free) is not None:
            return images
    return 0


def parse_memory(text: str) -> int:
    """Read ``16GB``, ``512 MB`` or ``24GiB`` as bytes.

    Raises:
        RequestError: it is not a size of memory.
    """
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]+)\s*", text)
    unit = next((unit for unit in UNITS if match and unit.lower() == match[2].lower()), None)
    if match is None or unit is None:
        raise RequestError(f"memory is {shown(text)}; write a number with one of {', '.join(UNITS)}, for example 16GB")
    return int(float(match[1]) * UNITS[unit])


def _decoding(plan: MemoryPlan, at_once: int, overlapped: bool) -> MemoryPlan:
    """The plan with ``at_once`` images in one launch of the decoder."""

    def part(need: StageNeed) -> StageNeed:
        tensors, activations = (size * at_once // plan.decoder_images for size in (need.tensors, need.activations))
        return replace(need, tensors=tensors, activations=activations)

    stages = tuple(part(need) if need.stage in IMAGE_STAGES else need for need in plan.stages)
    return replace(plan, overlapped=overlapped, decoder_images=at_once, stages=stages)


def _alternatives(bundle: Bundle, images: int, free: int, how: Execution) -> Iterator[str]:
    if fewer := most_images(bundle, images - 1, free, how):
        yield f"{fewer} at once (max_batch {fewer})"
    command = f"bitdance-edge calibrate {quoted(bundle.folder)} --weights-only --precision"
    for title, kind in (("FP8", "fp8"), ("4-bit", "int4")):
        smaller = {name: _requantised(bundle.stages[name], kind) for name in QUANTISED if name in bundle.stages}
        if any(size < bundle.stage(name).bytes for name, size in smaller.items()):
            files = {**how.files, **smaller}
            if most := most_images(bundle, images, free, replace(how, files=files)):
                yield f"{title} weights in {', '.join(smaller)}, {most} at once: {command} {kind} -o FOLDER"


def _requantised(stage: StageSpec, kind: str) -> int:
    """Bytes of a stage with its weights in another element type; never more than it has."""
    now = WEIGHT_BYTES.get(stage.precision.split("+")[0], WEIGHT_BYTES["fp32"])
    return int(stage.bytes * min(1.0, WEIGHT_BYTES[kind] / now))
