"""Pictures as people have them become the right pixels, everywhere the same, or are refused in one message."""

import asyncio
import base64
import contextlib
import io
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from picturing import encoded, gray_tiff, png, png_chunk
from PIL import Image

from bitdance_edge.runtime import RequestError, Size, load_pixels
from bitdance_edge.runtime.fit import fit_pixels
from bitdance_edge.runtime.picture import MOST_PIXELS, read_picture
from bitdance_edge.serve import pictures
from bitdance_edge.serve.errors import ApiError

COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [0, 0, 0], [128, 128, 128]]], np.uint8)
GRAYS = np.array([[0, 64, 128], [255, 192, 32]], np.uint8)
BLOCK = 16  # pixels a colour: enough for formats that lose some
LOSSY = 24  # levels
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # what turns an upright picture to how it is stored under this tag


def blocks(values: np.ndarray) -> np.ndarray:
    return values.repeat(BLOCK, 0).repeat(BLOCK, 1)


RGB = Image.fromarray(blocks(COLOURS))
GRAY = Image.fromarray(blocks(GRAYS))
GRAYS_IN_RGB = GRAYS[..., None].repeat(3, 2)
LEFT_CLEAR = np.full((2, 3), 255, np.uint8)
LEFT_CLEAR[:, 0] = 0
OVER_WHITE = np.where(LEFT_CLEAR[..., None] == 0, np.uint8(255), COLOURS)
GRAYS_OVER_WHITE = np.where(LEFT_CLEAR[..., None] == 0, np.uint8(255), GRAYS_IN_RGB)


def served(content: bytes, size: Size) -> np.ndarray:
    """The pixels that the server makes of a file."""
    return asyncio.run(pictures.decoded(base64.b64encode(content).decode(), size))


def turned(tag: int, format: str, image: Image.Image = RGB) -> bytes:
    exif, turn = Image.Exif(), TURNS[tag]
    exif[274] = tag
    return encoded(image if turn is None else image.transpose(turn), format, exif=exif)


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.fromarray(blocks(LEFT_CLEAR)))
    return image


def palette(**options: object) -> bytes:
    image = Image.fromarray(blocks(np.arange(6, dtype=np.uint8).reshape(2, 3)), mode="P")
    image.putpalette(COLOURS.tobytes())
    return encoded(image, "PNG", **options)


def sixteen(values: np.ndarray = GRAYS) -> np.ndarray:
    return blocks(values).astype(np.uint16) * 257


