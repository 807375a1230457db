"""Prompts to token ids, by the rules in the bundle's manifest and its ``tokenizer.json``
(https://huggingface.co/docs/tokenizers)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bitdance_edge.runtime.bundle import Bundle, ImageSize, TextSpec
from bitdance_edge.runtime.errors import BackendError, BundleError, PromptTooLongError, RequestError


class PromptEncoder:
    """Knows the chat template and the tokens that announce an image; prompts are never cut."""

    def __init__(self, text: TextSpec, tokenizer: Any) -> None:
        self.text, self.tokenizer = text, tokenizer

    @classmethod
    def open(cls, bundle: Bundle) -> "PromptEncoder":
        """Load the tokenizer of a text-to-image bundle.

        Raises:
            BackendError: the tokenizers package is not installed.
            BundleError: the tokenizer is missing or altered.
        """
        if bundle.text is None:
            raise BundleError(f"{bundle.folder} is {bundle.model.kind} and has no tokenizer")
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise BackendError("prompts need the tokenizers package: pip install 'bitdance-edge[text]'") from None
        return cls(bundle.text, Tokenizer.from_file(str(bundle.verified_file(bundle.text.tokenizer))))

    def conditional(self, prompt: str, size: ImageSize) -> tuple[int, ...]:
        """Ids of a prompt for an image of this size, with the queries of the first patch.

        Raises:
            RequestError: the prompt is empty; PromptTooLongError where it has more tokens than the bundle takes.
        """
        if not prompt.strip():
            raise RequestError("a prompt is empty; say what to draw")
        ids = self.tokenizer.encode(self.text.conditional.replace("{prompt}", prompt)).ids
        if len(ids) > self.text.max_prompt:
            around = len(self.tokenizer.encode(self.text.conditional.replace("{prompt}", "")).ids)
            raise PromptTooLongError(
                f"the prompt has {len(ids) - around} tokens; this bundle takes {self.text.max_prompt - around}: "
                f"shorten it, or export again with --max-prompt above {self.text.max_prompt} (template included)"
            )
        return (*ids, *self.text.suffixes[str(size)])

    def unconditional(self, size: ImageSize) -> tuple[int, ...]:
        return (*self.tokenizer.encode(self.text.unconditional).ids, *self.text.suffixes[str(size)])


def padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as one int64 ``[R, T]``, shorter ones filled up on the left, and how much of each was: ``[R]``."""
    longest = max(map(len, rows))
    padding = np.array([longest - len(row) for row in rows], np.int64)
    return np.array([[0] * (longest - len(row)) + list(row) for row in rows], np.int64), padding
