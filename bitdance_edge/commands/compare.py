"""``bitdance-edge compare``: the same inputs through PyTorch, ONNX Runtime and TensorRT, stage by stage."""

import argparse

from bitdance_edge.commands.common import say
from bitdance_edge.commands.values import path

EXAMPLE = """examples:
  bitdance-edge compare bundles/digits-4x --checkpoint checkpoints/digits-4x
  bitdance-edge compare bundles/B-4x --target rtx:8.9 --stages head,decoder
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run each stage on the inputs of a real generation step on every backend that is here, and say which tensor "
        "is the first to differ, of which module, and where values stop being finite."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("bundle", type=path, help="bundle folder")
    parser.add_argument("--checkpoint", type=path, help="what the bundle was exported from, for PyTorch")
    parser.add_argument("--variant", help="what a .pt checkpoint is: B-1x, B-4x, B-16x, L-1x or H-1x")
    parser.add_argument("--target", default="rtx", help="whose builds: rtx (default), rtx:8.9, trt:current, cpu, cuda")
    parser.add_argument("--stages", help="comma-separated stages (default: all)")


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.engines.reports.compare import compare_stage
    from bitdance_edge.engines.samples import record_samples
    from bitdance_edge.engines.targets import parse_target
    from bitdance_edge.runtime import BuildError, Bundle

    bundle, target = Bundle.open(args.bundle), parse_target(args.target)
    wanted = {name.strip() for name in args.stages.split(",")} if args.stages else set(bundle.stages)
    for name in wanted:
        bundle.stage(name)
    model = None
    if args.checkpoint:
        from bitdance_edge.engines.reports.reference import load_reference

        model = load_reference(bundle, args.checkpoint, args.variant)
    say("recording the inputs of a generation step")
    different = []
    for (stage, sample), inputs in record_samples(bundle).items():
        if stage in wanted:
            comparison = compare_stage(bundle, target, model, stage, sample, inputs)
            print("\n".join(comparison.lines()), flush=True)
            different += [stage for pair in comparison.differences if comparison.first_diverging(pair)]
    if different:
        raise BuildError(f"backends differ in {', '.join(dict.fromkeys(different))}; the first tensors are named above")
