"""One picture of many images: one row for each class or prompt, with its name on the left."""

from collections.abc import Sequence
from itertools import groupby
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bitdance_edge.runtime import GeneratedImage, RequestError
from bitdance_edge.runtime.bundle.specs import ImageSize

SHOWN_SIDE = 64  # smaller images are enlarged by a whole factor, without smoothing, to at least this many pixels
PADDING = 4
PROMPT_FONT = 13  # pixels
PROMPT_WRAP = 24  # characters a line
MOST_PIXELS = 2**30  # of a grid: 3 GB while it is drawn


def image_label(image: GeneratedImage, class_names: Sequence[str]) -> str:
    """Name what an image shows: its prompt, or the name or number of its class."""
    if image.class_id is None:
        return image.prompt or ""
    return class_names[image.class_id] if class_names else str(image.class_id)


def require_drawable(rows: int, columns: int, size: ImageSize) -> None:
    """Check that a grid of this many images is not too large to be drawn.

    Raises:
        RequestError: it has more than ``MOST_PIXELS`` pixels.
    """
    scale = _scale(size.width, size.height)
    width, height = columns * (size.width * scale + PADDING), rows * (size.height * scale + PADDING)
    if width * height > MOST_PIXELS:
        raise RequestError(
            f"a grid of {rows * columns} images would have {width}x{height} pixels; the limit is {MOST_PIXELS:,} in "
            "total: generate fewer images, or write each with --out"
        )


def labelled_grid(images: Sequence[GeneratedImage], class_names: Sequence[str]) -> Image.Image:
    """Draw all images; those with the same label in a row share it."""
    rows = [(label, list(group)) for label, group in groupby(images, key=lambda image: image_label(image, class_names))]
    first = images[0].to_pil()
    scale = _scale(*first.size)
    width, height = first.width * scale, first.height * scale
    font = ImageFont.load_default(size=max(12, height // 4) if images[0].class_id is not None else PROMPT_FONT)
    labels = ["\n".join(wrap(label, PROMPT_WRAP)) for label, _ in rows]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = int(max(measure.multiline_textbbox((0, 0), label, font=font)[2] for label in labels)) + 3 * PADDING
    columns = max(len(group) for _, group in rows)
    sheet = Image.new("RGB", (margin + columns * (width + PADDING), len(rows) * (height + PADDING) + PADDING), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, (_, group)) in enumerate(zip(labels, rows, strict=True)):
        top = PADDING + row * (height + PADDING)
        draw.text((margin // 2, top + height // 2), label, fill="black", font=font, anchor="mm", align="center")
        for column, image in enumerate(group):
            pixels = np.asarray(image.to_pil()).repeat(scale, axis=0).repeat(scale, axis=1)
            sheet.paste(Image.fromarray(pixels), (margin + column * (width + PADDING), top))
    return sheet


def _scale(width: int, height: int) -> int:
    """The whole factor that enlarges small images to ``SHOWN_SIDE``."""
    return max(1, -(-SHOWN_SIDE // min(width, height)))
