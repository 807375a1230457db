"""The graphs that were built of a bundle for the device at hand (``bitdance-edge build --target cpu`` or ``cuda``)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bitdance_edge.runtime.backends.processor import instructions
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord, record_path, target_folder
from bitdance_edge.runtime.errors import BuildError, BundleError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltGraphs:
    """Records of graphs that fit bundle, library and device, and why others do not."""

    bundle: Bundle
    folder: Path
    records: Mapping[str, BuildRecord]
    passed_over: Mapping[str, str]  # stage -> why its build is not used

    @classmethod
    def find(cls, bundle: Bundle, target: str, version: str) -> "BuiltGraphs":
        """Look for the builds of a target; ``version`` is that of ONNX Runtime here."""
        folder = target_folder(bundle, target)
        records, passed_over = {}, {}
        for stage in bundle.stages:
            path = record_path(folder, stage)
            if not path.is_file():
                continue
            try:
                record = BuildRecord.read(path)
            except BuildError as error:
                passed_over[stage] = str(error)
                continue
            unfit = record.mismatch(bundle, version)
            if unfit is None and record.devices and instructions() not in record.devices:
                unfit = "it was built for a processor with other instructions"
            if unfit is None:
                records[stage] = record
            else:
                passed_over[stage] = unfit
        for stage, reason in passed_over.items():
            log.info("the build of %s in %s is not used: %s", stage, folder, reason)
        return cls(bundle, folder, records, passed_over)

    def graph(self, stage: str) -> Path | None:
        """The graph to load in place of the bundle's own, or None.

        Raises:
            BundleError: it is truncated or altered.
        """
        record = self.records.get(stage)
        if record is None:
            return None
        if damage := record.damage(self.folder):
            raise BundleError(f"{self.folder / damage}; {record.rebuild_command(self.bundle)}")
        return self.folder / record.files[0].name
