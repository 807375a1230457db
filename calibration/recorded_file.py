"""One image's file of recorded inputs (.npz): read within bounds, and compared with what the stage takes."""

import re
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from bitdance_edge.calibration.errors import CalibrationError
from bitdance_edge.calibration.sessions import CACHE_INPUT
from bitdance_edge.runtime.bundle.specs import StageSpec

KEY = re.compile(r"(?P<stage>[a-z]+)/(?P<launch>\d{1,9})/(?P<input>.+)")


def read_launches(file: Path, stage: str, spec: StageSpec) -> dict[int, dict[str, np.ndarray]]:
    """Return the inputs of a stage by launch and name.

    Raises:
        CalibrationError: the file is missing or damaged, or its arrays are not those that the stage takes.
    """
    remedy = "delete it and run the same command again"
    try:
        arrays = _arrays(file, stage)
    except Exception as error:  # of a damaged archive numpy, zipfile and zlib raise any
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CalibrationError(f"the recording {file} cannot be read ({reason}); {remedy}") from None
    launches: dict[int, dict[str, np.ndarray]] = {}
    for key, values in arrays.items():
        _, launch, name = key.split("/", 2)
        launches.setdefault(int(launch), {})[name] = values
    for launch, inputs in launches.items():
        if complaint := _complaint(inputs, spec):
            raise CalibrationError(f"the recording {file} is damaged: {stage}, launch {launch}: {complaint}; {remedy}")
    return launches


def _arrays(file: Path, stage: str) -> dict[str, np.ndarray]:
    with ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed, as no recording is")
    with np.load(file, allow_pickle=False) as data:
        found = {key: KEY.fullmatch(key) for key in data.files}
        if unknown := [key for key, match in found.items() if match is None]:
            raise ValueError(f"it holds {unknown[0][:80]!r}")
        return {key: data[key] for key, match in found.items() if match is not None and match["stage"] == stage}


def _complaint(inputs: Mapping[str, np.ndarray], spec: StageSpec) -> str | None:
    wanted = {tensor.name: tensor for tensor in spec.inputs if not tensor.name.startswith(CACHE_INPUT)}
    if inputs.keys() != wanted.keys():
        return f"it holds {', '.join(sorted(inputs))[:80]}, not {', '.join(sorted(wanted))}"
    for name, values in inputs.items():
        dims = wanted[name].shape
        fixed = all(dim == size for dim, size in zip(dims, values.shape, strict=False) if isinstance(dim, int))
        if values.dtype.name != wanted[name].dtype or values.ndim != len(dims) or not fixed:
            return f"{name} is {values.dtype} {list(values.shape)}, not {wanted[name].dtype} {list(dims)}"
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            return f"{name} has values that are not finite"
    return None
