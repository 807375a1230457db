"""One picture of many images: a row a class, its name at the left."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bitdance_edge.runtime import GeneratedImage

SHOWN_SIDE = 64  # smaller images are enlarged by a whole factor, without smoothing, to at least this many pixels
PADDING = 4


def labelled_grid(images: Sequence[GeneratedImage], class_names: Sequence[str]) -> Image.Image:
    rows = [(label, list(group)) for label, group in groupby(images, key=lambda image: image.class_id)]
    first = images[0].to_pil()
    scale = max(1, -(-SHOWN_SIDE // min(first.size)))
    width, height = first.width * scale, first.height * scale
    font = ImageFont.load_default(size=max(12, height // 4))
    labels = [class_names[class_id] if class_names else str(class_id) for class_id, _ in rows]
    margin = int(max(font.getlength(label) for label in labels)) + 3 * PADDING
    columns = max(len(group) for _, group in rows)
    sheet = Image.new("RGB", (margin + columns * (width + PADDING), len(rows) * (height + PADDING) + PADDING), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, (_, group)) in enumerate(zip(labels, rows, strict=True)):
        top = PADDING + row * (height + PADDING)
        draw.text((margin // 2, top + height // 2), label, fill="black", font=font, anchor="mm")
        for column, image in enumerate(group):
            pixels = np.asarray(image.to_pil()).repeat(scale, axis=0).repeat(scale, axis=1)
            sheet.paste(Image.fromarray(pixels), (margin + column * (width + PADDING), top))
    return sheet
