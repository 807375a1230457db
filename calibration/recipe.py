"""What was decided for a calibration, apart from the numbers that a checkpoint gives: reusable on a fine-tuned one."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.formats import PRECISIONS
from bitdance_edge.calibration.ranges import CALIBRATORS
from bitdance_edge.calibration.recording import Draw
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.size import Size

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every choice of a calibration.

    Attributes:
        precisions: stage -> "int8", "fp8" or "int4"; stages without one stay as exported.
        calibrator, percentile: how limits of activations are chosen (see ``ranges``).
        smooth: strength of SmoothQuant, None for none.
        weigh_times: count the head's samples by how much their sampling time matters.
        draw: which images are recorded.
        kept: names of layers that stay as exported in stages that are quantised.
        max_bit_flips: budget that ``kept`` was searched for, None where there was none.
    """

    precisions: Mapping[str, str]
    calibrator: str
    percentile: float
    smooth: float | None
    weigh_times: bool
    draw: Draw
    kept: tuple[str, ...] = ()
    max_bit_flips: float | None = None

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
    def read(cls, path: Path) -> "Recipe":
        """Read a recipe file.

        Raises:
            CalibrationError: none there, or not a recipe of this version.
        """
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            if data.pop("format") != FORMAT or data.keys() != {field.name for field in fields(cls)}:
                raise KeyError
            draw = data.pop("draw")
            data["kept"] = tuple(data["kept"])
            listed = {name: tuple(draw[name]) for name in ("classes", "prompts")}
            size = None if draw["size"] is None else Size(**draw["size"])
            return cls(draw=Draw(**{**draw, **listed, "size": size}), **data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CalibrationError(
                f"{path} cannot be read as a recipe ({type(error).__name__}); take calibration/recipe.json of a "
                "calibrated bundle"
            ) from None

    def require_stages(self, bundle: Bundle) -> None:
        """Refuse a recipe for stages that a bundle does not have, or a bundle that is calibrated already."""
        for stage in self.precisions:
            bundle.stage(stage)
        done = [name for name, stage in bundle.stages.items() if stage.precision in PRECISIONS]
        if done:
            raise CalibrationError(
                f"{bundle.folder} is calibrated already ({', '.join(done)}); calibrate the bundle that it was made of"
            )
