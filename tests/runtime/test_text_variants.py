"""A model that differs from the recorded one in everything it may: 64 tokens a step, six levels, SiLU, a time shift."""

from pathlib import Path

import pytest
import torch
from places import FIXTURES
from rounding import assert_same_bits, recorded_predictions
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from bitdance_edge.export.exporter import ExportOptions
from bitdance_edge.export.opening import open_text_to_image
from bitdance_edge.model import (
    HeadConfig,
    QwenConfig,
    SamplingDefaults,
    TextToImage,
    TextToImageConfig,
    TokenizerConfig,
    save_text_to_image,
    text_to_image,
)
from bitdance_edge.model.prompt import PromptTokenizer
from bitdance_edge.runtime import Bundle, Pipeline, Request
from bitdance_edge.runtime.noise import ImageNoise

SIZE = (256, 512)  # pixels; with 32 pixels a token and patches of 8 x 8, two patches
STEPS, SEED, PROMPT = 3, 11, "two birds"


@pytest.fixture(scope="module")
def model() -> TextToImage:
    config = TextToImageConfig(
        backbone=QwenConfig(
            vocabulary=600,
            width=96,
            layers=2,
            heads=6,
            kv_heads=2,
            head_dim=32,
            mlp_width=128,
            rotary_base=10_000.0,
            norm_eps=1e-6,
        ),
        head=HeadConfig(
            bits=16,
            condition_width=96,
            width=256,
            blocks=2,
            adaln_groups=2,
            tokens_per_step=64,
            head_dim=128,
            swiglu=False,
            bounded=True,
        ),
        tokenizer=TokenizerConfig(
            bits=16, channels=32, channel_multipliers=(1, 1, 1, 1, 1, 1), blocks_per_level=1, gan_decoder=False
        ),
        sizes=(SIZE,),
        max_prompt=64,
        example=PROMPT,
        time_shift=2.0,
        time_schedule="logit_normal",
        time_mean=0.0,
        time_std=1.0,
        targets_per_token=1,
        sampling=SamplingDefaults(steps=STEPS, guidance=1.0, guidance_schedule="constant"),
    )
    torch.manual_seed(0)
    model = TextToImage(config)
    model.initialize()
    for parameter in model.head.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def tokenizer_json(sides: list[int], queries: int) -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", *(f"<|res_{side}|>" for side in sides)]
    names += [f"<|query_{i}|>" for i in range(1, queries)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def bundle(model: TextToImage, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("variant")
    save_text_to_image(model, folder / "checkpoint", tokenizer_json([8, 16], 64))
    options = ExportOptions(name="variant", fast_previews=False, window_patches=0)
    return open_text_to_image(folder / "checkpoint", options).export(folder / "bundle")


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_tokens_are_those_of_pytorch(model: TextToImage, bundle: Bundle, guidance: float) -> None:
    prompts = PromptTokenizer.open(bundle.folder / "tokenizer.json", model.config)
    draw = ImageNoise([SEED], STEPS, (64, 16))
    noise = (torch.from_numpy(step) for patch in range(2) for step in draw(patch, False))
    rows = [torch.tensor([prompts.conditional(PROMPT, *SIZE)])]
    rows += [torch.tensor([prompts.unconditional(*SIZE)])] if guidance > 1 else []
    with recorded_predictions(text_to_image) as predictions:
        patches = model.sample_patches(rows, (8, 16), steps=STEPS, guidance=guidance, noise=noise)
        expected = torch.cat(list(patches), dim=1).numpy()
    with Pipeline.open(bundle.folder) as pipeline:
        (image,) = pipeline.generate(Request(prompts=[PROMPT], seed=SEED, guidance=guidance))
    assert_same_bits(image.tokens[None], expected, predictions)
    assert image.pixels is not None and image.pixels.shape == (*SIZE, 3)


def test_sizes_of_a_published_folder_are_whole_patches(tmp_path: Path) -> None:
    import json
    import shutil

    from bitdance_edge.model import TextCheckpoint

    shutil.copytree(FIXTURES / "t2i_16x_swiglu", tmp_path / "published")
    sizes = TextCheckpoint.open(tmp_path / "published").config.sizes
    assert (1152, 896) in sizes
    fields = json.loads((tmp_path / "published" / "vision_head_config.json").read_text())
    (tmp_path / "published" / "vision_head_config.json").write_text(json.dumps({**fields, "parallel_num": 64}))
    assert len(TextCheckpoint.open(tmp_path / "published").config.sizes) == 11
