"""The word-level ``tokenizer.json`` of a small text-to-image model: every word of its captions, one id each.

Made with the ``tokenizers`` library (https://huggingface.co/docs/tokenizers); read by ``model/prompt.py``.
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
    """A tokenizer of the words of ``captions``, in the order in which they come.

    Words in capitals are those in small letters; any other word becomes ``<|unk|>``. The line break of the chat
    template is a token of its own, which splitting at white space would lose.

    Args:
        tokens_per_step: of the model; P - 1 of them have a query token.
        sides: the lengths of images in tokens that a prompt can announce.
    """
    words = dict.fromkeys([UNKNOWN, *CHAT_WORDS, *(word for caption in captions for word in caption.lower().split())])
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    image = ["<|vision_start|>", *(f"<|res_{side}|>" for side in sides)]
    queries = [f"<|query_{number}|>" for number in range(1, tokens_per_step)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*CHAT, *image, *queries)])
    return tokenizer
