"""Who sees whom in a pass of the backbone, where its tokens stand, and what of a row is padding."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AttentionWindow:
    """Rows of one batch may start later than others: ``padding`` int64 ``[R]`` slots at the front of each are empty."""

    block: int  # tokens per step: the last of a pass see each other and all before, what precedes them is causal
    cache_length: int
    padding: np.ndarray

    def positions(self, start: int, length: int) -> np.ndarray:
        """Position of each of ``length`` tokens from slot ``start`` on, int64 ``[R, length]``."""
        return np.maximum(start + np.arange(length) - self.padding[:, None], 0)

    def mask(self, start: int, length: int) -> np.ndarray:
        """True where a token may look, bool ``[R, 1, length, cache_length]``."""
        index, slots = np.arange(length), np.arange(self.cache_length)
        last_seen = start + np.where(index < length - self.block, index, length - 1)
        seen = (slots <= last_seen[:, None]) & (slots >= self.padding[:, None, None])
        # Padding sees itself alone: attention over nothing is NaN, and NaN spreads to those who look away.
        seen |= slots == start + index[:, None]
        return seen[:, None]
