"""Makes shards of a plan on one device: what a worker process and a worker of a cluster both run."""

import platform
import re
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitdance_edge.runtime import ImageDone, Pipeline, Size
from bitdance_edge.scale.durable import write_durably
from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.formats import writer
from bitdance_edge.scale.plan_file import NAME, job_plan
from bitdance_edge.scale.records import Record, write_record

GPU = re.compile(r"cuda:\d+ \((.*)\)")  # the name is in the brackets; which one it is decides nothing


class ShardMaker:
    """A pipeline that makes shards of the job in a folder."""

    def __init__(
        self, folder: Path, bundle: str | None = None, *, device: str = "auto", threads: int | None = None
    ) -> None:
        """Read the folder's plan and open its bundle.

        Args:
            bundle: folder of the bundle on this machine; None: the one that the plan names.
            threads: of each graph on a CPU; None: one a physical core.

        Raises:
            ScaleError: there is no plan, or the bundle is another.
            BundleError, BackendError, RequestError: as ``Pipeline.open``.
        """
        plan = job_plan(folder)
        if plan is None:
            raise ScaleError(f"{folder} has no {NAME} on this machine; all workers must see the same folder")
        self.folder, self.plan = folder, plan
        self.pipeline = Pipeline.open(
            bundle or plan.bundle, device=device, threads=threads, max_batch=plan.images_at_once
        )
        if self.pipeline.bundle.digest != plan.bundle_sha256:
            self.pipeline.close()
            raise ScaleError(
                f"{self.pipeline.bundle.folder} is not the bundle that {folder / NAME} was planned with; give that one "
                "with --bundle FOLDER"
            )

    def make(
        self, shard: int, progress: Callable[[int], object] = lambda images: None, cancel: threading.Event | None = None
    ) -> Record:
        """Generate a shard and write it, then its sidecar.

        Args:
            progress: called with the number of images that were added.

        Raises:
            Cancelled: ``cancel`` was set; nothing of the shard is left.
            StorageError, BackendError, RequestError: it cannot be made.
        """
        plan, images = self.plan, self.plan.images_of(shard)
        size = Size.parse(plan.settings["size"])
        with (
            write_durably(self.folder / plan.file(shard)) as file,
            writer(plan.file_format, file, images, size) as add,
        ):
            index = images.start
            for request in plan.launches(shard):
                before = index
                for event in self.pipeline.stream(request, cancel):
                    if isinstance(event, ImageDone):
                        add(index, event.image)
                        index += 1
                progress(index - before)
        return write_record(plan, self.folder, shard, self.made_by)

    @property
    def made_by(self) -> dict[str, Any]:
        """What decides how a device rounds: version, backend, device, and the stages that run as built for it."""
        choice = self.pipeline.choice
        gpu = GPU.fullmatch(choice.device)
        return {
            "version": version("bitdance-edge"),
            "backend": choice.backend,
            "device": gpu[1] if gpu else f"{choice.device} {platform.machine()}",
            "target": choice.target,
            "built": list(choice.built),
        }

    def close(self) -> None:
        self.pipeline.close()
