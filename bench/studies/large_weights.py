"""The published 14B-64x shape, prepared where it does not fit: weights alone, layer by layer, and engines of a cut.

    python bench/studies/large_weights.py --work FOLDER --steps make-full,export-full,int4,fp8
    python bench/studies/large_weights.py --work FOLDER --steps make-cut,export-cut,cut-int4,cut-fp8,cut-nvfp4
    python bench/studies/large_weights.py --work FOLDER --steps build-int4,build-nvfp4
    python bench/studies/large_weights.py --work FOLDER --steps bits,by-layer,whole,compare
    python bench/studies/large_weights.py --work FOLDER --steps int4,build-full-int4
    python bench/studies/large_weights.py --work FOLDER --steps feedback-5120,feedback-17408

``full`` is the folder of ``text_to_image.py``: sparse files of zeros, which cost as much to round as any weights.
``cut`` keeps the widths, with two layers of the language model and two blocks of the head, random bfloat16 weights.
Each step is a process of its own, so that its peak memory is measured alone. The last line is JSON.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from full_size import measure
from text_to_image import SIZE, make_full, published_config, tokenizer_json

BLOCK = 1 << 23  # weights that are drawn once and used again and again
PROMPT = "a red fox in the snow"
LAYERS = 2
COMMANDS = {
    "export-full": ["export", "full", "-o", "full-bundle", "--force", "--dtype", "bf16", "--sizes", "1024x1024"],
    "int4": ["calibrate", "full-bundle", "--weights-only", "--precision", "int4", "-o", "full-int4", "--force"],
    "fp8": ["calibrate", "full-bundle", "--weights-only", "--precision", "fp8", "-o", "full-fp8", "--force"],
    "export-cut": ["export", "cut", "-o", "cut-bundle", "--force", "--dtype", "bf16", "--sizes", str(SIZE)],
    "cut-int4": ["calibrate", "cut-bundle", "--weights-only", "--precision", "int4", "-o", "cut-int4", "--force"],
    "cut-fp8": ["calibrate", "cut-bundle", "--weights-only", "--precision", "fp8", "-o", "cut-fp8", "--force"],
    "cut-nvfp4": ["calibrate", "cut-bundle", "--weights-only", "--precision", "nvfp4", "-o", "cut-nvfp4", "--force"],
    "build-full-int4": ["build", "full-int4", "--target", "rtx:8.9", "--stages", "backbone"],
    "build-full-fp8": ["build", "full-fp8", "--target", "rtx:8.9", "--stages", "backbone"],
    "build-int4": ["build", "cut-int4", "--target", "rtx:8.9", "--stages", "backbone,head", "--force"],
    "build-nvfp4": ["build", "cut-nvfp4", "--target", "rtx:12.0", "--stages", "backbone,head", "--force"],
}
PATHS = ("full", "full-bundle", "full-int4", "full-fp8", "cut", "cut-bundle", "cut-int4", "cut-fp8", "cut-nvfp4")
FEEDBACK = {"feedback-5120": 5120, "feedback-17408": 17408}  # inputs of a matrix of 5120 outputs
STEPS = (*COMMANDS, *FEEDBACK, "make-full", "make-cut", "bits", "by-layer", "whole", "compare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and bundles (14 GB)")
    parser.add_argument("--steps", required=True, help=f"comma-separated, of {', '.join(STEPS)}")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        run_step(args.step, args.work)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    figures = {}
    for name in args.steps.split(","):
        figures[name] = measure([sys.executable, *command(name, args.work)])
        found = figures[name]
        print(
            f"{name:14} {found['seconds']:9.1f} s {found['cpu_seconds']:9.1f} s CPU {found['peak_mb']:9.0f} MB",
            flush=True,
        )
    print(json.dumps(figures))


def command(step: str, work: Path) -> list[str]:
    if step in COMMANDS:
        return ["-m", "bitdance_edge", *(str(work / each) if each in PATHS else each for each in COMMANDS[step])]
    return [__file__, "--work", str(work), "--steps", step, "--step", step]


def run_step(step: str, work: Path) -> None:
    {
        "make-full": make_full,
        "make-cut": make_cut,
        "bits": make_bits,
        "by-layer": lambda work: by_layer(work, "by-layer"),
        "whole": lambda work: by_layer(work, "whole"),
        "compare": compare,
        **{name: lambda work: round_with_feedback(FEEDBACK[step]) for name in FEEDBACK},
    }[step](work)


def make_cut(work: Path) -> None:
    """Write a folder of the published layout with two layers and two blocks, and a small vocabulary."""
    import torch

    from bitdance_edge.model import TextToImage
    from bitdance_edge.model.text_checkpoint import COMPONENTS

    full = published_config()
    config = replace(
        full,
        backbone=replace(full.backbone, layers=LAYERS, vocabulary=512),
        head=replace(full.head, blocks=2, adaln_groups=1),
        sizes=((SIZE.height, SIZE.width),),
        max_prompt=128,
    )
    folder = work / "cut"
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in TextToImage(config).state_dict().items()}
    for part in COMPONENTS.values():
        stored = {
            part.stored + key.removeprefix(part.ours): s for key, s in shapes.items() if key.startswith(part.ours)
        }
        write_random(folder / f"{part.stem}.safetensors", stored)
    files = {
        "config.json": {key: value for key, value in config.language_json().items() if key != "bitdance"},
        "vision_head_config.json": config.head_json(),
        "ae_config.json": config.autoencoder_json(),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_json(config), encoding="utf-8")


def write_random(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write matrices drawn from a normal distribution of deviation 0.02, and vectors of ones, in bfloat16."""
    drawn = (0.02 * np.random.default_rng(0).standard_normal(BLOCK, np.float32)).astype(ml_dtypes.bfloat16)
    ones = np.ones(1, ml_dtypes.bfloat16)
    header, offset = {}, 0
    for key, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for i, shape in enumerate(shapes.values()):
            left = int(np.prod(shape))
            source = drawn if len(shape) > 1 else np.broadcast_to(ones, min(left, BLOCK))
            while left:  # each tensor begins elsewhere in the block
                part = source[(7919 * i) % 4096 : (7919 * i) % 4096 + left] if len(shape) > 1 else source[:left]
                file.write(np.ascontiguousarray(part).tobytes())
                left -= len(part)


