"""The published 14B-64x shape: exported where its weights exceed the memory, and a cut of it compared with PyTorch.

    python bench/studies/text_to_image.py --work FOLDER

Two parts. ``export`` makes a folder of the published layout shard by shard (bfloat16, sparse files: the weights are
zeros, whose values an export never reads) and exports it; ``cut`` keeps the widths, two layers of the language model
and two blocks of the head with random weights in float32, and generates the same tokens with the runtime and with
PyTorch. Each step runs in a process of its own, so that its peak memory is measured alone. The last line is JSON.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from full_size import measure

from bitdance_edge.bench.bits import BitCounts, Predictions, compare_tokens, recorded_predictions
from bitdance_edge.runtime import Size

SHARD_BYTES = 4_900_000_000  # of the language model's files, as published
STEPS = ("make-full", "export-full", "make-cut", "export-cut", "runtime", "pytorch")
PROMPTS = ["a red fox in the snow", "a lighthouse at dusk, oil painting, long exposure, wide angle, warm light"]
SIZE = Size(width=512, height=256)  # of the cut's images: two patches down, four across
SAMPLING_STEPS, GUIDANCE, SEED = 4, 7.5, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and bundles (10 GB)")
    parser.add_argument("--only", choices=["export", "cut"], help="one of the two parts")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        run_step(args.step, args.work)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    parts = {"export": ("make-full", "export-full"), "cut": ("make-cut", "export-cut", "runtime", "pytorch")}
    names = [name for part in ([args.only] if args.only else parts) for name in parts[part]]
    measured = {name: measure([sys.executable, *command(name, args.work)]) for name in names}
    print(f"{'step':12} {'seconds':>9} {'peak MB':>9}")
    for name, figures in measured.items():
        print(f"{name:12} {figures['seconds']:9.1f} {figures['peak_mb']:9.0f}")
    summary: dict[str, Any] = {"steps": measured}
    wrong = 0
    if "export-full" in measured:
        summary["full"] = {kind: disk_use(args.work / f"full{kind}") for kind in ("", "-bundle")}
        for kind, use in summary["full"].items():
            print(f"full{kind}: {use['bytes'] / 1e9:.2f} GB of files, {use['own_bytes'] / 1e6:.1f} MB not shared")
    if "pytorch" in measured:
        bits = compared_bits(args.work)
        summary["bits"] = bits.to_json()
        print(
            f"{bits.different} of {bits.compared} bits differ between runtime and PyTorch, {bits.within_rounding} of "
            "them within rounding"
        )
        wrong = bits.wrong
    print(json.dumps(summary))
    if wrong:
        raise SystemExit(1)


def command(step: str, work: Path) -> list[str]:
    if step == "export-full":
        options = ["--force", "--dtype", "bf16", "--sizes", "1024x1024"]
        return ["-m", "bitdance_edge", "export", str(work / "full"), "-o", str(work / "full-bundle"), *options]
    if step == "export-cut":
        return ["-m", "bitdance_edge", "export", str(work / "cut"), "-o", str(work / "cut-bundle"), "--force"]
    return [__file__, "--work", str(work), "--step", step]


def run_step(step: str, work: Path) -> None:
    {"make-full": make_full, "make-cut": make_cut, "runtime": run_runtime, "pytorch": run_pytorch}[step](work)


def published_config() -> Any:
    """Return the configuration of BitDance-14B-64x: Qwen3-14B, a head of six blocks, the d16c32 autoencoder."""
    from bitdance_edge.model import TOKENIZERS, HeadConfig, QwenConfig, TextToImageConfig
    from bitdance_edge.model.text_config import PUBLISHED_EXAMPLE, PUBLISHED_MAX_PROMPT, PUBLISHED_SAMPLING, SIZES_1024

    return TextToImageConfig(
        backbone=QwenConfig(
            vocabulary=151_936,
            width=5120,
            layers=40,
            heads=40,
            kv_heads=8,
            head_dim=128,
            mlp_width=17_408,
            rotary_base=1_000_000.0,
            norm_eps=1e-6,
        ),
        head=HeadConfig(
            bits=32,
            condition_width=5120,
            width=5120,
            blocks=6,
            adaln_groups=2,
            tokens_per_step=64,
            head_dim=128,
            swiglu=True,
            bounded=True,
        ),
        tokenizer=TOKENIZERS["d16c32"],
        sizes=SIZES_1024,
        max_prompt=PUBLISHED_MAX_PROMPT,
        example=PUBLISHED_EXAMPLE,
        time_shift=1.0,
        time_schedule="logit_normal",
        time_mean=-0.8,
        time_std=0.8,
        targets_per_token=4,
        sampling=PUBLISHED_SAMPLING,
    )


def tokenizer_json(config: Any) -> str:
    """Make a tokenizer of bytes and the special tokens of chat template, sizes and queries."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    sides = sorted({side // config.tokenizer.downsampling for size in config.sizes for side in size})
    names = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", *(f"<|res_{side}|>" for side in sides)]
    names += [f"<|query_{i}|>" for i in range(1, config.tokens_per_step)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    return tokenizer.to_str()


def make_full(work: Path) -> None:
    """Write the published folder; its tensors are zeros, which take no space on a disk with sparse files."""
    import torch

    from bitdance_edge.model import TextToImage
    from bitdance_edge.model.text_checkpoint import COMPONENTS

    config, folder = published_config(), work / "full"
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in TextToImage(config).state_dict().items()}
    weight_map: dict[str, str] = {}
    for part in COMPONENTS.values():
        stored = {
            part.stored + key.removeprefix(part.ours): s for key, s in shapes.items() if key.startswith(part.ours)
        }
        if part.stem != "model":
            write_sparse(folder / f"{part.stem}.safetensors", stored)
            continue
        shards = split(stored, SHARD_BYTES)
        for i, shard in enumerate(shards, 1):
            name = f"model-{i:05}-of-{len(shards):05}.safetensors"
            write_sparse(folder / name, shard)
            weight_map |= dict.fromkeys(shard, name)
    files = {
        "model.safetensors.index.json": {"weight_map": weight_map},
        "config.json": {key: value for key, value in config.language_json().items() if key != "bitdance"},
        "vision_head_config.json": config.head_json(),
        "ae_config.json": config.autoencoder_json(),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer_json(config), encoding="utf-8")


