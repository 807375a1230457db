"""Draws the digits 0 to 9 in the fonts that come with matplotlib, as a folder of classes to fine-tune on.

python bench/studies/font_digits.py FOLDER

They are as coarse as the handwriting of the shipped models, 8x8 pixels that are enlarged, which their tokenizer keeps.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 32
LARGE, COARSE = 128, 8  # drawn at the first size, then made smaller
EACH = 80  # images of each digit
FONTS = ("DejaVuSerif", "DejaVuSans-Bold", "DejaVuSansMono", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic")


def draw(digit: int, font: Path, generator: np.random.Generator) -> Image.Image:
    """Draw one digit, white on black, rotated, scaled and shifted a little."""
    picture = Image.new("L", (LARGE, LARGE))
    size = generator.uniform(140, 165)
    center = LARGE / 2 + generator.uniform(-5, 5, 2)
    face = ImageFont.truetype(str(font), size)
    ImageDraw.Draw(picture).text(tuple(center), str(digit), fill=255, font=face, anchor="mm")
    turned = picture.rotate(generator.uniform(-8, 8), Image.Resampling.BICUBIC)
    coarse = turned.resize((COARSE, COARSE), Image.Resampling.BOX)
    return coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")


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
