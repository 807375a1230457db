"""Whether a bundle's stages make numbers: pixels and bits are finite whatever they are made of.

What a stage of the generator makes is the input of another and so recorded. Of decoder and encoder, the last layer with
weights is looked at.
"""

from collections.abc import Mapping

import numpy as np

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.graphs import OPERATORS, read_skeleton
from bitdance_edge.calibration.sessions import session_of, with_outputs
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.module_paths import enclosing_modules
from bitdance_edge.runtime.bundle.stage_names import StageName
from bitdance_edge.runtime.values import quoted


def require_finite(bundle: Bundle, arrays: Mapping[str, np.ndarray], threads: int | None) -> None:
    """Check what was recorded of one image: ``stage/launch/input`` -> values.

    Raises:
        CalibrationError: a value is NaN or infinite; the error names the first module that makes one, if its stage's
            first launch does.
    """
    if all(_finite(values) for values in arrays.values()):
        bad = [
            stage
            for stage in (StageName.DECODER, StageName.ENCODER)
            if stage in bundle.stages and not _finite_before_the_last(bundle, stage, arrays, threads)
        ]
        if not bad:
            return
    else:
        bad = list(bundle.stages)
    for stage in bad:
        if module := _first_module(bundle, stage, arrays, threads):
            raise CalibrationError(
                f"{stage} makes values that are NaN or infinite, the first in {module}: no scale fits; export the "
                "checkpoint again, in a wider --dtype if it is whole"
            )
    raise CalibrationError(
        f"{bundle.folder} makes values that are NaN or infinite: no scale fits; find where they begin with: "
        f"bitdance-edge compare {quoted(bundle.folder)}"
    )


def _finite_before_the_last(bundle: Bundle, stage: str, arrays: Mapping[str, np.ndarray], threads: int | None) -> bool:
    """Whether what pixels or bits are made of is finite."""
    path = bundle.verified(stage)
    model = read_skeleton(path)
    last = next((node.output[0] for node in reversed(model.graph.node) if node.op_type in OPERATORS), None)
    if last is None:
        return True
    session = session_of(with_outputs(model, [last]), path.parent, threads)
    (made,) = session.run([last], _first_launch(bundle, stage, arrays))
    return _finite(made)


def _first_module(bundle: Bundle, stage: str, arrays: Mapping[str, np.ndarray], threads: int | None) -> str | None:
    """The first module, in the order of the graph, that makes such a value at the stage's first launch."""
    inputs = _first_launch(bundle, stage, arrays)
    if not all(map(_finite, inputs.values())):
        return None
    path = bundle.verified(stage)
    model = read_skeleton(path)
    made_by = {
        node.output[0]: modules[-1] for node in model.graph.node if (modules := enclosing_modules(node.metadata_props))
    }
    session = session_of(with_outputs(model, list(made_by)), path.parent, threads)
    made = zip(made_by.values(), session.run(list(made_by), inputs), strict=True)
    return next((module for module, values in made if not _finite(values)), None)


def _first_launch(bundle: Bundle, stage: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs of a stage's first recorded launch, with an empty cache."""
    launches = {int(key.split("/")[1]) for key in arrays if key.startswith(f"{stage}/")}
    first = f"{stage}/{min(launches)}/"
    found = {key.removeprefix(first): values for key, values in arrays.items() if key.startswith(first)}
    rows = next(iter(found.values())).shape[0]
    for tensor in bundle.stage(stage).inputs:
        if tensor.name not in found:
            found[tensor.name] = np.zeros(tensor.sized({"R": rows}), tensor.dtype)
    return found


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all()) if np.issubdtype(values.dtype, np.floating) else True
