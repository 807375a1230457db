"""Builds for tests: of what a plan lets pass, without looking at the progress."""

import threading
from collections.abc import Sequence

from bitdance_edge.engines.build import Watcher, build_stage
from bitdance_edge.engines.check import BuildCheck
from bitdance_edge.engines.plan import plan_builds
from bitdance_edge.engines.targets import parse_target
from bitdance_edge.runtime import Bundle
from bitdance_edge.runtime.bundle.record import BuildRecord


def build(
    bundle: Bundle, target: str, stages: Sequence[str] = (), watcher: Watcher = lambda watch: None
) -> dict[str, BuildRecord]:
    """Build these stages, or those that the target builds by default; the record of each."""
    asked = parse_target(target)
    plan, check = plan_builds(bundle, asked, stages, max_images=1, force=True), BuildCheck(bundle)
    plan.require_possible()
    return {stage.job.stage: build_stage(stage, asked, check, threading.Event(), watcher) for stage in plan.to_build}
