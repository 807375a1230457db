"""The stages of a bundle by name; each is one graph."""

from enum import StrEnum


class StageName(StrEnum):
    PROMPT = "prompt"
    TIME = "time"
    BACKBONE = "backbone"
    MODULATION = "modulation"
    HEAD = "head"
    SETTLE = "settle"
    EXTRAPOLATE = "extrapolate"
    ADVANCE = "advance"
    TOKENS = "tokens"
    DECODER = "decoder"
    ENCODER = "encoder"


STAGE_WIDTH = max(map(len, StageName))  # characters of a stage's name in a table

# In the order of a patch; the others turn whole images into tokens and back.
LOOP_STAGES: tuple[str, ...] = (
    StageName.PROMPT,
    StageName.TOKENS,
    StageName.TIME,
    StageName.BACKBONE,
    StageName.MODULATION,
    StageName.HEAD,
)
# What the windowed sampler takes beside the head; bundles of older formats have none of them.
WINDOW_STAGES: tuple[str, ...] = (StageName.SETTLE, StageName.EXTRAPOLATE, StageName.ADVANCE)
GENERATING_STAGES: tuple[str, ...] = (*LOOP_STAGES, StageName.DECODER)  # all that making an image takes
