"""Checks a job's folder byte by byte, without its bundle."""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bitdance_edge.scale.errors import ScaleError
from bitdance_edge.scale.plan import Plan
from bitdance_edge.scale.plan_file import NAME, job_plan
from bitdance_edge.scale.records import Problem, Record, check, content_digest, manifest_problem, sidecar


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The shards of a plan that are whole, those that are missing or damaged, and what is wrong with the manifest."""

    plan: Plan
    whole: list[Record]
    problems: list[Problem]
    manifest: str  # "" where it is right

    @property
    def content(self) -> str:
        """The digest of all shards' content, of a job that is whole."""
        return content_digest(self.whole)


def verify(folder: Path, shards: range | None = None) -> Findings:
    """Read every shard and compare it with its sidecar; None: all shards of the plan, and the manifest.

    Raises:
        ScaleError: the folder has no plan.
    """
    plan = require_plan(folder)
    chosen = range(plan.shards) if shards is None else shards
    states = [
        check(plan, folder, shard, content=True)
        for shard in tqdm(chosen, "verifying", unit="shard", leave=False, disable=None)
    ]
    problems = [state for state in states if isinstance(state, Problem)]
    whole = [state for state in states if isinstance(state, Record)]
    manifest = "" if problems or shards is not None else manifest_problem(plan, folder, whole)
    return Findings(plan=plan, whole=whole, problems=problems, manifest=manifest)


def discard(findings: Findings, folder: Path) -> int:
    """Remove the sidecars of damaged shards, so that they are made again; returns their number."""
    present = [
        path for problem in findings.problems if (path := sidecar(findings.plan, folder, problem.shard)).exists()
    ]
    for path in present:
        path.unlink()
    return len(present)


def require_plan(folder: Path) -> Plan:
    """Read the plan of a job's folder. Raises: ScaleError: there is none."""
    if (plan := job_plan(folder)) is None:
        raise ScaleError(f"{folder} has no {NAME}; give the --out of a job that was made with: bitdance-edge bulk")
    return plan
