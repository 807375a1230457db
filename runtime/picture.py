"""Reads pictures as people have them: the one way from an image file to RGB pixels, for command line, API and server.

- The content says what a file is, not its name: one of ``FORMATS``, of at most ``MOST_PIXELS`` pixels and
  ``MOST_BYTES`` bytes. The size is checked before a pixel is decoded.
- Orientation tags are applied, where they can be read. Of an animation or a file of several pages the first picture
  counts.
- What is transparent is laid over ``BACKGROUND``; a picture of which nothing can be seen is refused.
- Of 16 bits a channel the upper 8 count. Pixels whose range the file does not say (floating point, 32-bit integers) are
  refused, and so is CIELAB.
- CMYK is converted without inks' colours, and colour profiles are not applied.
"""

import io
import logging
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bitdance_edge.runtime.bundle.size import MOST, Size
from bitdance_edge.runtime.errors import RequestError
from bitdance_edge.runtime.fit import fit_pixels
from bitdance_edge.runtime.reading import open_regular
from bitdance_edge.runtime.values import whole

FORMATS = ("PNG", "JPEG", "WebP", "TIFF", "BMP", "GIF", "PPM", "AVIF")  # none that runs another program
MOST_PIXELS = 2**24  # 4096x4096: 64 MiB where they are decoded, and once more while they are made opaque
MOST_PLAIN = 2**19  # pixels of a PPM file that are written as text: Pillow reads some 500,000 numbers a second
MOST_BYTES = 200_000_000
BACKGROUND = (255, 255, 255)
STRIP = 2**20  # pixels that are converted at once
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
DIRECT = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
WITH_ALPHA = ("LA", "PA", "RGBA", "RGBa")
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF 6.0, section 8
PNG_SIGNATURE, PIXEL_CHUNKS = b"\x89PNG\r\n\x1a\n", (b"IDAT", b"fdAT")
MOST_CHUNKS, MOST_CHUNK = 100_000, 2**24  # of a PNG; bytes of one that is not of pixels
_one_at_a_time = threading.RLock()  # bounds the memory, and filters of warnings are of the whole process


def load_pixels(path: str | Path, height: int, width: int, fit: str = "cover") -> np.ndarray:
    """Read an image file as uint8 ``[height, width, 3]``, brought to that size as ``fit_pixels`` does.

    Raises:
        RequestError: it cannot be read, or a value is not allowed; says why and what is.
    """
    size = Size(width=whole("width", width, 1, MOST), height=whole("height", height, 1, MOST))
    with open_regular(path, "image", MOST_BYTES) as file:
        return fit_pixels(read_picture(file, str(path)), size, fit)


def read_picture(file: BinaryIO, name: str, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Decode an image file to an upright, opaque picture of mode RGB.

    Args:
        name: of the file, for messages.
        formats: that are allowed, some of ``FORMATS``.

    Raises:
        RequestError: it is no such picture, is too large, damaged, invisible, or of pixels that have no fixed range.
    """
    with decoded_picture(file, name, formats) as image:
        return _opaque(image, name)


@contextmanager
def decoded_picture(file: BinaryIO, name: str, formats: Sequence[str] = FORMATS) -> Iterator[Image.Image]:
    """Decode an image file to an upright picture in 8 bits a channel, with the transparency that it has.

    What Pillow raises within the context is reported as a fault of the file too.

    Raises:
        RequestError: as ``read_picture``, but for pictures that are invisible.
    """
    try:
        with without_warnings(), open_picture(file, name, formats) as image:
            image.load()
            yield upright(_eight_bits(image, name))
    except RequestError:
        raise
    except Exception as error:  # what Pillow raises for damaged files shares no base class
        raise RequestError(f"{name} cannot be decoded ({_said(error)}); it may be truncated or damaged") from None


def open_picture(file: BinaryIO, name: str, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Open an image file without decoding its pixels.

    Raises:
        RequestError: it is none of these formats, has too many pixels, or its header or text is damaged or too long.
    """
    Image.init()  # AVIF came with Pillow 11.3
    _require_plain_chunks(file, name)
    try:
        with without_warnings():
            image = Image.open(file, formats=[known for known in map(str.upper, formats) if known in Image.OPEN])
    except UnidentifiedImageError:
        raise RequestError(f"{name} is not a readable {_either(formats)} file; convert it to one of these") from None
    except Image.DecompressionBombError:
        raise RequestError(f"{name} has too many pixels; the limit is {MOST_PIXELS:,}: make it smaller") from None
    except Exception as error:
        raise RequestError(f"{name} cannot be read as an image ({_said(error)}); it may be damaged") from None
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise RequestError(
            f"{name} has {image.width}x{image.height} pixels; the limit is {MOST_PIXELS:,} in total: make it smaller"
        )
    if image.width * image.height > MOST_PLAIN and any(tile[0] == "ppm_plain" for tile in getattr(image, "tile", ())):
        image.close()
        raise RequestError(f"{name} has its pixels as text, which takes long to read; convert it to PNG")
    return image


def _require_plain_chunks(file: BinaryIO, name: str) -> None:
    """Refuse a PNG with chunks that Pillow would copy several times in memory, or take long to go through."""
    start = file.tell()
    if file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE:
        for _ in range(MOST_CHUNKS):
            header = file.read(8)
            length, kind = int.from_bytes(header[:4], "big"), header[4:]
            if length > MOST_CHUNK and kind not in PIXEL_CHUNKS:
                raise RequestError(f"{name} has a chunk {kind!r} of {length:,} bytes; the limit is {MOST_CHUNK:,}")
            if len(header) < 8 or kind == b"IEND":
                break
            file.seek(length + 4, io.SEEK_CUR)
        else:
            raise RequestError(f"{name} has more than {MOST_CHUNKS:,} chunks; save it again")
    file.seek(start)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Read one picture at a time, without warnings: what is wrong with it is an error, or of no consequence."""
    log = logging.getLogger("PIL")
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Cut a picture into strips of some rows, each after its first row: converting all at once takes much memory.

    It would also hold up other threads.
    """
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """The picture in 8 bits a channel; grays of more bits keep the upper 8, as Pillow does for colours."""
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        tags: Any = getattr(image, "tag_v2", {})
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        values = np.asarray(image)
        gray = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts grays of 8 bits only
            gray = 255 - gray
        made = Image.fromarray(gray)
        if (clear := image.info.get("transparency")) is not None:
            made.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        made.info.update({key: value for key, value in image.info.items() if key != "transparency"})
        return made
    if image.mode not in (*DIRECT, *WITH_ALPHA):
        raise RequestError(
            f"{name} has pixels of kind {image.mode} (floating point, 32-bit integers or CIELAB), which do not say "
            "what is black and white; convert it to 8 or 16 bits a channel"
        )
    return image


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its orientation tag says; one whose tags cannot be read stays as it is stored."""
    with suppress(SyntaxError, struct.error):  # Pillow's for Exif that is no TIFF structure
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _opaque(image: Image.Image, name: str) -> Image.Image:
    """The picture over ``BACKGROUND``, as RGB."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    made, seen = Image.new("RGB", image.size), False
    for top, strip in strips(image):
        layer = strip.convert("RGBA")
        seen = seen or layer.getchannel("A").getbbox() is not None
        whole = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
        whole.alpha_composite(layer)
        made.paste(whole.convert("RGB"), (0, top))
    if not seen:
        raise RequestError(f"{name} is transparent everywhere; give a picture that can be seen")
    return made


def _either(formats: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(formats[:-1]), formats[-1])))


def _said(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
