"""What every contender is asked for: the same images, from the same noise."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bitdance_edge.bench.errors import BenchError
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import CLASS_CONDITIONAL
from bitdance_edge.runtime.request import Request, Settings


@dataclass(frozen=True, kw_only=True)
class Work:
    """``images`` at once, the first ``patches`` patches of each (None: all); the other tokens are decoded as zero."""

    images: int
    steps: int | None  # None: the bundle's
    patches: int | None
    seed: int
    prompt: str | None  # of a text-to-image bundle

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Work":
        return cls(**data)

    def request(self, bundle: Bundle) -> Request:
        """Ask for images of classes 0, 1, ... (starting over after the last), or all of the prompt.

        Raises:
            BenchError: a prompt for a class-conditional bundle, or none for a text-to-image one; a tokenizer alone.
        """
        model = bundle.model
        if not model.generates:
            raise BenchError(f"{bundle.folder} is a tokenizer alone, which draws nothing: name a generator's bundle")
        # The one sampler that the PyTorch model has.
        shared = {"seed": self.seed, "steps": self.steps, "sampler": "sde", "output": "tokens", "window": 1}
        if model.kind == CLASS_CONDITIONAL:
            if self.prompt is not None:
                raise BenchError(f"--prompt is for text-to-image bundles; {bundle.folder} draws classes: omit --prompt")
            return Request(classes=[i % model.num_classes for i in range(self.images)], **shared)
        if self.prompt is None:
            raise BenchError(f"{bundle.folder} needs a prompt: --prompt 'a red circle'")
        return Request(prompts=[self.prompt], count=self.images, **shared)

    def settings(self, bundle: Bundle) -> Settings:
        return self.request(bundle).resolve(bundle)

    def drawn(self, bundle: Bundle) -> int:
        """Return the number of patches of each image that are drawn.

        Raises:
            BenchError: the image has fewer.
        """
        most = bundle.model.default_size.patches
        if self.patches is not None and not 1 <= self.patches <= most:
            raise BenchError(f"--patches is {self.patches}; an image of {bundle.folder} has 1 to {most}")
        return self.patches or most


def padded(tokens: np.ndarray, bundle: Bundle) -> np.ndarray:
    """Return tokens ``[B, K, C]`` as float32 ``[B, h*w, C]``, zero where none were drawn."""
    whole = np.zeros((len(tokens), bundle.model.default_size.tokens, bundle.model.bits), np.float32)
    whole[:, : tokens.shape[1]] = tokens
    return whole
