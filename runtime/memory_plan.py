"""What generating takes of a GPU's memory, from the manifest alone, before anything is allocated.

Weights are the files' bytes; the cache and the tensors between stages have the sizes that the manifest gives them.
Activations are those of the graph run node by node, which a library that fuses operators stays below. Tensors and cache
are exact, the rest is an upper bound.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from bitdance_edge.runtime.bundle.dtypes import tensor_bytes
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import StageSpec
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.loop import modulated_at_once

# For the driver's context and the kernels of the libraries: set aside, not measured.
ALLOWANCE = 600_000_000
# Bytes of activations above which a CPU is no faster with more images in one launch of the decoder or encoder.
ENOUGH_AT_ONCE = 256_000_000
UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
# Bytes that a weight takes, by the narrowest element type of a stage; 4 bits with one fp16 scale for 128 weights.
WEIGHT_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5 + 2 / 128}
QUANTISED = (
    "backbone",
    "modulation",
    "head",
)  # the stages that hold nearly all weights, and whose products can be quantised


@dataclass(frozen=True)
class StageNeed:
    """Bytes that one stage takes."""

    stage: str
    weights: int
    cache: int
    tensors: int  # inputs and outputs, other than the cache
    activations: int  # while it runs; stages of a lane use the same memory in turn


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes for ``images`` guided images at once; the decoder takes ``decoder_images`` of them at a time.

    ``beside``: decoding has memory of its own, so that it need not wait for the loop; else it takes its turn.
    """

    images: int
    decoder_images: int
    beside: bool
    stages: tuple[StageNeed, ...]

    @property
    def weights(self) -> int:
        return sum(need.weights for need in self.stages)

    @property
    def cache(self) -> int:
        return sum(need.cache for need in self.stages)

    @property
    def tensors(self) -> int:
        return sum(need.tensors for need in self.stages)

    @property
    def activations(self) -> int:
        loop = max(need.activations for need in self.stages if need.stage in LOOP_STAGES)
        decoding = max((need.activations for need in self.stages if need.stage not in LOOP_STAGES), default=0)
        return loop + decoding if self.beside else max(loop, decoding)

    @property
    def held(self) -> int:
        """What the generation itself takes, on any device."""
        return self.weights + self.cache + self.tensors + self.activations

    @property
    def total(self) -> int:
        return self.held + ALLOWANCE

    def table(self) -> Iterator[str]:
        parts = ("weights", "cache", "tensors", "activations")
        yield f"{'MB':9} {'weights':>10} {'cache':>10} {'tensors':>10} {'activations':>12} {'together':>10}"
        for need in self.stages:
            sizes = [getattr(need, part) for part in parts]
            yield _row(need.stage, sizes, sum(sizes))
        yield _row("in all", [getattr(self, part) for part in parts], self.held)
        how = "beside the loop" if self.beside else "in turn with the loop, in the same memory"
        yield f"decoding {how}, {self.decoder_images} image{'s' if self.decoder_images > 1 else ''} at once"
        yield f"with {ALLOWANCE / 1e6:.0f} MB set aside for driver and libraries: {self.total / 1e6:.0f} MB"


def _row(name: str, sizes: list[int], together: int) -> str:
    weights, cache, tensors, activations = (f"{size / 1e6:.1f}" for size in sizes)
    return f"{name:9} {weights:>10} {cache:>10} {tensors:>10} {activations:>12} {together / 1e6:10.1f}"


def plan_memory(bundle: Bundle, images: int, *, files: Mapping[str, int] | None = None) -> MemoryPlan:
    """What ``images`` guided images at once take, sampled as the bundle says, all decoded together, beside the loop.

    Args:
        files: bytes of what is loaded instead of a stage's ONNX files, such as its engine.
    """
    names = [name for name in bundle.stages if name != "encoder"]  # which generation does not load
    needs = tuple(_need(bundle, name, images, (files or {}).get(name)) for name in names)
    return MemoryPlan(images=images, decoder_images=images, beside=True, stages=needs)