def round_with_feedback(inputs: int, outputs: int = 5120, rows: int = 1024) -> None:
    """Round one random matrix to INT4 by the products of random inputs."""
    from bitdance_edge.calibration.gptq import encode_with_feedback

    generator = np.random.default_rng(0)
    entered = generator.standard_normal((rows, inputs), np.float32)
    products = entered.T @ entered
    weight = (0.02 * generator.standard_normal((outputs, inputs), np.float32)).astype(ml_dtypes.bfloat16)
    made = encode_with_feedback(weight, products, "int4", np.dtype(ml_dtypes.bfloat16))
    print(f"{100 * made.relative_error:.2f} % of the weight rounded away")


def make_bits(work: Path) -> None:
    from bitdance_edge.runtime import Bundle

    model = Bundle.open(work / "cut-bundle").model
    shape = (2, model.default_size.tokens, model.bits)
    np.save(work / "bits.npy", np.where(np.random.default_rng(1).random(shape) > 0.5, 1, -1).astype(np.int8))


def by_layer(work: Path, name: str) -> None:
    """Calibrate the cut's backbone in INT8 by two images, the second held out: cut into layers, or as one."""
    from bitdance_edge.calibration.by_layer import LayerOptions, calibrate_by_layer
    from bitdance_edge.calibration.recipe import CalibrationRecipe, Draw
    from bitdance_edge.calibration.segments import segments, whole
    from bitdance_edge.calibration.teacher import taught_images
    from bitdance_edge.runtime import Bundle, Request

    bundle = Bundle.open(work / "cut-bundle")
    recipe = CalibrationRecipe(
        precisions={"backbone": "int8"},
        calibrator="mse",
        percentile=99.99,
        smooth=None,
        weigh_times=False,
        draw=Draw(images=2, seed=0, prompts=(PROMPT,)),
    )
    images = taught_images(bundle, np.load(work / "bits.npy"), [PROMPT], Request(seed=0, output="tokens"), 0)
    options: Any = {"recipe": recipe, "images": images, "held_out": 1, "taught_by": "bits", "force": True}
    cut = segments if name == "by-layer" else whole
    found = calibrate_by_layer(bundle, work / f"cut-{name}", LayerOptions(cut=cut, **options))
    print("\n".join(found.summary()))


def compare(work: Path) -> None:
    """Raise SystemExit where the two calibrations of the cut differ."""
    folders = [work / f"cut-{name}" / "onnx" / "int8" for name in ("by-layer", "whole")]
    for name in ("backbone.onnx", "backbone.onnx.data"):
        if (folders[0] / name).read_bytes() != (folders[1] / name).read_bytes():
            raise SystemExit(f"{name} differs")
    print("the same bytes")


if __name__ == "__main__":
    main()
