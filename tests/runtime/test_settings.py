"""Settings in PNGs are what generate writes, or one error says that the file was edited."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from picturing import png, png_chunk

from bitdance_edge.runtime import Bundle, Request, RequestError, read_settings, request_from_settings

WRITTEN = {
    "bundle": "digits",
    "bundle_sha256": "0" * 64,
    "class": 3,
    "size": "32x32",
    "seed": 1,
    "steps": 2,
    "guidance": 4.0,
    "guidance_schedule": "linear",
    "sampler": "sde",
    "prefix": "////////",
    "prefix_shape": [4, 12],
}
ABSENT = object()
WRONG = (
    *(ABSENT, None, True, -1, 0, 2**62, 10**40, 0.5, 1e300, float("nan"), float("inf"), "", "x", "9" * 5000, "\ud800"),
    *([], [2**62, 2**62], [[0], 2**40], [4, 12, 1], [-4, -12], [0, 0], ["4", "12"], {}, {"a": []}, [[[[[]]]]]),
)


def png_of(folder: Path, settings: str) -> Path:
    path = folder / "image.png"
    path.write_bytes(png(1, 1, png_chunk(b"tEXt", b"bitdance\0" + settings.encode("latin-1"))))
    return path


def test_settings_come_back(bundle: Bundle, tmp_path: Path) -> None:
    settings = {**WRITTEN, "prefix": "/" * 86 + "==", "prefix_shape": [32, 16]}
    assert read_settings(png_of(tmp_path, json.dumps(settings))) == settings
    resolved = request_from_settings(settings).resolve(bundle)
    assert (resolved.images[0].class_id, resolved.steps, resolved.given.first_sampled) == (3, 2, 8)


def test_every_field_changed_in_every_way_is_a_request_or_one_error(bundle: Bundle) -> None:
    outcomes = dict.fromkeys((Request, RequestError), 0)
    for name, value in itertools.product(WRITTEN, WRONG):
        changed: dict[str, Any] = {key: kept for key, kept in WRITTEN.items() if key != name}
        if value is not ABSENT:
            changed[name] = value
        try:
            request = request_from_settings(changed)
            request.resolve(bundle)
        except RequestError as error:
            assert len(str(error)) < 300
            outcomes[RequestError] += 1
        else:
            outcomes[Request] += 1
    assert outcomes[RequestError] > 180


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"text"',
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
        json.dumps({**WRITTEN, "prompt": "x" * 2_000_000}),
    ],
)
def test_text_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RequestError, match=r"settings in .* the file was edited"):
        read_settings(png_of(tmp_path, text))


def test_a_png_without_settings_says_so(tmp_path: Path) -> None:
    (tmp_path / "plain.png").write_bytes(png(1, 1))
    with pytest.raises(RequestError, match="carries no bitdance settings"):
        read_settings(tmp_path / "plain.png")
    with pytest.raises(RequestError, match="give what read_settings returns"):
        request_from_settings([1])  # pyright: ignore[reportArgumentType]
    with pytest.raises(RequestError, match="lack size, seed, steps, guidance"):
        request_from_settings({})
