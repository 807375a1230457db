import pytest
import torch

from bitdance_edge.model import TOKENIZERS, Tokenizer, TokenizerConfig
from bitdance_edge.model.losses import (
    commitment_loss,
    drop_classes,
    entropy_loss,
    flip_bits,
    straight_through_bits,
)
from bitdance_edge.model.tokenizer import image_from_bytes, image_to_bytes, quantize


def test_bits_are_never_zero() -> None:
    latent = torch.tensor([0.0, -0.0, 1e-30, -1e-30, float("nan")])
    assert quantize(latent).tolist() == [-1, -1, 1, -1, -1]


def test_gradient_passes_straight_through_the_bits() -> None:
    latent = torch.randn(2, 4, 3, 3, requires_grad=True)
    straight_through_bits(latent).sum().backward()
    assert latent.grad is not None
    assert (latent.grad == 1).all()


def test_entropy_loss_prefers_sure_tokens_that_use_all_codes() -> None:
    spread = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]).T.reshape(1, 2, 2, 2)
    same, unsure = torch.ones(1, 2, 2, 2), torch.full((1, 2, 2, 2), 1e-4)
    spread_loss, same_loss, unsure_loss = (entropy_loss(latent, groups=1) for latent in (spread, same, unsure))
    assert spread_loss < same_loss
    assert spread_loss < unsure_loss
    torch.testing.assert_close(spread_loss, -torch.tensor(4.0).log(), atol=1e-3, rtol=0)


def test_commitment_is_the_distance_from_the_bits() -> None:
    assert commitment_loss(torch.tensor([0.5, -1.0]).reshape(1, 2, 1, 1)).item() == 0.125


def test_flips_and_dropped_classes_have_the_asked_rate() -> None:
    torch.manual_seed(0)
    tokens = torch.ones(100, 100, 16)
    flipped = (flip_bits(tokens, 0.1) == -1).float().mean().item()
    assert abs(flipped - 0.05) < 0.003  # half the largest rate, on average
    dropped = (drop_classes(torch.zeros(20_000, dtype=torch.long), 0.1, 10) == 10).float().mean().item()
    assert abs(dropped - 0.1) < 0.01


def test_gan_decoder_draws_its_texture_from_noise() -> None:
    config = TokenizerConfig(bits=8, channels=32, channel_multipliers=(1, 1), blocks_per_level=1, gan_decoder=True)
    tokenizer = Tokenizer(config).eval()
    assert tokenizer.decoder.conv_in.weight.shape[1] == 16
    bits = quantize(torch.randn(1, 8, 4, 4))
    one, other = torch.randn_like(bits), torch.randn_like(bits)
    with torch.no_grad():
        assert torch.equal(tokenizer.decode(bits, one), tokenizer.decode(bits, one))
        assert not torch.equal(tokenizer.decode(bits, one), tokenizer.decode(bits, other))


def test_bytes_truncate_and_clamp() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 0.00390, 0.99, 2.0]).reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert image_to_bytes(image)[0, 0, :, 0].tolist() == [0, 0, 128, 128, 254, 255]
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 256, 1).expand(1, 1, 256, 3)
    assert (image_to_bytes(image_from_bytes(levels)).int() - levels.int()).abs().max() <= 1


def test_published_tokenizers_have_the_published_shape() -> None:
    assert {name: (config.downsampling, config.bits) for name, config in TOKENIZERS.items()} == {
        "d16c32": (16, 32),
        "d32c128": (32, 128),
        "d32c256": (32, 256),
    }


@pytest.mark.parametrize(
    ("name", "bytes_of_file"), [("d16c32", 1_841_212_684), ("d32c128", 1_685_571_164), ("d32c256", 1_698_809_996)]
)
def test_published_tokenizers_have_the_size_of_their_files(name: str, bytes_of_file: int) -> None:
    """A safetensors file is its values in float32, and a header of some bytes for each tensor."""
    with torch.device("meta"):
        state = Tokenizer(TOKENIZERS[name]).state_dict()
    header = bytes_of_file - sum(value.numel() * 4 for value in state.values())
    assert 80 * len(state) < header < 160 * len(state)
