"""Python calls as people write them: accepted where the meaning is plain, else one RequestError."""

import decimal
import fractions
import itertools
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bitdance_edge.runtime import BitDanceError, Bundle, Pipeline, Request, RequestError, Size
from bitdance_edge.runtime.request import Settings

pytestmark = pytest.mark.usefixtures("cheap")


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.open(bundle.folder) as opened:
        yield opened


PLAIN: list[tuple[dict[str, Any], list[int]]] = [
    ({"classes": "7"}, [7]),
    ({"classes": 7}, [7]),
    ({"classes": np.int64(7)}, [7]),
    ({"classes": np.uint8(7)}, [7]),
    ({"classes": np.str_("7")}, [7]),
    ({"classes": np.array(7)}, [7]),
    ({"classes": np.array([3, 7])}, [3, 7]),
    ({"classes": np.array(["3", "7"])}, [3, 7]),
    ({"classes": (3, "7")}, [3, 7]),
    ({"classes": range(3)}, [0, 1, 2]),
    ({"classes": (i for i in (3, 7))}, [3, 7]),
    ({"classes": 7, "prompts": None}, [7]),
    ({"classes": 7, "prompts": []}, [7]),
    ({"classes": 7, "count": np.int32(2)}, [7, 7]),
    ({"classes": 7, "negative_prompt": ""}, [7]),
    ({"classes": 7, "negative_prompt": " \n"}, [7]),
    ({"classes": [3, 7], "seeds": np.array([5, 6])}, [3, 7]),
    ({"classes": 7, "seeds": 5}, [7]),
    ({"classes": 7, "seeds": iter([5])}, [7]),
    ({"classes": 7, "size": "32x32"}, [7]),
    ({"classes": 7, "size": " 32X32 "}, [7]),
    ({"classes": 7, "size": np.str_("32x32")}, [7]),
    ({"classes": 7, "size": Size(width=np.int64(32), height=32)}, [7]),  # pyright: ignore[reportArgumentType]
    ({"classes": 7, "guidance": 2}, [7]),
    ({"classes": 7, "guidance": np.float32(2)}, [7]),
    ({"classes": 7, "guidance": np.array(2.0)}, [7]),
    ({"classes": 7, "guidance": fractions.Fraction(5, 2)}, [7]),
    ({"classes": 7, "steps": np.int8(3), "seed": np.uint64(2**63 - 1)}, [7]),
    ({"classes": 7, "published": np.True_, "batch_invariant": np.False_}, [7]),
    ({"classes": 7, "preview_share": np.float64(0.5)}, [7]),
    ({"classes": 7, "prefix": [[1] * 16] * 4}, [7]),
    ({"classes": 7, "prefix": np.ones((1, 4, 16), np.float16)}, [7]),
]


# Addresses would name a test differently in each process.
@pytest.mark.parametrize(("fields", "ids"), PLAIN, ids=[re.sub(r" at 0x\w+", "", str(fields)) for fields, _ in PLAIN])
def test_a_plain_call_is_accepted_again_and_again(bundle: Bundle, fields: dict[str, Any], ids: list[int]) -> None:
    request = Request(**fields)
    for _ in range(2):
        settings = request.resolve(bundle)
        assert [image.class_id for image in settings.images] == ids
        assert all(type(image.class_id) is int and type(image.seed) is int for image in settings.images)


ODD: tuple[Any, ...] = (
    *(True, False, np.True_, 10**40, -(10**5000), -1, 1.5, 2.0, float("nan"), float("inf"), 1e300, 1j, 1e-320),
    *(
        decimal.Decimal("2.5"),
        fractions.Fraction(1, 3),
        np.float64("nan"),
        np.array([]),
        np.array([[1, 2]]),
        np.zeros(0),
    ),
    *("", "x", "\ud800", "9" * 5000, "٣", "1_0", " 7", "\0", "7\n", b"7", bytearray(b"7"), memoryview(b"7")),
    *(set(), {7}, frozenset({7}), {}, {7: 7}, [], [[]], [[7]], [None], [True], [7.0], ["7", b"7"], ("\ud800",)),
    *(
        object(),
        object,
        len,
        Path("7"),
        Size(width=1, height=1),
        itertools.count(),
        iter([[]]),
        Request(),
        threading.Event(),
    ),
    *(
        np.array(["7", None], dtype=object),
        np.array(b"7"),
        np.datetime64("2026-01-01"),
        slice(7),
        Ellipsis,
        NotImplemented,
    ),
)
FIELDS = [name for name in Request.__dataclass_fields__ if name != "prompts"]


