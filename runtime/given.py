"""What is known of images before they are sampled: patches taken as they are, varied, or known in part."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class GivenTokens:
    """S patches of B images in generation order; what is said of a patch holds for all images.

    Attributes:
        tokens: float32 ``[B, S, P, C]`` of -1 and +1; values of tokens that are sampled from nothing are not read.
        strengths: float64 ``[S]``. 0: the patch is taken as it is. 1: it is sampled from noise. Between: it is sampled
            from time ``1 - strength`` on, from the mix of its tokens and noise at that time.
        held: bool ``[S, P]``: tokens that are kept while the others of their patch are sampled.
    """

    tokens: np.ndarray
    strengths: np.ndarray
    held: np.ndarray

    @classmethod
    def nothing(cls, images: int, patches: int, patch_shape: tuple[int, int]) -> "GivenTokens":
        """Every patch, of shape ``(P, C)``, is sampled from noise."""
        return cls(
            tokens=np.broadcast_to(np.float32(0), (images, patches, *patch_shape)),
            strengths=np.ones(patches),
            held=np.zeros((patches, patch_shape[0]), bool),
        )

    @classmethod
    def prefix(cls, tokens: np.ndarray, patches: int) -> "GivenTokens":
        """The first K of ``patches`` are taken as they are: ``tokens`` float32 ``[B, K, P, C]``."""
        missing = patches - tokens.shape[1]
        return cls(
            tokens=np.pad(tokens, ((0, 0), (0, missing), (0, 0), (0, 0))),
            strengths=np.repeat([0.0, 1.0], [tokens.shape[1], missing]),
            held=np.zeros((patches, tokens.shape[2]), bool),
        )

    @property
    def starts(self) -> tuple[float, ...]:
        """The times after 0 at which patches start, each once."""
        times = {self.start(patch) for patch in range(len(self.strengths)) if not self.taken(patch)}
        return tuple(sorted(times - {0.0}))

    @property
    def first_sampled(self) -> int:
        """The first patch that is not taken as it is; S if all are."""
        return next((patch for patch in range(len(self.strengths)) if not self.taken(patch)), len(self.strengths))

    @property
    def judged(self) -> list[int]:
        """Patches that are taken as they are, behind a sampled one: how likely they are says how well that one fits."""
        return [patch for patch in range(self.first_sampled, len(self.strengths)) if self.taken(patch)]

    def taken(self, patch: int) -> bool:
        """Whether a patch is taken as it is, so that the head need not run."""
        return bool(self.strengths[patch] == 0 or self.held[patch].all())

    def start(self, patch: int) -> float:
        """The time at which the sampling of a patch starts."""
        return float(1 - self.strengths[patch])

    def of_images(self, images: slice, times: int = 1) -> "GivenTokens":
        """The same of some of the images, each ``times`` in a row."""
        return replace(self, tokens=np.repeat(self.tokens[images], times, axis=0) if times > 1 else self.tokens[images])
