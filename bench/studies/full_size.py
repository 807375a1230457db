"""A published size with random weights, exported and run here: time, peak memory, and tokens compared with PyTorch's.

    python bench/studies/full_size.py --variant B-4x --patches 4 --steps 10 --work FOLDER

Needs about three times the checkpoint's size on disk. Each part runs in a process of its own, so that its peak memory
is measured alone. The last line is JSON; the exit status is 1 where bits differ by more than rounding.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bitdance_edge.bench.bits import Predictions, compare_tokens, recorded_predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="B-4x")
    parser.add_argument("--patches", type=int, default=4, help="patches compared with PyTorch")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps of each patch")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoint and bundle")
    parser.add_argument("--part", choices=["checkpoint", "runtime", "pytorch"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        {"checkpoint": write_checkpoint, "runtime": run_runtime, "pytorch": run_pytorch}[args.part](args)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    bundle = args.work / "bundle"
    command = [sys.executable, "-m", "bitdance_edge"]
    export = [*command, "export", str(args.work / "checkpoint"), "-o", str(bundle), "--force"]
    measured = {
        "checkpoint": measure(part(args, "checkpoint")),
        "export": measure(export),
        "runtime": measure(part(args, "runtime")),
        "pytorch": measure(part(args, "pytorch")),
    }
    with np.load(args.work / "runtime.npz") as ours, np.load(args.work / "pytorch.npz") as theirs:
        patch = theirs["tokens"].shape[1] // args.patches
        bits, _ = compare_tokens(ours["tokens"], theirs["tokens"], Predictions.load(theirs), patch)
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    print(f"{'part':12} {'seconds':>9} {'peak MB':>9}")
    for name, figures in measured.items():
        print(f"{name:12} {figures['seconds']:9.1f} {figures['peak_mb']:9.0f}")
    print(
        f"bundle {size / 1e6:.0f} MB; {bits.different} of {bits.compared} bits differ over {args.patches} patches, "
        f"{bits.within_rounding} of them within rounding"
    )
    print(
        json.dumps(
            {
                "variant": args.variant,
                "patches": args.patches,
                "steps": args.steps,
                "bundle_mb": size / 1e6,
                "bits": bits.to_json(),
                "parts": measured,
            }
        )
    )
    if bits.wrong:
        raise SystemExit(1)


def part(args: argparse.Namespace, name: str) -> list[str]:
    options = ["--variant", args.variant, "--patches", str(args.patches), "--steps", str(args.steps)]
    return [sys.executable, __file__, *options, "--work", str(args.work), "--part", name]


def measure(command: list[str]) -> dict[str, float]:
    """Run one process and return its wall seconds, those of its processors, and peak resident memory."""
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1e3,
    }


def write_checkpoint(args: argparse.Namespace) -> None:
    """Write random weights of a published size; no layer stays at zero, so that each affects the tokens."""
    import torch

    from bitdance_edge.model import GENERATORS, BitDance, save_generator

    torch.manual_seed(0)
    model = BitDance(GENERATORS[args.variant])
    model.backbone.initialize()
    model.head.initialize()
    for parameter in model.head.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    save_generator(model, args.work / "checkpoint")


REQUEST = {"class_id": 207, "seed": 1}


def run_runtime(args: argparse.Namespace) -> None:
    from bitdance_edge.runtime import PatchDone, Pipeline, Request

    request = Request(classes=[REQUEST["class_id"]], seed=REQUEST["seed"], steps=args.steps, output="tokens")
    with Pipeline.open(args.work / "bundle") as pipeline:
        patches = []
        for event in pipeline.stream(request):
            if isinstance(event, PatchDone):
                patches.append(event.tokens)
            if len(patches) == args.patches:
                break
    np.savez(args.work / "runtime.npz", tokens=np.concatenate(patches, axis=1))


def run_pytorch(args: argparse.Namespace) -> None:
    import torch

    from bitdance_edge.model import generator, load_generator
    from bitdance_edge.runtime.noise import ImageNoise

    model = load_generator(args.work / "checkpoint")
    sampling, config = model.config.sampling, model.config
    draw = ImageNoise([REQUEST["seed"]], args.steps, (config.tokens_per_step, config.bits))

    def noise():
        for patch in range(args.patches):
            apart = patch == 0 and sampling.guidance_schedule == "linear"
            yield from torch.from_numpy(draw(patch, apart))

    patches = model.sample_patches(
        torch.tensor([REQUEST["class_id"]]),
        steps=args.steps,
        guidance=sampling.guidance,
        schedule=sampling.guidance_schedule,
        noise=noise(),
    )
    with recorded_predictions(generator) as predicted:
        tokens = np.concatenate([next(patches).numpy() for _ in range(args.patches)], axis=1)
    arrays = Predictions.of(predicted, len(tokens)).arrays()
    np.savez(args.work / "pytorch.npz", allow_pickle=False, tokens=tokens, **arrays)


if __name__ == "__main__":
    main()
