"""What the launches of a stage are given, or what one of its layers hands on: a folder with a file an image."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitdance_edge.calibration.kept import damaged_run
from bitdance_edge.calibration.record import Sample
from bitdance_edge.runtime.bundle.files import written_whole

COMPLETE = "complete"


@dataclass(frozen=True)
class Launches:
    """Launches of ``stage``, image by image; values of 16 bits that numpy lacks are kept as float32."""

    folder: Path
    stage: str

    @property
    def complete(self) -> bool:
        return (self.folder / COMPLETE).is_file()

    def finish(self) -> None:
        """Say that all images are there."""
        with written_whole(self.folder / COMPLETE):
            pass

    def has(self, image: int) -> bool:
        return self._file(image).is_file()

    def write(self, image: int, launches: list[tuple[int, Mapping[str, np.ndarray]]]) -> None:
        """Keep the launches of an image: the sampling step of each, and its tensors by name."""
        arrays = {
            f"{launch}/{step}/{name}": values
            for launch, (step, tensors) in enumerate(launches)
            for name, values in tensors.items()
        }
        with written_whole(self._file(image)) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def of(self, image: int) -> Iterator[Sample]:
        """Yield the launches of an image in their order, one in memory at a time.

        Raises:
            CalibrationError: the file is missing or damaged.
        """
        with self._opened(self._file(image)) as data:
            places: dict[tuple[int, int], list[str]] = {}
            for key in data.files:
                launch, step, _ = key.split("/", 2)
                places.setdefault((int(launch), int(step)), []).append(key)
            for (launch, step), keys in places.items():
                yield Sample(self.stage, image, launch, step, {key.split("/", 2)[2]: data[key] for key in keys})

    @contextmanager
    def _opened(self, file: Path) -> Iterator[np.lib.npyio.NpzFile]:
        try:
            with np.load(file, allow_pickle=False) as data:
                yield data
        except Exception as error:  # of a damaged archive numpy, zipfile and zlib raise any
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise damaged_run(self.folder.parent.parent, f"{file} cannot be read ({reason})") from None

    def _file(self, image: int) -> Path:
        return self.folder / f"image-{image:05d}.npz"
