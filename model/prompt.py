"""Prompts as token ids: the chat template of the text-to-image models and the tokens that start an image.

Reads ``tokenizer.json`` with the ``tokenizers`` library (https://huggingface.co/docs/tokenizers).
"""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from bitdance_edge.model.errors import ModelError
from bitdance_edge.model.placeholder import require_content
from bitdance_edge.model.text_config import TextToImageConfig

BOM = b"\xef\xbb\xbf"  # a byte order mark, which some editors put first
CONDITIONAL = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
UNCONDITIONAL = "<|im_start|>assistant\n"


@dataclass(frozen=True)
class PromptTokenizer:
    """Text to ids, and the ids that follow every prompt: start of the image, its height and width, the queries."""

    file: Path
    tokenizer: Tokenizer
    config: TextToImageConfig

    @classmethod
    def open(cls, file: str | Path, config: TextToImageConfig) -> "PromptTokenizer":
        """Read ``tokenizer.json`` and check that it knows the tokens that start an image.

        Raises:
            ModelError: the file is missing or is not a tokenizer, or lacks tokens.
        """
        file = Path(file)
        if not file.is_file():
            raise ModelError(f"no tokenizer at {file}; a text-to-image checkpoint has a tokenizer.json: copy it again")
        require_content(file)
        try:
            opened = cls(file, Tokenizer.from_buffer(file.read_bytes().removeprefix(BOM)), config)
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(f"{file} is not a tokenizer ({error}); it may be truncated: copy it again") from None
        opened._require_tokens()
        return opened

    def conditional(self, prompt: str, height: int, width: int) -> list[int]:
        """Return the ids of a prompt for an image of ``height`` x ``width`` pixels."""
        return self.encode(CONDITIONAL.format(prompt=prompt)) + self.suffix(height, width)

    def unconditional(self, height: int, width: int) -> list[int]:
        return self.encode(UNCONDITIONAL) + self.suffix(height, width)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def suffix(self, height: int, width: int) -> list[int]:
        """Return the ids between text and image: its start, its height and width, and the P - 1 queries.

        Raises:
            ModelError: the tokenizer has no token for this height or width (in pixels).
        """
        sides = self._sides(height, width)
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        tokens = ["<|vision_start|>", *sides, *self._queries()]
        if missing := [token for token in tokens if token not in vocabulary]:
            raise ModelError(
                f"size {width}x{height} has no token in this tokenizer, which lacks {' and '.join(missing)}"
            )
        return [vocabulary[token] for token in tokens]

    def announces(self, height: int, width: int) -> bool:
        """Return whether the tokenizer has tokens for an image of ``height`` x ``width`` pixels."""
        return all(self.tokenizer.token_to_id(side) is not None for side in self._sides(height, width))

    def _sides(self, height: int, width: int) -> list[str]:
        pixels = self.config.tokenizer.downsampling
        return [f"<|res_{height // pixels}|>", f"<|res_{width // pixels}|>"]

    def _queries(self) -> list[str]:
        return [f"<|query_{i}|>" for i in range(1, self.config.tokens_per_step)]

    def _require_tokens(self) -> None:
        needed = ["<|vision_start|>", *self._queries()]
        ids = {token: self.tokenizer.token_to_id(token) for token in needed}
        missing = [token for token, found in ids.items() if found is None]
        if missing:
            shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            raise ModelError(
                f"{self.file} lacks {shown}; {self.config.tokens_per_step} tokens a step need {len(needed)} such "
                "tokens: use the tokenizer.json that was published with these weights"
            )
        largest = max(self.tokenizer.get_vocab(with_added_tokens=True).values())
        if largest >= self.config.backbone.vocabulary:
            raise ModelError(
                f"{self.file} has token ids up to {largest}, but the model embeds {self.config.backbone.vocabulary} "
                "(vocab_size); use the tokenizer.json that was published with these weights"
            )