GRAY_16 = Image.fromarray(sixteen())
RIGHT: dict[str, tuple[bytes, np.ndarray, int]] = {
    **{f"PNG, orientation {tag}": (turned(tag, "PNG"), COLOURS, 0) for tag in TURNS},
    **{f"{kind}, turned": (turned(6, kind), COLOURS, LOSSY) for kind in ("JPEG", "WebP")},
    "TIFF, turned": (turned(6, "TIFF"), COLOURS, 0),
    "16-bit gray PNG, turned": (turned(8, "PNG", GRAY_16), GRAYS_IN_RGB, 0),
    "orientation that does not exist": (encoded(RGB, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0"), COLOURS, 0),
    "damaged Exif, PNG": (encoded(RGB, "PNG", exif=b"Exif\0\0nonsense"), COLOURS, 0),
    "damaged Exif, JPEG": (encoded(RGB, "JPEG", exif=b"Exif\0\0nonsense"), COLOURS, LOSSY),
    "BMP": (encoded(RGB, "BMP"), COLOURS, 0),
    "GIF": (encoded(RGB, "GIF"), COLOURS, 0),
    "PPM": (encoded(RGB, "PPM"), COLOURS, 0),
    "first of an animated GIF": (
        encoded(RGB, "GIF", save_all=True, append_images=[Image.new("RGB", RGB.size)]),
        COLOURS,
        0,
    ),
    "first of an animated PNG": (
        encoded(RGB, "PNG", save_all=True, append_images=[Image.new("RGB", RGB.size)]),
        COLOURS,
        0,
    ),
    "first page of a TIFF": (
        encoded(RGB, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
        COLOURS,
        0,
    ),
    "a phone's JPEG of two pictures": (
        encoded(RGB, "MPO", save_all=True, append_images=[Image.new("RGB", RGB.size)]),
        COLOURS,
        LOSSY,
    ),
    "RGBA": (encoded(with_alpha(RGB), "PNG"), OVER_WHITE, 0),
    "RGBA, opaque": (encoded(RGB.convert("RGBA"), "PNG"), COLOURS, 0),
    "RGBA, WebP": (encoded(with_alpha(RGB), "WebP", lossless=True), OVER_WHITE, 0),
    "LA": (encoded(with_alpha(GRAY), "PNG"), GRAYS_OVER_WHITE, 0),
    "palette": (palette(), COLOURS, 0),
    "palette, one colour clear": (palette(transparency=0), np.vstack([OVER_WHITE[:1], COLOURS[1:]]), 0),
    "palette, alpha of each colour": (palette(transparency=bytes([0, 255, 255, 0, 255, 255])), OVER_WHITE, 0),
    "gray, one level clear": (
        encoded(GRAY, "PNG", transparency=64),
        np.where(GRAYS_IN_RGB == 64, 255, GRAYS_IN_RGB),
        0,
    ),
    "RGB, one colour clear": (
        encoded(RGB, "PNG", transparency=(255, 0, 0)),
        np.vstack([OVER_WHITE[:1], COLOURS[1:]]),
        0,
    ),
    "bilevel": (
        encoded(Image.fromarray(blocks(GRAYS)).convert("1", dither=Image.Dither.NONE), "PNG"),
        np.where(GRAYS_IN_RGB >= 128, 255, 0),
        0,
    ),
    "CMYK JPEG": (encoded(RGB.convert("CMYK"), "JPEG"), COLOURS, LOSSY),
    "CMYK TIFF": (encoded(RGB.convert("CMYK"), "TIFF"), COLOURS, 0),
    "16-bit gray PNG": (encoded(GRAY_16, "PNG"), GRAYS_IN_RGB, 0),
    "16-bit gray PNG, one level clear": (
        encoded(GRAY_16, "PNG", transparency=64 * 257),
        np.where(GRAYS_IN_RGB == 64, 255, GRAYS_IN_RGB),
        0,
    ),
    "16-bit gray TIFF": (gray_tiff(sixteen(), 16), GRAYS_IN_RGB, 0),
    "16-bit gray TIFF, white is zero": (gray_tiff(65535 - sixteen(), 16, white_is_zero=True), GRAYS_IN_RGB, 0),
    "12-bit gray TIFF": (gray_tiff(sixteen() >> 4, 12), GRAYS_IN_RGB, 0),
    "16-bit PGM": (b"P5 48 32 65535\n" + sixteen().astype(">u2").tobytes(), GRAYS_IN_RGB, 0),
    "16-bit PPM": (
        b"P6 48 32 65535\n" + (blocks(COLOURS).astype(">u2") * 257).tobytes(),
        COLOURS,
        0,
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_picture_becomes_the_right_pixels(name: str, tmp_path: Path) -> None:
    content, want, tolerance = RIGHT[name]
    (tmp_path / "picture.bin").write_bytes(content)
    pixels = load_pixels(tmp_path / "picture.bin", 2 * BLOCK, 3 * BLOCK)
    middles = pixels[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK].astype(int)
    assert np.abs(middles - want).max() <= tolerance
    if content.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF")):
        assert np.array_equal(served(content, Size(width=48, height=32)), pixels)


def clear() -> bytes:
    image = RGB.copy()
    image.putalpha(0)
    return encoded(image, "PNG")


def text_bomb(kind: bytes) -> bytes:
    return png_chunk(kind, b"x\0\0" + zlib.compress(bytes(50_000_000)))


@cache
def large_and_truncated() -> bytes:
    whole = png(4096, MOST_PIXELS // 4096, rows=4096)
    return whole[: len(whole) * 9 // 10]


FLOATS = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is not a readable PNG, JPEG, WebP, TIFF, BMP, GIF, PPM or AVIF file"),
    "text": (lambda: b"not an image at all", "is not a readable PNG"),
    "EPS": (lambda: encoded(RGB, "EPS"), "is not a readable PNG"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a readable PNG"),
    "PDF": (lambda: encoded(RGB, "PDF"), "is not a readable PNG"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a readable PNG"),
    "float TIFF": (lambda: encoded(FLOATS, "TIFF"), "convert it to 8 or 16 bits a channel"),
    "float PFM": (lambda: b"Pf\n8 8\n-1.0\n" + np.asarray(FLOATS).tobytes(), "8 or 16 bits a channel"),
    "32-bit TIFF": (lambda: encoded(Image.new("I", (8, 8), 9), "TIFF"), "8 or 16 bits a channel"),
    "CIELAB": (lambda: encoded(Image.new("LAB", (8, 8)), "TIFF"), "8 or 16 bits a channel"),
    "nothing to see": (clear, "is transparent everywhere"),
    "30000x30000": (lambda: png(30000, 30000), f"the limit is {MOST_PIXELS:,}"),
    "just too large": (
        lambda: png(4097, 4096),
        "4097x4096 pixels; the limit is 16,777,216 in total",
    ),
    "2^31 wide": (lambda: png(2**31 - 1, 1), f"the limit is {MOST_PIXELS:,}"),
    "no pixels": (lambda: png(0, 7), "is not a readable PNG"),
    "large and truncated": (large_and_truncated, "it may be truncated or damaged"),
    "text bomb": (lambda: png(1, 1, text_bomb(b"zTXt")), "cannot be read as an image (Decompressed data too large"),
    "profile bomb": (lambda: png(1, 1, text_bomb(b"iCCP")), "cannot be read as an image (Decompressed data too large"),
    "late text bomb": (lambda: png(1, 1)[:-12] + text_bomb(b"zTXt") + png(1, 1)[-12:], "Decompressed data too large"),
    "huge text": (
        lambda: png(1, 1, png_chunk(b"tEXt", b"x\0" + bytes(2**24))),
        "has a chunk b'tEXt' of 16,777,218 bytes",
    ),
    "many chunks": (lambda: png(1, 1, png_chunk(b"tEXt", b"x\0") * 100_000), "has more than 100,000 chunks"),
    "text of a large PPM": (lambda: b"P3 1024 1024 255\n" + b"1 " * 3 * 2**20, "has its pixels as text"),
    "half a JPEG": (lambda: encoded(RGB, "JPEG")[:-200], "it may be"),
    "half a GIF": (lambda: encoded(RGB, "GIF")[:-60], "it may be"),
    "half a WebP": (lambda: encoded(RGB, "WebP")[:-60], "it may be"),
    "half a TIFF": (lambda: encoded(RGB, "TIFF")[:-500], "it may be"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_that_cannot_be_right_is_refused(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    path = tmp_path / "picture.png"
    path.write_bytes(make())
    with pytest.raises(RequestError) as refused:
        load_pixels(path, 32, 32)
    assert message in str(refused.value) and str(path) in str(refused.value)
    with pytest.raises(ApiError) as answered:
        served(path.read_bytes(), Size(width=32, height=32))
    assert answered.value.status == 400


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, message in (
        (tmp_path / "none.png", "no image at"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe.png", "is a pipe, device or socket"),
        ("/dev/zero", "is a pipe, device or socket"),
        ("a\0b", "cannot be opened: embedded null byte"),
        ("x" * 5000, "cannot be opened: File name too long"),
        (None, "cannot be opened"),
    ):
        with pytest.raises(RequestError, match=message):
            load_pixels(path, 32, 32)  # pyright: ignore[reportArgumentType]
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(RequestError, match="the limit is 200,000,000"):
        load_pixels(tmp_path / "huge.png", 32, 32)


def test_odd_arguments_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    RGB.save(path)
    assert load_pixels(path, np.int64(32), 48).shape == (32, 48, 3)  # pyright: ignore[reportArgumentType]
    for odd in (0, -1, 2**31, 1.5, "32", None, np.ones(2), 10**5000):
        for arguments in ((path, odd, 32), (path, 32, odd), (path, 32, 32, odd), (odd, 32, 32)):
            with pytest.raises(RequestError) as refused:
                load_pixels(*arguments)  # pyright: ignore[reportArgumentType]
            assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_refusals_take_little_memory_and_time(tmp_path: Path) -> None:
    for i, (make, _) in enumerate(REFUSED.values()):
        (tmp_path / f"{i}.png").write_bytes(make())
    program = (
        "import re, sys, time\n"
        "from pathlib import Path\n"
        "from bitdance_edge.runtime import RequestError, load_pixels\n"
        "for path in Path(sys.argv[1]).iterdir():\n"
        "    started = time.process_time()\n"
        "    try:\n"
        "        load_pixels(path, 32, 32)\n"
        "    except RequestError:\n"
        "        assert time.process_time() - started < 5, path\n"
        "    else:\n"
        "        raise AssertionError(path)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])\n"
    )
    result = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert not result.stderr
    assert int(result.stdout) < 300_000  # kB


def test_damaged_files_are_read_or_refused_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    drawn = np.random.default_rng(0)
    for content, _, _ in RIGHT.values():
        damaged = np.frombuffer(content, np.uint8).copy()
        for _ in range(5):
            damaged[drawn.integers(len(damaged), size=3)] = drawn.integers(256, size=3)
            with contextlib.suppress(RequestError):
                assert read_picture(io.BytesIO(damaged.tobytes()), "damaged").mode == "RGB"
    assert not caplog.records


@pytest.mark.parametrize("size", [(49, 96), (1, 7), (7, 1), (1000, 3), (333, 333)])
def test_the_largest_centred_crop_is_within_the_picture(size: tuple[int, int]) -> None:
    for width, height in ((96, 49), (3, 1000), (31, 37), (1, 1)):
        assert fit_pixels(Image.new("RGB", size), Size(width=width, height=height)).shape == (height, width, 3)
