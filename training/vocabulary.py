"""The word-level ``tokenizer.json`` of a small text-to-image model: one id for each word of its captions.

Made with the ``tokenizers`` library (https://huggingface.co/docs/tokenizers); ``model/prompt.py`` reads it.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

UNKNOWN = "<|unk|>"
CHAT = ("<|im_start|>", "<|im_end|>", "\n")
CHAT_WORDS = ("user", "assistant")


def word_tokenizer(captions: Iterable[str], tokens_per_step: int, sides: Iterable[int]) -> Tokenizer:
    """Return a tokenizer with the words of ``captions``, in their order.

    Text is lowercased; any other word becomes ``<|unk|>``. The line break of the chat template has its own token, since
    splitting at white space would lose it.

    Args:
        tokens_per_step: P of the model; there are P - 1 query tokens.
        sides: the heights and widths of images that a prompt can name, in tokens.
    """
    words = dict.fromkeys([UNKNOWN, *CHAT_WORDS, *(word for caption in captions for word in caption.lower().split())])
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    image = ["<|vision_start|>", *(f"<|res_{side}|>" for side in sides)]
    queries = [f"<|query_{number}|>" for number in range(1, tokens_per_step)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*CHAT, *image, *queries)])
    return tokenizer
