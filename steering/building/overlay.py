"""An attribution drawn over its image: which pieces speak for the preferred answer, and which against."""

from collections.abc import Collection, Sequence
from io import BytesIO
from math import isqrt

from PIL import Image, ImageDraw

from steering.building.highlighting import AGAINST, TOWARDS

SIDE = 336
MOST_OPAQUE = 190
TAKEN = (20, 20, 20, 255)


def overlay(image: Image.Image, scores: Sequence[float], taken: Collection[int] = ()) -> bytes | None:
    """Return a PNG of the image under its pieces' colours, or None where they are no square grid.

    scores: of the pieces, in reading order; blue above zero, red below; taken: pieces with a frame.
    """
    side = isqrt(len(scores))
    if not scores or side * side != len(scores):
        return None
    cell = SIDE // side
    drawn = image.convert("RGB").resize((cell * side, cell * side), Image.Resampling.NEAREST).convert("RGBA")
    colours = Image.new("RGBA", drawn.size)
    brush = ImageDraw.Draw(colours)
    largest = max(map(abs, scores)) or 1.0
    for place, score in enumerate(scores):
        down, right = divmod(place, side)
        box = (right * cell, down * cell, (right + 1) * cell - 1, (down + 1) * cell - 1)
        share = abs(score) / largest
        fill = (*(TOWARDS if score > 0 else AGAINST), round(MOST_OPAQUE * share))
        brush.rectangle(box, fill=fill, outline=TAKEN if place in taken else None, width=3)
    file = BytesIO()
    Image.alpha_composite(drawn, colours).convert("RGB").save(file, "PNG")
    return file.getvalue()
