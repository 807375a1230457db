"""``bitdance-edge inspect --json``: what the text says, for programs."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from bitdance_edge.runtime import BuildError, Bundle
from bitdance_edge.runtime.backends.choice import survey
from bitdance_edge.runtime.bundle.record import built_folders, records
from bitdance_edge.runtime.memory_plan import SESSIONS, plan_memory


def inspection(bundle: Bundle, images: int) -> dict[str, Any]:
    """Describe a bundle: its manifest, the memory in bytes for ``images`` at once, its builds and what runs it here."""
    manifest = asdict(bundle)
    plan, sessions = plan_memory(bundle, images), plan_memory(bundle, images, SESSIONS)
    return {
        **manifest,
        "folder": str(bundle.folder),
        "published": asdict(bundle.published_sampling),
        "memory": {
            "images": images,
            "stages": [asdict(need) for need in plan.stages],
            "held": plan.held,
            "total": plan.total,
            "total with onnxruntime-cuda": sessions.total,
        },
        "built": list(_builds(bundle)),
        "backends": {name: said for name, _, said in (line.partition(": ") for line in survey(bundle))},
    }


def _builds(bundle: Bundle) -> Iterator[dict[str, Any]]:
    for folder in built_folders(bundle):
        try:
            for record in records(folder):
                yield {"folder": folder.name, "stage": str(record.stage), "bytes": record.bytes, "error": record.error}
        except BuildError as error:
            yield {"folder": folder.name, "damaged": str(error)}
