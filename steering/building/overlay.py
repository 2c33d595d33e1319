"""An attribution drawn over its image: which pieces speak for the preferred answer, and which against."""

from collections.abc import Collection, Sequence
from io import BytesIO
from math import isqrt

from PIL import Image, ImageDraw

from steering.building.highlighting import AGAINST, TOWARDS

SIDE = 336
MOST_OPAQUE = 190
TAKEN = (20, 20, 20, 255)


def overlay(
    image: Image.Image, scores: Sequence[float], taken: Collection[int] = (), columns: int | None = None
) -> bytes | None:
    """Return a PNG of the image under its pieces' colours, or None where they are no grid.

    scores: of the pieces, in reading order; blue above zero, red below; taken: pieces with a frame;
    columns: of the grid, None where it can only be a square one.
    """
    across = columns or isqrt(len(scores))
    down = across if columns is None else len(scores) // across
    if not scores or across * down != len(scores):
        return None
    cell = SIDE // max(across, down)
    size = cell * across, cell * down
    drawn = image.convert("RGB").resize(size, Image.Resampling.NEAREST).convert("RGBA")
    colours = Image.new("RGBA", drawn.size)
    brush = ImageDraw.Draw(colours)
    largest = max(map(abs, scores)) or 1.0
    for place, score in enumerate(scores):
        below, right = divmod(place, across)
        box = (right * cell, below * cell, (right + 1) * cell - 1, (below + 1) * cell - 1)
        share = abs(score) / largest
        fill = (*(TOWARDS if score > 0 else AGAINST), round(MOST_OPAQUE * share))
        brush.rectangle(box, fill=fill, outline=TAKEN if place in taken else None, width=3)
    file = BytesIO()
    Image.alpha_composite(drawn, colours).convert("RGB").save(file, "PNG")
    return file.getvalue()
