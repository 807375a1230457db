"""``python -m bitdance_edge.export CHECKPOINT -o BUNDLE``: a checkpoint to a bundle of checked ONNX graphs."""

import argparse
import time
from pathlib import Path

EXAMPLE = """examples:
  bitdance-edge export checkpoints/digits-4x -o bundles/digits-4x
  bitdance-edge export BitDance_B_4x.pt --variant B-4x -o bundles/B-4x --dtype fp16
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Export every stage of a checkpoint to ONNX, check it against PyTorch, and write a bundle."
    parser.epilog = EXAMPLE
    parser.add_argument("checkpoint", help="folder with config.json and .safetensors, or a published .pt file")
    parser.add_argument("-o", "--out", required=True, metavar="BUNDLE", help="folder to write")
    parser.add_argument("--variant", help="what a .pt file is: B-1x, B-4x, B-16x, L-1x or H-1x")
    parser.add_argument("--tokenizer", metavar="FILE", help="autoencoder weights that replace the checkpoint's own")
    parser.add_argument("--profile", default="kv24", help="kv24 (default), or portable20 for older TensorRT")
    parser.add_argument("--dtype", default="fp32", help="fp32 (default, for CPUs), fp16 or bf16 (for TensorRT)")
    parser.add_argument("--force", action="store_true", help="replace the bundle that is already there")


def run(args: argparse.Namespace) -> None:
    from bitdance_edge.export.exporter import ExportOptions, export_bundle
    from bitdance_edge.model import load_generator
    from bitdance_edge.runtime.bundle import sha256

    started = time.perf_counter()
    out = Path(args.out)
    options = ExportOptions(name=out.name, profile=args.profile, precision=args.dtype, force=args.force)
    model = load_generator(args.checkpoint, variant=args.variant, tokenizer=args.tokenizer)
    source = Path(args.checkpoint)
    weights = next(source.glob("*.safetensors"), source) if source.is_dir() else source
    provenance = {"checkpoint": source.name, "checkpoint_sha256": sha256(weights), "variant": args.variant}
    bundle = export_bundle(model, out, options, provenance)
    print(f"{'stage':10} {'MB':>9}  {'largest error':>13}  allowed  (ONNX Runtime against PyTorch, relative)")
    for name, stage in bundle.stages.items():
        print(f"{name:10} {stage.bytes / 1e6:9.2f}  {stage.max_error:13.1e}  {stage.tolerance:7.0e}")
    print(
        f"\n{out}: {sum(stage.bytes for stage in bundle.stages.values()) / 1e6:.1f} MB, "
        f"{time.perf_counter() - started:.1f} s. Next:"
    )
    print(f"  bitdance-edge generate {out} --classes 0 --seed 1 --out images")


if __name__ == "__main__":
    import sys

    from bitdance_edge.cli import run_command

    raise SystemExit(run_command("export", sys.argv[1:]))
