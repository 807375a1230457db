"""Draws the digits 0 to 9 in the fonts that come with matplotlib, as a folder of classes to fine-tune on.

python bench/studies/font_digits.py FOLDER
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 32
LARGE = 128  # drawn at this size, then made smaller
EACH = 80  # images of each digit
FONTS = ("DejaVuSerif", "DejaVuSans-Bold", "DejaVuSansMono", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic")


def draw(digit: int, font: Path, generator: np.random.Generator) -> Image.Image:
    """Draw one digit, white on black, rotated, scaled and shifted a little."""
    picture = Image.new("L", (LARGE, LARGE))
    size = generator.uniform(100, 120)
    center = LARGE / 2 + generator.uniform(-6, 6, 2)
    face = ImageFont.truetype(str(font), size)
    ImageDraw.Draw(picture).text(tuple(center), str(digit), fill=255, font=face, anchor="mm")
    turned = picture.rotate(generator.uniform(-8, 8), Image.Resampling.BICUBIC)
    return turned.resize((SIDE, SIDE), Image.Resampling.BOX).convert("RGB")


def main(folder: Path) -> None:
    generator = np.random.default_rng(0)
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
        for number in range(EACH):
            font = fonts / f"{FONTS[number % len(FONTS)]}.ttf"
            draw(digit, font, generator).save(folder / str(digit) / f"{number:03d}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
