"""Bundles and other runtimes on the CPU by stage, without PyTorch: seconds of a whole image, from its first patches.

    python bench/studies/runtimes.py B-4x B-4x@onnxruntime B-4x@openvino B-4x@openvino-bf16 --patches 4 --threads 1

A contender is a bundle, or BUNDLE@KIND for its graphs on another runtime (``bench --against``). Each is a process of
its own, and they take turns after a warm-up. Patches cost the same at any position, so the stages of the loop are
scaled to the whole image; the decoder decodes a whole image in any case. With ``--patches 0`` whole images are made.
The last line is JSON, also written to ``-o``.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from bitdance_edge.bench.child import Child
from bitdance_edge.bench.contenders import OURS
from bitdance_edge.bench.machine import processor
from bitdance_edge.bench.runs import timed_image, versions
from bitdance_edge.bench.work import Work
from bitdance_edge.runtime.bundle.files import written_whole
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.stage_names import LOOP_STAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contenders", nargs="+", metavar="BUNDLE[@KIND]")
    parser.add_argument("--patches", type=int, default=4, help="of each image, 0 for all (default 4)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the bundle's)")
    parser.add_argument("--images", type=int, default=1, help="images at once (default 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, metavar="JSON")
    args = parser.parse_args()
    work = Work(images=args.images, steps=args.steps, patches=args.patches or None, seed=1, prompt=None)
    found = {
        "machine": processor(),
        "versions": versions(),
        "threads": args.threads,
        "work": work.to_json(),
        "contenders": measured(args.contenders, work, args.threads, args.rounds),
    }
    print("\n".join(table(found["contenders"])))
    if args.out is not None:
        with written_whole(args.out) as file:
            file.write((json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps(found))


def measured(names: list[str], work: Work, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Run the contenders in turn; the first image of each is a warm-up."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ExitStack() as stack:
        children = {name: stack.enter_context(Child(name, threads)) for name in names}
        for name, child in children.items():
            source, _, kind = name.partition("@")
            asked = {"source": source, "bundle": source, "threads": threads, "work": work.to_json()}
            child.ask("open", kind=kind or OURS, **asked)
            timed_image(child)
        for _ in tqdm(range(rounds), desc="rounds", disable=None):
            for name, child in children.items():
                runs[name].append(timed_image(child))
    scales = {name: _scale(Bundle.open(name.partition("@")[0]), work) for name in names}
    return [{"name": name, **whole_image(runs[name], scales[name])} for name in names]


def _scale(bundle: Bundle, work: Work) -> float:
    """Patches of an image over those that are drawn."""
    return bundle.model.default_size.patches / work.drawn(bundle)


def whole_image(rounds: list[dict[str, Any]], scale: float) -> dict[str, Any]:
    """Medians of a contender's runs, scaled to a whole image.

    Args:
        rounds: with ``wall``, ``cpu``, ``others`` and ``stages``, as ``runs.timed_image`` gives them.
        scale: what the loop's seconds are multiplied by.
    """
    stages = {
        name: {
            "launches": round(stage["launches"] * (scale if name in LOOP_STAGES else 1)),
            "ms_each": 1000 * median(run["stages"][name]["seconds"] for run in rounds) / stage["launches"],
        }
        for name, stage in rounds[0]["stages"].items()
    }
    wall = [sum(s["seconds"] * (scale if n in LOOP_STAGES else 1) for n, s in r["stages"].items()) for r in rounds]
    busy = [seconds * run["cpu"] / run["wall"] for seconds, run in zip(wall, rounds, strict=True)]
    shared = median(run["others"] for run in rounds)
    return {"wall": wall, "cpu": busy, "stages": stages, "others": shared, "products": rounds[-1]["products"]}


def table(contenders: list[dict[str, Any]]) -> list[str]:
    """One row a contender; ratios are medians over the rounds, to the first contender's run of the same round."""
    first, stages = contenders[0], list(contenders[0]["stages"])
    lines = ["| | CPU s | wall s | wall / first | " + " | ".join(f"{name}, ms each" for name in stages) + " |"]
    lines.append("|---|" + "---:|" * (3 + len(stages)))
    for each in contenders:
        ratio = median(a / b for a, b in zip(each["wall"], first["wall"], strict=True))
        cells = [f"{each['stages'][name]['ms_each']:.4g}" if name in each["stages"] else "" for name in stages]
        seconds = f"{median(each['cpu']):.3g} | {median(each['wall']):.3g} | {ratio:.3f}"
        lines.append(f"| {each['name']} | {seconds} | {' | '.join(cells)} |")
    shared = max(each["others"] for each in contenders)
    return [*lines, f"Other processes kept {shared:.1f} processors busy."]


if __name__ == "__main__":
    main()
