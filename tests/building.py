"""Builds for tests: of what a plan lets pass, without looking at the progress."""

import threading
from collections.abc import Sequence

from bitdance_edge.engines.builder import Watcher, build_stage
from bitdance_edge.engines.plan import plan_builds
from bitdance_edge.engines.targets.tensorrt import Target
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.backends.tensorrt_library import Library
from bitdance_edge.runtime.bundle.sidecar import Sidecar


def build(
    bundle: Bundle, library: Library, stages: Sequence[str], watcher: Watcher | None = None
) -> dict[str, Sidecar]:
    """Engines of these stages for the default target; the sidecar of each."""
    plan = plan_builds(bundle, Target.parse("rtx"), library, stages, 1, force=True)
    plan.require_possible()
    return {
        stage.build.stage: build_stage(stage.build, library, threading.Event(), watcher or (lambda watch: None))
        for stage in plan.to_build
    }
