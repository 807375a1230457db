"""The class-conditional models as ported to diffusers (huggingface.co/BiliSakura/BitDance-ImageNet-diffusers).

One folder for each variant, with ``transformer/`` (``config.json`` and all weights, the tokenizer's among them, under
the reference's keys) and ``autoencoder/``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitdance_edge.model.class_config import GeneratorConfig
from bitdance_edge.model.config import MAX_TOKENS_PER_STEP
from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.fields import Fields
from bitdance_edge.model.variants import GENERATORS

TRANSFORMER = "transformer"
INDEX = "model_index.json"
NAMED = "BitDance-"  # before the size in "architecture"


def is_ported(values: Mapping[str, Any]) -> bool:
    """Return whether settings are those of a ``transformer/config.json``."""
    return "architecture" in values and "dim" not in values


def ported_generator(values: Mapping[str, Any], source: str) -> GeneratorConfig:
    """Find the variant that a ``transformer/config.json`` names by size and tokens a step.

    Raises:
        ModelError: there is no such variant, or a setting is not the variant's.
    """
    fields = Fields(values, source)
    architecture = fields.text("architecture", "")
    tokens = fields.integer("parallel_num", most=MAX_TOKENS_PER_STEP)
    name = f"{architecture.removeprefix(NAMED)}-{tokens}x"
    if name not in GENERATORS:
        raise fields.error(
            f"architecture {architecture!r} with a parallel_num of {tokens} is no published variant; "
            f"there are {', '.join(GENERATORS)}"
        )
    config = GENERATORS[name]
    for key, ours in (
        ("resolution", config.resolution),
        ("down_size", config.tokenizer.downsampling),
        ("latent_dim", config.bits),
        ("num_classes", config.num_classes),
        ("time_shift", config.time_shift),
        *((("parallel_mode", "patch"),) if config.patch_order else ()),
    ):
        fields.only(key, ours)
    return config


def require_variant_folder(folder: Path) -> None:
    """Refuse a folder of several variants.

    Raises:
        ModelError: its sub-folders are models, and it is none.
    """
    own = (folder / INDEX).exists() or (folder / "config.json").exists()
    if not own and (variants := sorted(path.parent.name for path in folder.glob(f"*/{INDEX}"))):
        raise ModelError(f"{folder} holds several models; give the folder of one: {', '.join(variants)}")
