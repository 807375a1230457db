"""Prompts to token ids, by the rules in the bundle's manifest and its ``tokenizer.json``
(https://huggingface.co/docs/tokenizers)."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bitdance_edge.imports import failed_import
from bitdance_edge.runtime.bundle.manifest import Bundle
from bitdance_edge.runtime.bundle.specs import ImageSize, TextSpec
from bitdance_edge.runtime.errors import BackendError, BundleError, PromptTooLongError, RequestError
from bitdance_edge.runtime.values import shown

PLACE = "{prompt}"  # of the prompt in the chat template
MOST_CHARACTERS = 100_000  # of a prompt: above what any bundle takes, and tokenised in a moment
LISTED_UNKNOWN = 10  # words that an error repeats
LISTED_WORDS = 100  # an error lists no larger vocabulary


class PromptEncoder:
    """Knows the chat template and the tokens that announce an image; prompts are never cut.

    A tokenizer of whole words has one token for all words that it does not know; a prompt with such a word is refused,
    because the model was not trained on it. Tokenizers of bytes, such as that of the published models, know every word.
    """

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
        except ImportError as error:
            failed = failed_import(error, "tokenizers")
            raise BackendError(f"prompts need the tokenizers package: {failed and failed.explained('text')}") from error
        path = bundle.verified_file(bundle.text.tokenizer)
        try:
            tokenizer = Tokenizer.from_file(str(path))
            known = tokenizer.get_vocab_size(with_added_tokens=True)
            tokenizer.encode(bundle.text.conditional)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library's Rust code is no Exception
            raise BundleError(
                f"{path} is not a tokenizer that can be read ({error}); export the bundle again"
            ) from None
        largest = max(max(ids) for ids in bundle.text.suffixes.values())
        if largest >= known:
            raise BundleError(f"{path} has {known} tokens, its bundle names token {largest}; export it again")
        return cls(bundle.text, tokenizer)

    def conditional(self, prompt: str, size: ImageSize) -> tuple[int, ...]:
        """Encode a prompt for an image of this size, with the queries of the first patch.

        Raises:
            RequestError: the prompt is empty or has words that the tokenizer does not know.
            PromptTooLongError: it has more tokens than the bundle takes.
        """
        if not prompt.strip():
            raise RequestError("a prompt is empty; say what to draw")
        if len(prompt) > MOST_CHARACTERS:
            raise PromptTooLongError(f"the prompt has {len(prompt):,} characters; the limit is {MOST_CHARACTERS:,}")
        encoding = self.tokenizer.encode(self.text.conditional.replace(PLACE, prompt))
        if unknown := dict.fromkeys(self._unknown(prompt, encoding)):
            raise RequestError(self._not_known(list(unknown)))
        ids = encoding.ids
        if len(ids) > self.text.max_prompt:
            around = len(self._template_ids)
            raise PromptTooLongError(
                f"the prompt has {len(ids) - around} tokens; this bundle takes {self.text.max_prompt - around}: "
                f"shorten it, or export again with --max-prompt {len(ids)} (the template's {around} included)"
            )
        return (*ids, *self.text.suffixes[str(size)])

    def unconditional(self, size: ImageSize) -> tuple[int, ...]:
        """Encode the absence of a prompt for an image of this size."""
        return (*self.tokenizer.encode(self.text.unconditional).ids, *self.text.suffixes[str(size)])

    @cached_property
    def words(self) -> tuple[str, ...] | None:
        """The words that a prompt may consist of, in alphabetical order; None: the tokenizer knows every text."""
        if self._unknown_id is None:
            return None
        added = {token.content for token in self.tokenizer.get_added_tokens_decoder().values()}
        names = {self.tokenizer.id_to_token(i) for i in (self._unknown_id, *self._template_ids)}
        return tuple(sorted(self.tokenizer.get_vocab(with_added_tokens=False).keys() - added - names))

    @cached_property
    def _unknown_id(self) -> int | None:
        """The id of the token for unknown text; tokenizers name it by its text or by its number."""
        model = json.loads(self.tokenizer.to_str())["model"]
        name = model.get("unk_token")
        return model.get("unk_id") if name is None else self.tokenizer.token_to_id(name)

    @cached_property
    def _template_ids(self) -> list[int]:
        return self.tokenizer.encode(self.text.conditional.replace(PLACE, "")).ids

    def _unknown(self, prompt: str, encoding: Any) -> Iterator[str]:
        """The parts of a prompt that became the token for unknown text."""
        if self._unknown_id is None:
            return
        before = self.text.conditional.index(PLACE)
        for token, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            if token == self._unknown_id and before <= first < before + len(prompt):
                yield prompt[first - before : last - before]

    def _not_known(self, unknown: list[str]) -> str:
        words = self.words or ()
        many = f"{len(words)}, listed in the bundle's {self.text.tokenizer.path}"
        listed = ", ".join(words) if len(words) <= LISTED_WORDS else many
        asked = ", ".join(map(shown, unknown[:LISTED_UNKNOWN])) + (", ..." if len(unknown) > LISTED_UNKNOWN else "")
        return (
            f"the prompt has {asked}, which this model does not know; its words are {listed}. "
            f"For example: {self.text.example}"
        )


def padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Stack rows of ids as int64 ``[R, T]``, shorter ones padded on the left; returns the padding too, ``[R]``."""
    longest = max(map(len, rows))
    padding = np.array([longest - len(row) for row in rows], np.int64)
    return np.array([[0] * (longest - len(row)) + list(row) for row in rows], np.int64), padding
