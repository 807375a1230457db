"""A tokenizer of whole words: a prompt with a word that it does not know is refused, and nothing built in has one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bitdance_edge.cli import main
from bitdance_edge.engines.samples import record_samples
from bitdance_edge.model import TextCheckpoint
from bitdance_edge.model.prompt import CONDITIONAL, UNCONDITIONAL
from bitdance_edge.runtime import Bundle, Request, RequestError
from bitdance_edge.runtime.bundle.specs import FileSpec, TextSpec
from bitdance_edge.runtime.prompt import PromptEncoder

SHAPES = Path(__file__).parents[2] / "checkpoints" / "shapes-16x"


def encode(bundle: Bundle, prompt: str) -> tuple[int, ...]:
    return PromptEncoder.open(bundle).conditional(prompt, bundle.model.default_size)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a blue fish", "'blue',"),
        ("fish, please, fish", "',', 'please',"),
        ("<|unk|>", "'<|', 'unk', '|>',"),
    ],
)
def test_unknown_words_are_named_with_those_that_are_known(word_bundle: Bundle, prompt: str, named: str) -> None:
    with pytest.raises(RequestError) as raised:
        encode(word_bundle, prompt)
    assert f"the prompt has {named} which this model does not know; its words are a, fish, red." in str(raised.value)
    assert str(raised.value).endswith("For example: a red fish")


def test_a_negative_prompt_is_held_to_the_same_words(word_bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="'blue', which this model does not know"):
        Request(prompts=["a red fish"], negative_prompt="blue").resolve(word_bundle)


def test_known_words_pass_in_any_case_and_layout(word_bundle: Bundle) -> None:
    assert encode(word_bundle, "A  Red fish") == encode(word_bundle, "a red fish")


def test_a_tokenizer_of_bytes_knows_every_word(exported: Callable[..., Bundle]) -> None:
    bundle = exported("t2i_16x_swiglu")
    assert PromptEncoder.open(bundle).words is None
    assert encode(bundle, "Übermut, 魚 and 🐟")


def test_a_large_vocabulary_is_not_listed(word_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitdance_edge.runtime.prompt.LISTED_WORDS", 2)
    with pytest.raises(RequestError, match=r"its words are 3, listed in the bundle's tokenizer\.json\. For"):
        encode(word_bundle, "a blue fish")


def test_the_command_line_says_it_in_one_line(word_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(word_bundle.folder), "--prompt", "a blue fish", "--out", "unused"]) == 1
    error = capsys.readouterr().err
    assert "'blue', which this model does not know" in error and "Traceback" not in error


def test_recordings_use_the_prompt_that_came_with_the_bundle(word_bundle: Bundle) -> None:
    recorded = record_samples(word_bundle)
    assert tuple(recorded["prompt", "all"]["input_ids"][0]) == encode(word_bundle, "a red fish")


def test_the_shipped_model_knows_its_example() -> None:
    checkpoint = TextCheckpoint.open(SHAPES)
    text = TextSpec(
        tokenizer=FileSpec(path="tokenizer.json", sha256="", bytes=0),
        conditional=CONDITIONAL,
        unconditional=UNCONDITIONAL,
        suffixes={},
        max_prompt=checkpoint.config.max_prompt,
        example=checkpoint.config.example,
    )
    encoder = PromptEncoder(text, Tokenizer.from_file(str(SHAPES / "tokenizer.json")))
    assert encoder.words is not None and set(text.example.split()) <= set(encoder.words)
