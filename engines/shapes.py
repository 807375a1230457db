"""The shapes an engine is built for: for each optimisation profile, the smallest, likeliest and largest of each input.

The backbone has two profiles of one fixed length each, the prompt and a patch, so that one engine with one set of
weights serves both.
"""

from dataclasses import dataclass

from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import dim_factor
from bitdance_edge.runtime.bundle.stage_names import WINDOW_STAGES, StageName
from bitdance_edge.runtime.errors import BuildError
from bitdance_edge.runtime.loop import modulated_at_once
from bitdance_edge.runtime.request import MAX_STEPS
from bitdance_edge.runtime.sampler import MAX_WINDOW

Shape = tuple[int, ...]
Range = tuple[int, int, int]  # smallest, likeliest, largest
LIKELY_WINDOW = 16
LIKELY_PROMPT = 64  # tokens of a text prompt that kernels are chosen for


@dataclass(frozen=True)
class ShapeProfile:
    name: str
    shapes: dict[str, tuple[Shape, Shape, Shape]]  # input -> smallest, likeliest, largest


def shape_profiles(bundle: Bundle, stage: str, max_images: int) -> tuple[ShapeProfile, ...]:
    """The profiles of a stage for 1 to ``max_images`` images at once, with and without guidance.

    Raises:
        BuildError: a dimension of the stage has a name that this version does not know, or ``max_images`` is wrong.
    """
    if max_images < 1:
        raise BuildError(f"--max-images is {max_images}; it must be at least 1")
    rows = 2 * max_images  # guided: a conditional and an unconditional row an image
    # Draws are images, but for a patch whose two rows are sampled apart.
    draws = rows if stage in (StageName.HEAD, StageName.TOKENS, *WINDOW_STAGES) else max_images
    common = {
        "R": (1, rows, rows),
        "B": (1, max_images, draws),
        "N": _evaluations(bundle, stage, rows),
        "M": _modulated(bundle, rows),
        "W": (2, LIKELY_WINDOW, MAX_WINDOW),
        "H": (1, 2, 2),
        "K": (3, bundle.sampling.steps + 3, MAX_STEPS + 3),
    }
    return tuple(
        ShapeProfile(name, _ranged(bundle, stage, {**common, **ranges}))
        for name, ranges in _profiles(bundle, stage, rows).items()
    )


def _modulated(bundle: Bundle, rows: int) -> Range:
    """Head evaluations modulated at once: the most for one row, the likeliest for all rows with the bundle's steps."""
    tokens = bundle.model.tokens_per_step
    return 1, modulated_at_once(rows * tokens, bundle.sampling.steps + 1), modulated_at_once(tokens, MAX_STEPS + 1)


def _evaluations(bundle: Bundle, stage: str, rows: int) -> Range:
    """Times embedded at once, or evaluations whose modulations are kept: whole batches of those modulated at once."""
    most, likely = MAX_STEPS + 1, bundle.sampling.steps + 1
    batch = modulated_at_once(rows * bundle.model.tokens_per_step, likely)
    return (1, -(-likely // batch) * batch, 2 * most) if stage == StageName.SETTLE else (1, likely, most)


def _profiles(bundle: Bundle, stage: str, rows: int) -> dict[str, dict[str, Range]]:
    """What differs between the profiles of a stage."""
    model, prompt, patch = bundle.model, _prompt_lengths(bundle), bundle.model.tokens_per_step
    if stage == StageName.HEAD and bundle.window is not None:
        # In a window each row of each time is a draw of its own.
        window = (2, LIKELY_WINDOW * rows, MAX_WINDOW * rows)
        return {"all": {}, "window": {"R": window, "B": window}}
    if stage == StageName.BACKBONE:
        return {"prompt": {"T": prompt}, "patch": {"T": (patch, patch, patch)}}
    if stage in (StageName.DECODER, StageName.ENCODER) and len(model.sizes) > 1:
        # One a size: a range over all would take the memory of the tallest by the widest image.
        return {
            str(size): {name: (dim, dim, dim) for name, dim in size.dims.items()}
            for size in map(model.size, model.sizes)
        }
    dims = {name: (dim, dim, dim) for name, dim in model.default_size.dims.items()}
    return {"all": {"T": prompt, **dims}}


def _prompt_lengths(bundle: Bundle) -> Range:
    """Tokens of the shortest, the likeliest and the longest prompt; those of classes have one length."""
    longest = bundle.model.prompt_tokens
    if bundle.text is None:
        return longest, longest, longest
    suffix = longest - bundle.text.max_prompt
    return suffix + 1, min(suffix + LIKELY_PROMPT, longest), longest


def _ranged(bundle: Bundle, stage: str, ranges: dict[str, Range]) -> dict[str, tuple[Shape, Shape, Shape]]:
    shapes = {}
    for tensor in bundle.stage(stage).inputs:
        named = [dim_factor(dim)[1] for dim in tensor.shape if isinstance(dim, str)]
        if unknown := [dim for dim in named if dim not in ranges]:
            raise BuildError(
                f"{stage} input {tensor.name} has dimensions {', '.join(unknown)}; engines are built for "
                f"{', '.join(ranges)}: the bundle is of another version, export it again"
            )
        smallest, likeliest, largest = (
            tensor.sized({name: sizes[i] for name, sizes in ranges.items()}) for i in range(3)
        )
        shapes[tensor.name] = (smallest, likeliest, largest)
    return shapes
