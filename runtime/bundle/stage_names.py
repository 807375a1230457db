"""The stages of a bundle by name; each is one graph."""

from enum import StrEnum


class StageName(StrEnum):
    PROMPT = "prompt"
    TIME = "time"
    BACKBONE = "backbone"
    MODULATION = "modulation"
    HEAD = "head"
    TOKENS = "tokens"
    DECODER = "decoder"
    ENCODER = "encoder"


# In the order of a patch; the others turn whole images into tokens and back.
LOOP_STAGES: tuple[str, ...] = (
    StageName.PROMPT,
    StageName.TOKENS,
    StageName.TIME,
    StageName.BACKBONE,
    StageName.MODULATION,
    StageName.HEAD,
)
GENERATING_STAGES: tuple[str, ...] = (*LOOP_STAGES, StageName.DECODER)  # all that making an image takes
