"""The PyTorch modules as trained: tokenizer, backbone, head, sampler, variants, checkpoint loading."""

from bitdance_edge.model.checkpoint import load_generator, load_tokenizer, save_generator, save_tokenizer
from bitdance_edge.model.class_config import GeneratorConfig
from bitdance_edge.model.config import HeadConfig, SamplingDefaults, TokenizerConfig
from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.generator import BitDance
from bitdance_edge.model.head import DiffusionHead
from bitdance_edge.model.text_checkpoint import TextCheckpoint, load_text_to_image, save_text_to_image
from bitdance_edge.model.text_config import QwenConfig, TextToImageConfig
from bitdance_edge.model.text_to_image import TextToImage
from bitdance_edge.model.tokenizer import Tokenizer
from bitdance_edge.model.variants import GENERATORS, TOKENIZERS

__all__ = [
    "GENERATORS",
    "TOKENIZERS",
    "BitDance",
    "DiffusionHead",
    "GeneratorConfig",
    "HeadConfig",
    "ModelError",
    "QwenConfig",
    "SamplingDefaults",
    "TextCheckpoint",
    "TextToImage",
    "TextToImageConfig",
    "Tokenizer",
    "TokenizerConfig",
    "load_generator",
    "load_text_to_image",
    "load_tokenizer",
    "save_generator",
    "save_text_to_image",
    "save_tokenizer",
]
