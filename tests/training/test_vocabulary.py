from bitdance_edge.model.prompt import CONDITIONAL, UNCONDITIONAL
from bitdance_edge.training.shapes import all_scenes
from bitdance_edge.training.vocabulary import UNKNOWN, word_tokenizer

CAPTION = "an orange star to the left of a blue square"


def test_the_chat_template_and_every_word_survive() -> None:
    tokenizer = word_tokenizer([CAPTION], 4, [8])
    tokens = tokenizer.encode(CONDITIONAL.format(prompt=CAPTION)).tokens
    chat = ["<|im_start|>", "user", "\n", *CAPTION.split(), "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]
    assert tokens == chat
    assert tokenizer.encode(UNCONDITIONAL).tokens == ["<|im_start|>", "assistant", "\n"]


def test_image_tokens_are_single_tokens() -> None:
    tokenizer = word_tokenizer([CAPTION], 4, [8, 16])
    text = "<|vision_start|><|res_8|><|res_16|><|query_1|><|query_2|><|query_3|>"
    assert len(tokenizer.encode(text).tokens) == 6
    assert tokenizer.token_to_id("<|query_4|>") is None


def test_capitals_are_known_and_other_words_are_not() -> None:
    tokenizer = word_tokenizer([CAPTION], 4, [8])
    assert tokenizer.encode("A  Blue\tSQUARE").tokens == ["a", "blue", "square"]
    assert tokenizer.encode("a blue cat,").tokens == ["a", "blue", UNKNOWN, UNKNOWN]


def test_ids_depend_on_the_captions_alone_and_come_back_from_the_file() -> None:
    captions = [scene.caption for scene in all_scenes()]
    tokenizer = word_tokenizer(captions, 16, [8])
    again = type(tokenizer).from_str(tokenizer.to_str(pretty=True))
    assert again.get_vocab() == tokenizer.get_vocab() == word_tokenizer(captions, 16, [8]).get_vocab()
    assert sorted(again.get_vocab().values()) == list(range(again.get_vocab_size()))
    assert all(UNKNOWN not in again.encode(caption).tokens for caption in captions)
