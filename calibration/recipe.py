"""The choices of a calibration, apart from the numbers that a checkpoint gives: reusable on a fine-tuned checkpoint."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.ranges import CALIBRATORS, PRECISIONS
from bitdance_edge.calibration.recipe_values import recipe_values
from bitdance_edge.runtime.bundle.json_file import read_json
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.size import Size
from bitdance_edge.runtime.bundle.specs import ImageSize, ModelSpec
from bitdance_edge.runtime.reading import MOST_TEXT
from bitdance_edge.runtime.request import Request

FORMAT = 3
READABLE = (1, 2, FORMAT)  # format 1 has the size as [height, width], 2 no error feedback
MOST_BYTES = 4 * MOST_TEXT  # of a file that holds a file of prompts, escaped
HELD_OUT_SEED = 1_000_000  # seeds of held-out images start this far from those of the recorded ones


class Part(IntEnum):
    """Sets of held-out images, by what they serve; no two have an image in common."""

    STAGES = 0
    RANKING = 1
    SEARCH = 2
    TEST = 3
    JUDGE = 4


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Which images are generated: ``images`` of them, over ``classes`` or ``prompts`` in a seeded order.

    Attributes:
        classes: ids or names; none for all of a class-conditional bundle.
        prompts: of a text-to-image bundle.
        patches: of each image, from its first; None for all.
        size: in pixels. Where it, ``steps`` or ``guidance`` is None, the bundle's is taken.
    """

    images: int
    seed: int
    classes: tuple[int | str, ...] = ()
    prompts: tuple[str, ...] = ()
    size: Size | None = None
    patches: int | None = None
    steps: int | None = None
    guidance: float | None = None

    def requests(self, model: ModelSpec, batch: int) -> Iterator[Request]:
        """Yield the images as requests of at most ``batch``; image i has the seed ``seed + i``.

        Raises:
            CalibrationError: no images or prompts, or a number of patches that the model does not have.
        """
        if self.images < 1:
            raise CalibrationError(
                f"the calibration set is empty: it has {self.images} images; give --images a number from 1"
            )
        patches = self.image_size(model).patches
        if self.patches is not None and not 1 <= self.patches <= patches:
            raise CalibrationError(f"--patches is {self.patches}; images of this bundle have 1 to {patches}")
        drawn = list(self.prompts) or list(self.classes) or list(range(model.num_classes))
        if not drawn:
            raise CalibrationError("this bundle draws prompts: give --prompts FILE, one prompt a line")
        generator, order = np.random.default_rng(self.seed), []
        while len(order) < self.images:
            order.extend(int(i) for i in generator.permutation(len(drawn)))
        for first in range(0, self.images, batch):
            part: list[Any] = [drawn[i] for i in order[first : min(first + batch, self.images)]]
            yield Request(
                classes=() if self.prompts else part,
                prompts=part if self.prompts else (),
                seed=self.seed + first,
                size=self.size,
                steps=self.steps,
                guidance=self.guidance,
                output="tokens",
                window=1,  # launches are counted by the head's evaluations
            )

    def image_size(self, model: ModelSpec) -> ImageSize:
        return model.size(self.size)

    def held_out(self, images: int, part: Part) -> "Draw":
        """Return the draw of other images by the same rules."""
        return replace(self, images=images, seed=self.seed + HELD_OUT_SEED * (1 + part))


@dataclass(frozen=True, kw_only=True)
class CalibrationRecipe:
    """Every choice of a calibration.

    Attributes:
        precisions: stage -> "int8", "fp8", "int4" or "nvfp4"; other stages stay as exported.
        calibrator, percentile: how limits of activations are chosen (see ``ranges``).
        smooth: strength of SmoothQuant, None for none.
        weigh_times: count the head's samples by how much their sampling time matters.
        feedback: round 4-bit weights with error feedback (see ``gptq``).
        weights_only: nothing is run, and nothing but weights is rounded; of the others only ``precisions`` and ``kept``
            count.
        draw: which images are recorded.
        kept: names of layers that stay as exported in stages that are quantised.
        max_bit_flips: budget that ``kept`` was searched for, a share of bits; None where there was none.
    """

    precisions: Mapping[str, str]
    calibrator: str
    percentile: float
    smooth: float | None
    weigh_times: bool
    draw: Draw
    kept: tuple[str, ...] = ()
    max_bit_flips: float | None = None
    feedback: bool = True
    weights_only: bool = False

    def __post_init__(self) -> None:
        if not self.precisions:
            raise CalibrationError("nothing is to be quantised: give a precision, or one to a stage (--head int8)")
        for stage, precision in self.precisions.items():
            if precision not in PRECISIONS:
                raise CalibrationError(f"{stage} is to be {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        if self.calibrator not in CALIBRATORS:
            raise CalibrationError(f"calibrator is {self.calibrator!r}; it must be one of {', '.join(CALIBRATORS)}")
        if not 50 <= self.percentile <= 100:
            raise CalibrationError(f"percentile is {self.percentile:g}; it must be from 50 to 100")
        if self.smooth is not None and not 0 < self.smooth < 1:
            raise CalibrationError(f"smooth is {self.smooth:g}; the strength of SmoothQuant is between 0 and 1")
        if self.max_bit_flips is not None and not 0 < self.max_bit_flips < 0.5:
            raise CalibrationError(
                f"the budget of bit flips is {100 * self.max_bit_flips:g}%; it must be above 0% and below 50%"
            )

    @property
    def name(self) -> str:
        """The precision where there is one, ``mixed`` where there are several."""
        distinct = set(self.precisions.values())
        return distinct.pop() if len(distinct) == 1 else "mixed"

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> "CalibrationRecipe":
        """Read a recipe file of this format or the one before.

        Raises:
            CalibrationError: the file is missing, or is not such a recipe.
        """
        remedy = "give calibration/recipe.json of a calibrated bundle"
        try:
            data = recipe_values(read_json(path, MOST_BYTES)[0])
            found = data.pop("format")
            data |= {} if found == FORMAT else {"feedback": False, "weights_only": False}
            if found not in READABLE or data.keys() != {field.name for field in fields(cls)}:
                raise KeyError
            draw = _draw(data.pop("draw"))
            return cls(**{**data, "draw": draw, "kept": tuple(data["kept"])})
        except OSError as error:
            raise CalibrationError(f"{path} cannot be read ({error.strerror or error}); {remedy}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f" ({error})" if isinstance(error, ValueError) else ""
            raise CalibrationError(f"{path} is not a recipe of this version{why}; {remedy}") from None

    def require_stages(self, bundle: Bundle) -> None:
        """Refuse a recipe for stages that a bundle does not have, or a bundle that is calibrated already."""
        for stage in self.precisions:
            bundle.stage(stage)
        done = [name for name, stage in bundle.stages.items() if stage.precision in PRECISIONS]
        if done:
            raise CalibrationError(
                f"{bundle.folder} is calibrated already ({', '.join(done)}); calibrate the bundle that it was made of"
            )


def _draw(data: dict[str, Any]) -> Draw:
    size = data["size"]
    if isinstance(size, list):
        size = dict(zip(("height", "width"), size, strict=True))
    listed = {name: tuple(data[name]) for name in ("classes", "prompts")}
    return Draw(**{**data, **listed, "size": None if size is None else Size(**size)})
