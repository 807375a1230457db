"""A bar chart as a picture."""

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

ROW, GAP, BARS, FONT_SIZE = 22, 12, 480, 13  # pixels
MOST_ROWS = 40
INK, BAR = "black", "#4c78a8"


def bar_chart(title: str, values: Mapping[str, float], unit: str) -> Image.Image:
    """Horizontal bars in the order given, each with its name and value; what exceeds ``MOST_ROWS`` is one last bar."""
    rows = list(values.items())
    if len(rows) > MOST_ROWS:
        rest = rows[MOST_ROWS - 1 :]
        rows = [*rows[: MOST_ROWS - 1], (f"{len(rest)} others", sum(value for _, value in rest))]
    font = ImageFont.load_default(size=FONT_SIZE)
    margin = int(max((font.getlength(name) for name, _ in rows), default=0)) + 2 * GAP
    label_width = int(font.getlength(f"0000.0000 {unit}")) + 2 * GAP
    picture = Image.new("RGB", (margin + BARS + label_width, (len(rows) + 1) * ROW + 2 * GAP), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP), title, fill=INK, font=font)
    largest = max((value for _, value in rows), default=0) or 1.0
    for row, (name, value) in enumerate(rows, 1):
        top = GAP + row * ROW
        middle = top + ROW // 2
        length = round(BARS * value / largest)
        draw.text((margin - GAP, middle), name, fill=INK, font=font, anchor="rm")
        draw.rectangle((margin, top + 3, margin + length, top + ROW - 4), fill=BAR)
        draw.text((margin + length + GAP // 2, middle), f"{value:.4f} {unit}", fill=INK, font=font, anchor="lm")
    return picture
