"""A stage's graph and weights on disk, written one weight after the other, so that none but one is in memory.

A journal says which weights are complete. A run that was stopped goes on behind the last of them: what it left behind
of the next one is cut off.
"""

import base64
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

from bitdance_edge.calibration.kept import damaged_run
from bitdance_edge.calibration.quantise import Promised, QuantisedGraph
from bitdance_edge.calibration.weights import Encoded
from bitdance_edge.runtime.bundle.external_data import mapped_external

INLINE_BYTES = 1024  # larger tensors go to the file of weights
ALIGNED = 64  # bytes: where a weight may begin in its file
COPIED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Lost:
    """Sums of squares of what was rounded away of a weight, and of the weight."""

    error: float
    size: float

    @property
    def relative_error(self) -> float:
        """Root mean square of what was rounded away, over that of the weight."""
        return math.sqrt(self.error / self.size) if self.size else 0.0


@dataclass
class Journal:
    """What is complete in the files of a folder: a line of JSON a weight, behind the first digits of its SHA-256."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Read the journal of a run that was stopped, without a last line that is not whole; or begin one.

        Raises:
            CalibrationError: a line is not as it was written.
        """
        content = path.read_bytes() if path.is_file() else b""
        *whole, torn = content.split(b"\n")
        lines = []
        for number, line in enumerate(whole, 1):
            digits, _, text = line.partition(b" ")
            if _digits(text) != digits:
                raise damaged_run(path.parent, f"line {number} of {path} is not as it was written")
            lines.append(json.loads(text))
        if torn or not content:
            path.write_bytes(content[: len(content) - len(torn)])
        return cls(path, lines)

    def of(self, file: str) -> list[dict[str, Any]]:
        """The lines of one file of weights."""
        return [line for line in self.lines if line["file"] == file]

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        text = json.dumps(line).encode()
        with self.path.open("ab") as file:
            file.write(_digits(text) + b" " + text + b"\n")


def _digits(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest()[:16].encode()


Unit = tuple[str, list[TensorProto]]  # weights that are written together: those of a layer, or one that is copied


def write_stage_file(
    path: Path,
    made: QuantisedGraph,
    folder: Path,
    encoded: Callable[[Promised], Encoded],
    journal: Journal,
    note: Callable[[str, int], None] = lambda unit, size: None,
    finished: Callable[[], QuantisedGraph] | None = None,
) -> dict[str, Lost]:
    """Write a graph to ``path`` and its weights to ``<path>.data``.

    Args:
        folder: of the files that hold the weights which are copied.
        encoded: rounds the weight of a promised tensor.
        journal: of the folder that is written to.
        note: is told of each weight that is complete, and how large it was as exported.
        finished: gives the same graph again when all weights are written, with what is only known then.

    Returns:
        Layer -> what was rounded away of its weight.

    Raises:
        CalibrationError: the file of weights is shorter than the journal says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_name(f"{path.name}.data")
    done = {line["unit"]: line for line in journal.of(data.name)}
    lost = {}
    end = max((line["end"] for line in done.values()), default=0)
    if end > (data.stat().st_size if data.exists() else 0):
        raise damaged_run(journal.path.parent, f"{data} is shorter than it was written")
    with data.open("r+b" if data.exists() else "w+b") as file:
        file.truncate(end)
        file.seek(0, os.SEEK_END)
        for unit, tensors in _units(made):
            if unit not in done:
                line = _write_unit(file, unit, tensors, made, folder, encoded)
                file.flush()
                os.fsync(file.fileno())  # the journal must not be ahead of the disk
                journal.add({"file": data.name, **line})
                done[unit] = line
            line = done[unit]
            if "lost" in line:
                lost[made.promised[tensors[0].name].layer.name] = Lost(*line["lost"])
            note(unit, line["bytes"])
        empty = file.tell() == 0
    if empty:
        data.unlink()
    final = made if finished is None else finished()
    for unit, tensors in _units(final):
        _refer(tensors, data.name, done[unit])
    onnx.save(final.model, path)
    return lost


def _units(made: QuantisedGraph) -> Iterator[Unit]:
    """What is written together, in the order of the graph; constants that stay inside the graph are none."""
    together: dict[str, list[TensorProto]] = {}
    for tensor in made.model.graph.initializer:
        if tensor.name in made.promised:
            together.setdefault(made.promised[tensor.name].layer.weight, []).append(tensor)
        elif uses_external_data(tensor) or len(tensor.raw_data) > INLINE_BYTES:
            together[tensor.name] = [tensor]
    yield from together.items()


def _write_unit(
    file: IO[bytes],
    unit: str,
    tensors: list[TensorProto],
    made: QuantisedGraph,
    folder: Path,
    encoded: Callable[[Promised], Encoded],
) -> dict[str, Any]:
    line: dict[str, Any] = {"unit": unit, "places": {}, "inside": {}}
    first = made.promised.get(tensors[0].name)
    if first is None:
        (tensor,) = tensors
        line["places"][tensor.name], line["bytes"] = _copy(file, tensor, folder), _size(tensor)
    else:
        weight = encoded(first)
        for tensor in tensors:
            content = made.promised[tensor.name].bytes_of(weight)
            if len(content) > INLINE_BYTES:
                line["places"][tensor.name] = _append(file, [content])
            else:
                line["inside"][tensor.name] = base64.b64encode(content).decode()
        line["lost"], line["bytes"] = [weight.error, weight.size], first.layer.weight_bytes
    line["end"] = file.tell()
    return line


def _size(tensor: TensorProto) -> int:
    if not uses_external_data(tensor):
        return len(tensor.raw_data)
    return int(next(entry.value for entry in tensor.external_data if entry.key == "length"))


def _copy(file: IO[bytes], tensor: TensorProto, folder: Path) -> list[int]:
    if not uses_external_data(tensor):
        return _append(file, [tensor.raw_data])
    values = mapped_external(tensor.external_data, folder, np.dtype(np.uint8))
    return _append(file, (values[at : at + COPIED_AT_ONCE].data for at in range(0, len(values), COPIED_AT_ONCE)))


def _append(file: IO[bytes], chunks: Any) -> list[int]:
    """Write at the next place where a weight may begin; returns offset and length."""
    file.write(bytes(-file.tell() % ALIGNED))
    offset = file.tell()
    for chunk in chunks:
        file.write(chunk)
    return [offset, file.tell() - offset]


def _refer(tensors: list[TensorProto], location: str, line: Mapping[str, Any]) -> None:
    """Let tensors have the values that a line of the journal says."""
    for tensor in tensors:
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        if tensor.name in line["inside"]:
            tensor.data_location = TensorProto.DEFAULT
            tensor.raw_data = base64.b64decode(line["inside"][tensor.name])
            continue
        offset, length = line["places"][tensor.name]
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