@pytest.mark.parametrize("field", FIELDS)
def test_an_odd_value_of_any_field_is_settings_or_one_error(bundle: Bundle, field: str) -> None:
    for value in (None, *ODD):
        try:
            settings = Request(**{"classes": 7, field: value}).resolve(bundle)
        except RequestError as error:
            assert len(str(error)) < 400 and "\n" not in str(error)
        else:
            assert isinstance(settings, Settings) and settings.images[0].class_id in range(10)


@pytest.mark.parametrize("field", ["init", "init_tokens", "mask", "strength", "candidates", "blend"])
def test_an_odd_value_of_an_edit_is_settings_or_one_error(bundle: Bundle, field: str) -> None:
    mask = np.zeros((32, 32), bool)
    mask[:8] = True
    plain = {"classes": 7, "init": np.zeros((32, 32, 3), np.uint8), "mask": mask, "strength": 0.5}
    assert Request(**plain).resolve(bundle).edit is not None
    for value in ODD:
        try:
            settings = Request(**{**plain, field: value}).resolve(bundle)
        except RequestError as error:
            assert len(str(error)) < 400 and "\n" not in str(error)
        else:
            assert isinstance(settings, Settings)


def test_sizes_ranges_and_callbacks_of_other_kinds_are_one_error(pipeline: Pipeline) -> None:
    for side in (np.ones((2, 2)), "32", 1.5, None):
        with pytest.raises(RequestError, match="width is "):
            pipeline(7, width=side, height=32)  # pyright: ignore[reportArgumentType]
    for function in (pipeline.tokenize, pipeline.decode, pipeline.preview):
        with pytest.raises(RequestError, match="cannot be read as"):
            function(range(10**12))
    for value in (7, "now", lambda: True):
        with pytest.raises(RequestError, match=r"cancel is .*; give a threading\.Event"):
            pipeline.generate(Request(classes=7), value)  # pyright: ignore[reportArgumentType]
    for callback in (7, "print", [len]):
        with pytest.raises(RequestError, match=r"callback_on_step_end is .*; give a function"):
            pipeline(7, callback_on_step_end=callback)  # pyright: ignore[reportArgumentType]


def test_an_odd_argument_of_a_call_is_one_error(pipeline: Pipeline) -> None:
    names = ("num_inference_steps", "guidance_scale", "num_images_per_prompt", "width", "height", "seed", "generator")
    quick = {"num_inference_steps": 1, "output": "tokens"}
    for name, value in itertools.product(("prompt", *names), ODD):
        arguments = {"prompt": 7, **quick, "num_images_per_prompt": "none is drawn", name: value}
        with pytest.raises(RequestError) as refused:
            pipeline(**arguments)
        assert len(str(refused.value)) < 400


def test_an_odd_prompt_is_settings_or_one_error(word_bundle: Bundle) -> None:
    for field in ("prompts", "negative_prompt"):
        for value in ODD:
            try:
                Request(**{"prompts": "a red fish", field: value}).resolve(word_bundle)
            except BitDanceError as error:
                assert isinstance(error, RequestError) and len(str(error)) < 600
            else:
                assert field == "negative_prompt" and value == ""
    with pytest.raises(RequestError, match="100,001 characters"):
        Request(prompts="a" * 100_001).resolve(word_bundle)


def test_a_lone_prompt_is_one_and_an_empty_negative_prompt_is_none(word_bundle: Bundle) -> None:
    plain = Request(prompts=["a red fish"], seed=1).resolve(word_bundle)
    for prompts in ("a red fish", np.array(["a red fish"]), ("a red fish",), np.str_("a red fish")):
        for negative in ("", " ", None):
            same = Request(prompts=prompts, seed=1, negative_prompt=negative)
            assert same.resolve(word_bundle).images == plain.images


