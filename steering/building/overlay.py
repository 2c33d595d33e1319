"""An attribution drawn over its image: which pieces speak for the preferred answer, and which against."""

from collections.abc import Collection, Sequence
from io import BytesIO
from math import isqrt

from PIL import Image, ImageDraw, ImageFont

from steering.building.highlighting import AGAINST, TOWARDS

SIDE = 336
MOST_OPAQUE = 190
TAKEN = (20, 20, 20, 255)
LEGEND = (
    "blue: speaks for the preferred answer",
    "red: speaks against it",
    "black frame: taken out by a build",
)
LEGEND_LINE = 18


def grid(count: int, columns: int | None = None) -> tuple[int, int] | None:
    """Return columns and rows of so many pieces, None where they are no grid; columns: as for an overlay."""
    across = columns or isqrt(count)
    down = across if columns is None else count // across
    return (across, down) if count and across * down == count else None


def overlay(
    image: Image.Image, scores: Sequence[float], taken: Collection[int] = (), columns: int | None = None
) -> bytes | None:
    """Return a PNG of the image under its pieces' colours, or None where they are no grid.

    scores: of the pieces, in reading order; blue above zero, red below; taken: pieces with a frame;
    columns: of the grid, None where it can only be a square one.
    """
    found = grid(len(scores), columns)
    if found is None:
        return None
    across, down = found
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


def with_legend(drawn: bytes) -> bytes:
    """Return the PNG of an overlay above the lines that say what its colours mean."""
    with Image.open(BytesIO(drawn)) as above:
        wide, tall = above.size
        page = Image.new("RGB", (max(wide, SIDE), tall + LEGEND_LINE * len(LEGEND) + 8), "white")
        page.paste(above, (0, 0))
    brush, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for place, (text, shade) in enumerate(zip(LEGEND, (TOWARDS, AGAINST, TAKEN[:3]), strict=True)):
        top = tall + 6 + place * LEGEND_LINE
        fill = None if shade == TAKEN[:3] else shade
        brush.rectangle((6, top, 18, top + 12), fill=fill, outline=shade, width=3)
        brush.text((26, top - 1), text, fill=TAKEN[:3], font=font)
    file = BytesIO()
    page.save(file, "PNG")
    return file.getvalue()
