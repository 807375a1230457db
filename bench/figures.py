"""From runs to figures: medians, ratios, the time of each stage, and how far that is from what the machine can do."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from bitdance_edge.bench.contenders import OURS
from bitdance_edge.bench.operations import GraphCosts
from bitdance_edge.bench.runs import ThreadRuns, Turns
from bitdance_edge.bench.work import Work
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.memory_plan import Execution, MemoryPlan, plan_memory

WEIGHTS_FACTOR = 1.3  # memory may reach this many times the weights, plus what the plan says for everything else
# For any model: graphs, threads and arenas of its sessions, and Python's objects (4 to 7 MB at weights of 2 to 9 MB).
SESSION_BYTES = 7_000_000
UNBOUND = ("openvino-bf16",)  # neither the float32 rate nor the bytes of float32 weights bound it
SHARED_FROM = 0.2  # processors that were busy for other processes


def figures(runs: Sequence[ThreadRuns], graphs: Mapping[str, Bundle], work: Work, cache: int) -> list[dict[str, Any]]:
    """Return one entry for each number of threads.

    Args:
        graphs: name of a contender -> bundle whose graphs it runs.
        cache: the machine's last cache in bytes.
    """
    return [_of_threads(run, graphs, work, cache) for run in runs]


def _of_threads(run: ThreadRuns, graphs: Mapping[str, Bundle], work: Work, cache: int) -> dict[str, Any]:
    best = {
        unit: max(rate for ability in (run.before, run.after) for rate in ability[unit].values())
        for unit in ("gflops", "gbytes")
    }
    shown = [_of_contender(turns, graphs.get(turns.contender.name), work, best, cache) for turns in run.turns]
    others = median(one["others"] for turns in run.turns for one in turns.rounds)
    references = [turns for turns in run.turns if turns.contender.kind != OURS]
    for turns, entry in zip(run.turns, shown, strict=True):
        entry["against"] = {other.contender.name: _ratio(turns, other) for other in references if other is not turns}
    return {
        "threads": run.threads,
        "others": others,
        "shared": others > SHARED_FROM,
        "machine": {"before": run.before, "after": run.after, **best},
        "contenders": shown,
    }


def _ratio(ours: Turns, theirs: Turns) -> dict[str, float]:
    """Return the median over the rounds of the ratio of two adjacent runs."""
    pairs = list(zip(ours.rounds, theirs.rounds, strict=True))
    return {unit: median(a[unit] / b[unit] for a, b in pairs) for unit in ("cpu", "wall")}


def _of_contender(
    turns: Turns, bundle: Bundle | None, work: Work, best: Mapping[str, float], cache: int
) -> dict[str, Any]:
    rounds = turns.rounds
    wall, cpu = (median(run[unit] for run in rounds) for unit in ("wall", "cpu"))
    overhead = median(run["wall"] - sum(s["seconds"] for s in run["stages"].values()) for run in rounds)
    stages = {
        name: {
            "launches": stage["launches"],
            "seconds": (seconds := median(run["stages"][name]["seconds"] for run in rounds)),
            "milliseconds_each": 1000 * seconds / stage["launches"],
            "share": seconds / wall,
        }
        for name, stage in rounds[0]["stages"].items()
    }
    if bundle is not None and turns.contender.kind not in UNBOUND:
        for name, floor in _floors(turns, bundle, best, cache).items():
            if name in stages:
                stages[name] |= floor | {
                    "to_floor": stages[name]["seconds"] / floor["floor"] if floor["floor"] else None
                }
    return {
        "name": turns.contender.name,
        "kind": turns.contender.kind,
        "wall": wall,
        "cpu": cpu,
        "rounds": [{"wall": run["wall"], "cpu": run["cpu"]} for run in rounds],
        "warm_up": {"wall": turns.warm_up["wall"], "cpu": turns.warm_up["cpu"]},
        "open_seconds": turns.opening["opened"],
        "first_image_extra": turns.warm_up["wall"] - wall,
        "stages": stages,
        "overhead": {"seconds": overhead, "share": overhead / wall},
        "products": turns.warm_up["products"],
        "memory": _memory(turns, bundle if turns.contender.kind == OURS else None, work),
        "agreement": turns.agreement and turns.agreement.to_json(),
    }


def _floors(turns: Turns, bundle: Bundle, best: Mapping[str, float], cache: int) -> dict[str, dict[str, Any]]:
    """Return the least total time of each stage's launches, and what sets it.

    A launch takes at least its operations at the machine's float32 rate (no bound for stages in another precision), and
    at least the bytes of the weights that its products read at the read bandwidth (no bound for weights that stay in a
    cache).
    """
    floors = {}
    for stage in dict.fromkeys(item["stage"] for item in turns.launches):
        spec = bundle.stage(stage)
        graph = GraphCosts(bundle.folder / spec.graph.path)
        total: dict[str, Any] = {"operations": 0, "weight_bytes": 0, "floor": 0.0}
        by_bound = {"arithmetic": 0.0, "weights read": 0.0}
        for item in turns.launches:
            if item["stage"] == stage:
                cost, count = graph.cost(item["sizes"]), item["count"]
                times = {
                    "arithmetic": cost.operations / (best["gflops"] * 1e9) if spec.precision == "fp32" else 0.0,
                    "weights read": cost.weight_bytes / (best["gbytes"] * 1e9) if cost.weight_bytes > cache else 0.0,
                }
                bound = max(times, key=lambda name: times[name])
                by_bound[bound] += count * times[bound]
                total["operations"] += count * cost.operations
                total["weight_bytes"] += count * cost.weight_bytes
                total["floor"] += count * times[bound]
        total["bound"] = max(by_bound, key=lambda name: by_bound[name]) if total["floor"] else "none known"
        total["precision"] = spec.precision
        floors[stage] = total
    return floors


def _memory(turns: Turns, bundle: Bundle | None, work: Work) -> dict[str, Any]:
    peak = max(run["peak_bytes"] for run in (turns.warm_up, *turns.rounds))
    libraries = max(run["library_bytes"] for run in (turns.warm_up, *turns.rounds))
    found = {"peak_bytes": peak, "resting_bytes": turns.opening["resting_bytes"] + libraries}
    if bundle is None:
        return found
    plan = memory_plan(bundle, work)
    taken = peak - found["resting_bytes"]
    return {
        **found,
        "weights_bytes": plan.weights,
        "plan_bytes": plan.held,
        "session_bytes": SESSION_BYTES,
        "taken_bytes": taken,
        "taken_to_allowed": taken / allowed_bytes(plan),
    }


def memory_plan(bundle: Bundle, work: Work) -> MemoryPlan:
    """Plan the memory for the images and steps of this work."""
    steps = work.settings(bundle).steps
    sampled = replace(bundle, sampling=replace(bundle.sampling, steps=steps))
    return plan_memory(sampled, work.images, Execution(queued=False))


def allowed_bytes(plan: MemoryPlan) -> float:
    """Return the bytes that a process may take beyond its libraries."""
    return WEIGHTS_FACTOR * plan.weights + plan.held - plan.weights + SESSION_BYTES