def test_a_request_has_an_end(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="10,000,000 images; a request makes 1,000,000 at most"):
        Request(classes=range(10), count=1_000_000).resolve(bundle)


def test_pixels_of_one_image_or_none_are_plain(pipeline: Pipeline) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    tokens = pipeline.tokenize(pixels)
    one = Image.fromarray(pixels[0])
    for given in (pixels[0], one, [one], [pixels[0]], pixels[:1].copy(order="F"), pixels[::2]):
        assert np.array_equal(pipeline.tokenize(given), tokens[:1])
    decoded = pipeline.decode(tokens)
    assert np.array_equal(pipeline.reconstruct(one), decoded[:1])
    for given in (tokens[0], tokens[:1].tolist(), tokens[:1].astype(float), np.asfortranarray(tokens[:1])):
        assert np.array_equal(pipeline.decode(given), decoded[:1])
    assert np.array_equal(pipeline.decode(tokens, np.array([1, 2]), "32x32"), decoded)
    assert pipeline.tokenize(pixels[:0]).shape == (0, 64, 16)
    assert pipeline.reconstruct(pixels[:0]).shape == pipeline.decode(tokens[:0]).shape == (0, 32, 32, 3)
    assert pipeline.preview(tokens[:0, :4]).shape == (0, 32, 32, 3)
    assert np.array_equal(pipeline.preview(tokens[0, :4]), pipeline.preview(tokens[:1, :4]))


def test_odd_arguments_of_a_pipeline_are_one_error(pipeline: Pipeline) -> None:
    tokens = np.ones((1, 64, 16), np.int8)
    calls = [
        (pipeline.tokenize, lambda value: (value,)),
        (pipeline.reconstruct, lambda value: (value,)),
        (pipeline.decode, lambda value: (value,)),
        (pipeline.preview, lambda value: (value,)),
        (pipeline.decode, lambda value: (tokens, value)),
        (pipeline.decode, lambda value: (tokens, None, value)),
        (pipeline.stream, lambda value: (value,)),
        (pipeline.preview_canvas, lambda value: (value,)),
        (pipeline.preview_canvas, lambda value: (1, value)),
    ]
    images = (np.zeros((1, 32, 32, 4), np.uint8), np.zeros((1, 32, 32, 3)), np.zeros((32, 32), np.uint8), [tokens, 1])
    accepted = 0
    for (function, arguments), value in itertools.product(calls, (*ODD, *images)):
        if value is next((odd for odd in ODD if isinstance(odd, Request)), None) and function == pipeline.stream:
            continue
        try:
            function(*arguments(value))
        except RequestError as error:
            assert len(str(error)) < 300
        else:
            accepted += 1
    assert accepted < 10  # a seed


@pytest.mark.parametrize("argument", ["bundle", "device", "backend", "threads", "max_batch", "trace"])
def test_odd_arguments_of_open_are_one_error(bundle: Bundle, argument: str, tmp_path: Path) -> None:
    for value in (*ODD, "2", 0, 2**31):
        if argument == "trace" and isinstance(value, str | Path):
            continue
        try:
            opened = Pipeline.open(**{"bundle": bundle.folder, argument: value})
        except BitDanceError as error:
            assert len(str(error)) < 400 + len(str(bundle.folder))
        else:
            raise AssertionError(f"{argument}={value!r} opened {opened}")


def test_an_odd_path_of_a_bundle_is_one_error() -> None:
    class Unshown:
        def __repr__(self) -> str:
            raise ValueError

    for value in ODD:
        with pytest.raises(RequestError):
            Size.parse(value)
    calls = (Bundle.open, Pipeline.from_pretrained, lambda value: Pipeline.from_pretrained("a/b", revision=value))
    for call, value in itertools.product(calls, (*ODD, Unshown())):
        if value is not None and not (isinstance(value, str) and call not in calls[:2]):
            with pytest.raises(BitDanceError) as refused:
                call(value)
            assert len(str(refused.value)) < 400


def test_open_takes_numbers_of_numpy_and_any_path(bundle: Bundle, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(bundle.folder)
    for path in (link, str(link), f"{link}/"):
        with Pipeline.open(path, threads=np.int64(1), max_batch=np.int8(2)) as opened:  # pyright: ignore[reportArgumentType]
            assert opened.max_batch == 2
