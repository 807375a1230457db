"""``bitdance-edge export``: a checkpoint to a bundle of checked ONNX graphs."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bitdance_edge.commands.values import path, whole
from bitdance_edge.installation import as_typed
from bitdance_edge.runtime.bundle.stage_names import STAGE_WIDTH
from bitdance_edge.runtime.values import quoted

if TYPE_CHECKING:
    from bitdance_edge.runtime import Bundle

EXAMPLE = """examples:
  bitdance-edge export checkpoints/digits-4x -o bundles/digits-4x
  bitdance-edge export shallowdream204/BitDance-14B-64x -o bundles/14B-64x --dtype bf16 --sizes 1024x1024
  bitdance-edge export ae_d16c32.safetensors -o bundles/d16c32 --sizes 256x256,512x512
  bitdance-edge export BitDance_B_4x.pt --variant B-4x -o bundles/B-4x --dtype fp16
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Export every stage of a checkpoint to ONNX, check it against PyTorch, and write a bundle."
    parser.epilog = EXAMPLE
    parser.add_argument(
        "checkpoint",
        type=path,
        help="a checkpoint's folder, text-to-image ones included, a published .pt file, or OWNER/NAME on the Hub",
    )
    parser.add_argument("-o", "--out", type=path, required=True, metavar="BUNDLE", help="folder to write")
    parser.add_argument("--variant", help="what a .pt file is: B-1x to H-1x, or a tokenizer: d16c32, d32c128, d32c256")
    parser.add_argument("--revision", help="of OWNER/NAME on the Hub: branch, tag or commit (default: main)")
    parser.add_argument(
        "--tokenizer", type=path, metavar="FILE", help="autoencoder weights that replace the checkpoint's own"
    )
    parser.add_argument(
        "--opset",
        type=whole(1, 99),
        default=24,
        help="24 (default), or 20 for TensorRT before 10.15 and older consumers",
    )
    parser.add_argument("--dtype", default="fp32", help="fp32 (default, for CPUs), fp16 or bf16 (for TensorRT)")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--no-fast-previews",
        dest="fast_previews",
        action="store_false",
        help="do not draw the images that fast previews are fitted to",
    )
    parser.add_argument(
        "--window-patches",
        type=whole(0),
        metavar="N",
        help="patches of each setting that the windowed sampler is measured on (default 16; 0: it is not measured)",
    )
    parser.add_argument(
        "--sizes",
        metavar="WIDTHxHEIGHT,...",
        help="of text to image and of tokenizers: image sizes in pixels, width first: 1280x768 is wide, 768x1280 high "
        "(default: all of the checkpoint; 256x256 of a tokenizer)",
    )
    text = parser.add_argument_group("text to image")
    text.add_argument(
        "--max-prompt", type=whole(1), metavar="N", help="tokens of the longest prompt, template included"
    )
    weights = text.add_mutually_exclusive_group()
    weights.add_argument(
        "--link-weights",
        action="store_true",
        help="take weights from the checkpoint's files (default where --dtype is theirs)",
    )
    weights.add_argument("--copy-weights", action="store_true", help="write all weights into the bundle")


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.commands.common import example_subject, say
    from bitdance_edge.commands.hub_checkpoint import find_checkpoint
    from bitdance_edge.export.exporter import ExportOptions, memory_to_check
    from bitdance_edge.export.opening import CheckpointOptions, open_checkpoint
    from bitdance_edge.runtime.host_memory import available_memory
    from bitdance_edge.runtime.window_measure import PATCHES

    started, out = time.perf_counter(), args.out
    options = ExportOptions(
        name=out.name,
        opset=args.opset,
        precision=args.dtype,
        force=args.force,
        fast_previews=args.fast_previews,
        window_patches=PATCHES if args.window_patches is None else args.window_patches,
    )
    found = find_checkpoint(str(args.checkpoint), args.variant, args.tokenizer and str(args.tokenizer), args.revision)
    asked = CheckpointOptions(
        variant=args.variant,
        tokenizer=found.tokenizer,
        sizes=args.sizes,
        max_prompt=args.max_prompt,
        weights="link" if args.link_weights else "copy" if args.copy_weights else None,
    )
    opened = open_checkpoint(found.path, options, asked)
    opened = replace(opened, provenance={**opened.provenance, **found.provenance})
    memory = f"{memory_to_check(opened.weights) / 1e9:.1f} GB of memory"
    if available_memory() is None:
        print(f"free memory is not known on this system: the check against PyTorch is tried, and takes {memory}")
    bundle = opened.export(out, note=say)
    print_stages(bundle)
    print(
        f"\n{out}: {sum(stage.bytes for stage in bundle.stages.values()) / 1e6:.1f} MB of stages, "
        f"{time.perf_counter() - started:.1f} s"
    )
    if all(stage.max_error is None for stage in bundle.stages.values()):
        print(
            f"not run against PyTorch: that takes {memory}, more than is free; "
            "export on a larger machine to have it checked"
        )
    if bundle.links:
        print(
            f"hard links to the checkpoint, so change neither: {', '.join(Path(n).name for n in bundle.links)}; "
            + as_typed(f"bitdance-edge pack {quoted(out)} --in-place makes the bundle self-contained")
        )
    say("Next:")
    say(f"  bitdance-edge build {quoted(out)} --target cpu  # optional: faster here, and opens at once")
    if bundle.model.generates:
        say(f"  bitdance-edge generate {quoted(out)} {example_subject(bundle)} --seed 1 --out images")
    else:
        say(f"  bitdance-edge reconstruct {quoted(out)} photo.png -o reconstructed.png")


def print_stages(bundle: "Bundle") -> None:
    """Print the table of stages: size, largest error and the largest that is allowed."""
    print(
        f"{'stage':{STAGE_WIDTH}} {'MB':>9}  {'largest error':>13}  allowed  (ONNX Runtime against PyTorch, relative)"
    )
    for name, stage in bundle.stages.items():
        error, allowed = (
            ("not run", "-") if stage.max_error is None else (f"{stage.max_error:.1e}", f"{stage.tolerance:.0e}")
        )
        print(f"{name:{STAGE_WIDTH}} {stage.bytes / 1e6:9.2f}  {error:>13}  {allowed:>7}")