def split(shapes: dict[str, tuple[int, ...]], limit: int) -> list[dict[str, tuple[int, ...]]]:
    """Split tensors, in their order, into groups of at most ``limit`` bytes of bfloat16."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for key, shape in shapes.items():
        size += 2 * int(np.prod(shape))
        if size > limit:
            shards.append({})
            size = 2 * int(np.prod(shape))
        shards[-1][key] = shape
    return shards


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, offset = {}, 0
    for key, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + offset)


def make_cut(work: Path) -> None:
    """Write two layers and two blocks of the published widths, a small vocabulary, random weights, float32."""
    import torch

    from bitdance_edge.model import TextToImage, save_text_to_image

    full = published_config()
    config = replace(
        full,
        backbone=replace(full.backbone, layers=2, vocabulary=512),
        head=replace(full.head, blocks=2, adaln_groups=1),
        sizes=((SIZE.height, SIZE.width),),
        max_prompt=128,
    )
    torch.manual_seed(0)
    model = TextToImage(config)
    model.initialize()
    for parameter in model.head.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    save_text_to_image(model, work / "cut", tokenizer_json(config))


def run_runtime(work: Path) -> None:
    from bitdance_edge.runtime import Pipeline, Request

    request = Request(prompts=PROMPTS, seed=SEED, steps=SAMPLING_STEPS, guidance=GUIDANCE, output="tokens")
    with Pipeline.open(work / "cut-bundle", device="cpu") as pipeline:
        np.save(work / "runtime.npy", np.stack([image.tokens for image in pipeline.generate(request)]))


def run_pytorch(work: Path) -> None:
    """Generate each prompt alone, conditional and unconditional rows in separate passes, from the runtime's noise."""
    import torch

    from bitdance_edge.model import TextCheckpoint, text_to_image
    from bitdance_edge.model.prompt import PromptTokenizer
    from bitdance_edge.runtime.noise import ImageNoise

    checkpoint = TextCheckpoint.open(work / "cut")
    model, config = checkpoint.load(), checkpoint.config
    prompts = PromptTokenizer.open(checkpoint.prompt_file, config)
    grid = SIZE.height // config.tokenizer.downsampling, SIZE.width // config.tokenizer.downsampling
    pixels = {"height": SIZE.height, "width": SIZE.width}
    images, predictions = [], []
    for i, prompt in enumerate(PROMPTS):
        draw = ImageNoise([SEED + i], SAMPLING_STEPS, (config.tokens_per_step, config.bits))
        patches = grid[0] * grid[1] // config.tokens_per_step
        noise = (torch.from_numpy(step) for patch in range(patches) for step in draw(patch, False))
        rows = [torch.tensor([prompts.conditional(prompt, **pixels)]), torch.tensor([prompts.unconditional(**pixels)])]
        drawn = model.sample_patches(rows, grid, steps=SAMPLING_STEPS, guidance=GUIDANCE, noise=noise)
        with recorded_predictions(text_to_image) as predicted:
            images.append(torch.cat(list(drawn), dim=1).numpy().astype(np.int8))
        predictions.append(Predictions.of(predicted, 1).images)
    np.savez(work / "pytorch.npz", tokens=np.concatenate(images), predictions=np.concatenate(predictions))


def compared_bits(work: Path) -> BitCounts:
    with np.load(work / "pytorch.npz") as theirs:
        patch = published_config().tokens_per_step
        return compare_tokens(np.load(work / "runtime.npy"), theirs["tokens"], Predictions.load(theirs), patch)[0]


def disk_use(folder: Path) -> dict[str, int]:
    """Return the bytes of all files, and of those that are not linked from another folder."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    own = sum(file.st_size for file in files if file.st_nlink == 1)
    return {"bytes": sum(file.st_size for file in files), "own_bytes": own}


if __name__ == "__main__":
    main()