def _need(bundle: Bundle, name: str, images: int, file: int | None) -> StageNeed:
    spec, model, steps = bundle.stage(name), bundle.model, bundle.sampling.steps
    # Under the linear schedule the rows of the first patch are drawn apart, by buffers of their own.
    draws = 3 * images if name in ("head", "tokens") and bundle.sampling.guidance_schedule == "linear" else images
    at_once = modulated_at_once(2 * images * model.tokens_per_step, steps + 1)
    sizes = {
        "R": 2 * images,
        "B": draws,
        "N": steps + 1,
        "M": at_once,
        "T": model.prompt_tokens + model.tokens_per_step,
    }
    sizes |= model.largest_size.dims
    tensors = _tensor_bytes(spec, sizes)
    scale = images
    if name == "backbone":  # recorded for a patch; the prompt is longer
        scale = images * -(-model.prompt_tokens // model.tokens_per_step)
    if name == "time":
        scale = steps + 1
    if name == "modulation":
        scale = images * at_once
    if name == "head":  # the draws of every step, and where those of the next patch land
        tensors += 2 * tensor_bytes((steps + 1, draws, model.tokens_per_step, model.bits), "float32")
    return StageNeed(
        stage=name,
        weights=spec.bytes if file is None else file,
        cache=bundle.cache.bytes(2 * images) if name == "backbone" else 0,
        tensors=tensors,
        activations=spec.activation_bytes * scale,
    )


def decoded_at_once(spec: StageSpec, images: int) -> int:
    """Of so many images, how many a CPU takes in one launch of the decoder or encoder."""
    return max(1, min(images, ENOUGH_AT_ONCE // max(1, spec.activation_bytes)))


def _tensor_bytes(spec: StageSpec, sizes: Mapping[str, int]) -> int:
    total = 0
    for tensor in (*spec.inputs, *spec.outputs):
        if not tensor.name.startswith(("past_key_values.", "present.")):
            total += tensor.bytes(sizes)
    return total


def fitted(plan: MemoryPlan, free: int) -> MemoryPlan | None:
    """The plan as it fits into ``free`` bytes: decoded in parts, or in turn with the loop, where it must be."""
    for beside in (True, False):
        for at_once in range(plan.images, 0, -1):
            changed = replace(
                plan, beside=beside, decoder_images=at_once, stages=tuple(_decoded(plan, at_once, plan.stages))
            )
            if changed.total <= free:
                return changed
    return None


def _decoded(plan: MemoryPlan, at_once: int, stages: tuple[StageNeed, ...]) -> Iterator[StageNeed]:
    for need in stages:
        if need.stage in LOOP_STAGES:
            yield need
        else:
            part = {"tensors": need.tensors, "activations": need.activations}
            yield replace(need, **{name: size * at_once // plan.images for name, size in part.items()})


def require_memory(bundle: Bundle, images: int, free: int, *, files: Mapping[str, int] | None = None) -> MemoryPlan:
    """The plan for ``images`` at once, as it fits.

    Raises:
        RequestError: it does not fit; with the numbers, and with what would.
    """
    plan = plan_memory(bundle, images, files=files)
    if (found := fitted(plan, free)) is not None:
        return found
    raise RequestError(refusal(bundle, images, free, files=files))


def refusal(bundle: Bundle, images: int, free: int, *, files: Mapping[str, int] | None = None) -> str:
    """What ``images`` at once take at the least, against what is free, and what would fit."""
    plan = plan_memory(bundle, images, files=files)
    least = replace(plan, beside=False, decoder_images=1, stages=tuple(_decoded(plan, 1, plan.stages)))
    ways = list(_ways(bundle, images, free, files))
    what = "1 image at once takes" if images == 1 else f"{images} images at once take"
    return (
        f"{what} {least.total / 1e6:.0f} MB, of which weights "
        f"{least.weights / 1e6:.0f}, cache {least.cache / 1e6:.0f}, tensors {least.tensors / 1e6:.0f}, activations "
        f"{least.activations / 1e6:.0f} and {ALLOWANCE / 1e6:.0f} set aside for driver and libraries; "
        f"{free / 1e6:.0f} MB are free. "
        + ("What would fit: " + "; ".join(ways) if ways else "No form of this bundle would fit: take a smaller model")
    )


def most_images(bundle: Bundle, largest: int, free: int, *, files: Mapping[str, int] | None = None) -> int:
    """The most images, up to ``largest``, that fit at once; 0 where not even one does."""
    for images in range(largest, 0, -1):
        if fitted(plan_memory(bundle, images, files=files), free) is not None:
            return images
    return 0


def _ways(bundle: Bundle, images: int, free: int, files: Mapping[str, int] | None) -> Iterator[str]:
    if fewer := most_images(bundle, images - 1, free, files=files):
        yield f"{fewer} at once (max_batch {fewer})"
    for title, kind in (("FP8", "fp8"), ("4-bit", "int4")):
        smaller = {name: _requantised(bundle.stage(name), kind) for name in QUANTISED}
        if any(smaller[name] < bundle.stage(name).bytes for name in QUANTISED):
            most = most_images(bundle, images, free, files={**(files or {}), **smaller})
            if most:
                yield f"{title} weights in {', '.join(QUANTISED)}, {most} at once"


def _requantised(stage: StageSpec, kind: str) -> int:
    """Bytes of a stage with its weights in another element type; never more than it has."""
    now = WEIGHT_BYTES.get(stage.precision.split("+")[0], WEIGHT_BYTES["fp32"])
    return int(stage.bytes * min(1.0, WEIGHT_BYTES[kind] / now))


def parse_memory(text: str) -> int:
    """``16GB``, ``512 MB``, ``24GiB`` to bytes.

    Raises:
        RequestError: it is not a size of memory.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    unit = next((unit for unit in UNITS if match and unit.lower() == match[2].lower()), None)
    if match is None or unit is None:
        raise RequestError(f"memory is {text!r}; write a number with one of {', '.join(UNITS)}, for example 16GB")
    return int(float(match[1]) * UNITS[unit])
