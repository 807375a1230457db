"""BitDance in PyTorch as its authors run it, on random weights: the reference for the speed of other backends.

The plain path of ``model/`` under autocast: a cache that grows by concatenation, a kernel an operation, a pass for the
conditional and one for the unconditional rows where prompts differ, N + 1 calls of the head a patch. Weights are made
on the device, so that nothing has to be copied there.

    python bench/studies/gpu_reference.py --write-checkpoint FOLDER --model 14B-64x --device cuda

writes such weights as a checkpoint, for ``bitdance-edge export``.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from text_to_image import published_config, tokenizer_json
from torch import Tensor

from bitdance_edge.model import (
    GENERATORS,
    TOKENIZERS,
    BitDance,
    TextToImage,
    TextToImageConfig,
    save_generator,
    save_text_to_image,
)

DTYPES = {"cuda": torch.bfloat16, "cpu": torch.bfloat16}  # of autocast, as published
PROMPT_TOKENS = (40, 5)  # of the conditional and the unconditional prompt, template included

LARGE = replace(published_config(), sizes=((1024, 1024),), max_prompt=128)
# The same shapes in small, for a machine without a GPU.
TINY_TEXT = replace(
    LARGE,
    backbone=replace(
        LARGE.backbone, vocabulary=512, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=128
    ),
    head=replace(LARGE.head, bits=16, condition_width=64, width=128, blocks=2, adaln_groups=1, tokens_per_step=4),
    tokenizer=replace(TOKENIZERS["d16c32"], bits=16, channels=32, channel_multipliers=(1, 1), blocks_per_level=1),
    sizes=((16, 16),),
    max_prompt=64,
)
TINY = replace(
    GENERATORS["B-4x"],
    width=64,
    layers=2,
    heads=4,
    num_classes=10,
    resolution=16,
    head_width=64,
    head_blocks=2,
    head_adaln_groups=1,
    tokenizer=TINY_TEXT.tokenizer,
)
MODELS = {**GENERATORS, "14B-64x": LARGE, "tiny": TINY, "tiny-text": TINY_TEXT}


@dataclass(frozen=True)
class ReferenceTimes:
    model: str
    images: int
    compiled: bool
    ms_per_patch: float
    seconds_per_image: float
    peak_mb: float | None  # of the GPU's memory, as PyTorch counts what it allocated


def random_model(name: str, device: str, dtype: torch.dtype) -> BitDance | TextToImage:
    """Make a model of a published size with random weights on the device; no layer stays at zero."""
    torch.manual_seed(0)
    config = MODELS[name]
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = TextToImage(config) if isinstance(config, TextToImageConfig) else BitDance(config)
        finally:
            torch.set_default_dtype(before)
        model.initialize()
        for parameter in model.head.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return model.to(device).eval().requires_grad_(False)


def draws(model: BitDance | TextToImage, images: int, rows: int, steps: int, device: str) -> Iterator[Tensor]:
    """Yield noise in the order of use; the first patch of the linear schedule draws for all rows."""
    config = model.config
    shape = (config.tokens_per_step, config.bits)
    linear = config.sampling.guidance_schedule == "linear"
    for _ in range(steps + 1):
        yield torch.randn(rows if linear else images, *shape, device=device)
    while True:
        yield torch.randn(images, *shape, device=device)


def patches(model: BitDance | TextToImage, images: int, steps: int, device: str) -> Iterator[Tensor]:
    sampling = model.config.sampling
    noise = draws(model, images, 2 * images, steps, device)
    if isinstance(model, BitDance):
        classes = torch.arange(images, device=device) % model.config.num_classes
        return model.sample_patches(
            classes, steps=steps, guidance=sampling.guidance, schedule=sampling.guidance_schedule, noise=noise
        )
    queries = model.config.tokens_per_step + 2
    vocabulary = model.config.backbone.vocabulary
    prompts = [torch.randint(vocabulary, (images, length + queries), device=device) for length in PROMPT_TOKENS]
    height, width = (side // model.config.tokenizer.downsampling for side in model.config.sizes[0])
    return model.sample_patches(prompts, (height, width), steps=steps, guidance=sampling.guidance, noise=noise)


def compile_model(model: BitDance | TextToImage) -> None:
    """What is called again and again, with sizes that grow (the cache) and sizes that do not (the head)."""
    # A block is compiled anew for each layer, and for a cache that is empty: more often than the limit is by default.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1024
    model.head.forward = torch.compile(model.head.forward)
    for block in model.backbone.layers:
        block.forward = torch.compile(block.forward, dynamic=True)


def measure(
    name: str, model: BitDance | TextToImage, images: int, steps: int, compiled: bool, most: int | None = None
) -> ReferenceTimes:
    """One generation of tokens, timed after a first one that compiles and warms up.

    Args:
        most: patches that are generated; None: all of the image.
    """
    device = next(model.parameters()).device.type
    if compiled:
        compile_model(model)
    with torch.no_grad(), torch.autocast(device, DTYPES[device]):
        for _ in range(2 if compiled else 1):  # sizes that differ between patches compile on the second
            warm_up = patches(model, images, steps, device)
            for _ in range(3):
                next(warm_up)
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started, count = time.perf_counter(), 0
        for _ in islice(patches(model, images, steps, device), most):
            count += 1
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None
    return ReferenceTimes(name, images, compiled, 1000 * seconds / count, seconds / images, peak)


def write_checkpoint(name: str, folder: Path, device: str) -> None:
    large = name == "14B-64x"
    model = random_model(name, device, torch.bfloat16 if large else torch.float32)
    if isinstance(model, BitDance):
        save_generator(model, folder)
    else:
        dtype = torch.bfloat16 if large else torch.float32
        save_text_to_image(model, folder, tokenizer_json(model.config), dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-checkpoint", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cpu")
    args = parser.parse_args()
    write_checkpoint(args.model, args.write_checkpoint, args.device)
    print(args.write_checkpoint)


if __name__ == "__main__":
    main()
