"""The attention mask and positions of a pass of the backbone, with padding at the front of shorter rows."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class AttentionWindow:
    """Rows of one batch may be shorter than others: the first ``padding`` int64 ``[R]`` slots of each are empty."""

    block: int  # tokens per step: the last of a pass see each other and all before them; those before are causal
    cache_length: int
    padding: np.ndarray

    def positions(self, start: int, length: int) -> np.ndarray:
        """Position of each of ``length`` tokens from slot ``start`` on, int64 ``[R, length]``."""
        return np.maximum(start + np.arange(length) - self.padding[:, None], 0)

    def mask(self, start: int, length: int) -> np.ndarray:
        """True where a token may look, bool ``[R, 1, length, cache_length]``."""
        index, slots = np.arange(length), np.arange(self.cache_length)
        last_seen = start + np.where(index < length - self.block, index, length - 1)
        seen = slots <= last_seen[:, None]
        if not self.padding.any():  # the same for all rows: a view of one
            return np.broadcast_to(seen, (len(self.padding), 1, *seen.shape))
        seen = seen & (slots >= self.padding[:, None, None])
        # Padding sees itself alone: attention over nothing is NaN, which would spread to the tokens that ignore it.
        seen |= slots == start + index[:, None]
        return seen[:, None]

    def patch_positions(self, start: int) -> np.ndarray:
        """``positions`` of a patch after the prompt, int64 ``[R, block]``."""
        return self._offsets + start

    def patch_mask(self, start: int) -> np.ndarray:
        """``mask`` of a patch after the prompt, the same for all its tokens, bool ``[R or 1, 1, 1, cache_length]``."""
        hidden = self.cache_length - start - self.block
        seen = self._ramp[..., hidden : hidden + self.cache_length]
        return seen if self._filled is None else seen & self._filled

    @cached_property
    def _offsets(self) -> np.ndarray:
        return np.arange(self.block) - self.padding[:, None]

    @cached_property
    def _ramp(self) -> np.ndarray:
        """True, then False: a window over it is the mask of a row without padding."""
        return (np.arange(2 * self.cache_length) < self.cache_length)[None, None, None]

    @cached_property
    def _filled(self) -> np.ndarray | None:
        """False where a row is padding; None: no row has any."""
        if not self.padding.any():
            return None
        return (np.arange(self.cache_length) >= self.padding[:, None])[:, None, None]
