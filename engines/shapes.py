"""The shapes an engine is built for: for each optimisation profile, the smallest, likeliest and largest of each input.

The backbone has two profiles of one fixed length each, the prompt and a patch, so that one engine with one set of
weights serves both.
"""

from dataclasses import dataclass

from bitdance_edge.runtime.bundle import Bundle
from bitdance_edge.runtime.errors import EngineError
from bitdance_edge.runtime.request import MAX_STEPS

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeProfile:
    name: str
    shapes: dict[str, tuple[Shape, Shape, Shape]]  # input -> smallest, likeliest, largest


def shape_profiles(bundle: Bundle, stage: str, max_images: int) -> tuple[ShapeProfile, ...]:
    """The profiles of a stage for 1 to ``max_images`` images at once, with and without guidance.

    Raises:
        EngineError: a dimension of the stage has a name that this version does not know, or ``max_images`` is wrong.
    """
    if max_images < 1:
        raise EngineError(f"--max-images is {max_images}; it must be at least 1")
    patch = bundle.model.tokens_per_step
    lengths = {"prompt": bundle.model.prompt_tokens, "patch": patch} if stage == "backbone" else {"all": 0}
    rows = 2 * max_images  # guided: a conditional and an unconditional row an image
    # Draws are images, but for a patch whose two rows are sampled apart.
    draws = rows if stage in ("head", "tokens") else max_images
    steps = bundle.sampling.steps + 1
    profiles = []
    for name, length in lengths.items():
        ranges = {
            "R": (1, rows, rows),
            "B": (1, max_images, draws),
            "N": (2, steps, MAX_STEPS + 1),
            **({"T": (length, length, length)} if length else {}),
        }
        profiles.append(ShapeProfile(name, _ranged(bundle, stage, ranges)))
    return tuple(profiles)


def _ranged(
    bundle: Bundle, stage: str, ranges: dict[str, tuple[int, int, int]]
) -> dict[str, tuple[Shape, Shape, Shape]]:
    shapes = {}
    for tensor in bundle.stage(stage).inputs:
        named = [dim for dim in tensor.shape if isinstance(dim, str)]
        if unknown := [dim for dim in named if dim not in ranges]:
            raise EngineError(
                f"{stage} input {tensor.name} has dimensions {', '.join(unknown)}; engines are built for "
                f"{', '.join(ranges)}: the bundle is of another version, export it again"
            )
        smallest, likeliest, largest = (
            tensor.sized({name: sizes[i] for name, sizes in ranges.items()}) for i in range(3)
        )
        shapes[tensor.name] = (smallest, likeliest, largest)
    return shapes
