"""Scenes become pictures here, at any size; the model looks at 48 by 48 pixels."""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from shapes_vlm.scenes import CELLS_A_SIDE, Placed, Scene

SIDE = 48
PAPER = (248, 244, 236)
PAINTS = {
    "red": (226, 66, 62),
    "yellow": (247, 190, 48),
    "green": (62, 164, 92),
    "blue": (58, 124, 226),
    "purple": (150, 86, 190),
    "black": (56, 60, 70),
}
NOISE = 5.0
# Drawn this much larger and averaged down, so that edges are smooth.
OVERSIZE = 4
Point = tuple[float, float]


def draw(scene: Scene, side: int = SIDE) -> Image.Image:
    """Return the scene as an RGB picture of side by side pixels, with a little noise."""
    canvas = Image.new("RGB", (side * OVERSIZE, side * OVERSIZE), PAPER)
    brush = ImageDraw.Draw(canvas)
    for placed in scene.objects:
        paint(brush, placed, side * OVERSIZE / CELLS_A_SIDE)
    return grainy(canvas.reduce(OVERSIZE), scene.grain)


def paint(brush: ImageDraw.ImageDraw, placed: Placed, cell: float) -> None:
    """Add one object to the picture; cell: the side of a cell in pixels."""
    row, column = divmod(placed.cell, CELLS_A_SIDE)
    middle = ((column + 0.5 + placed.right) * cell, (row + 0.5 + placed.down) * cell)
    red, green, blue = (min(255, round(level * placed.light)) for level in PAINTS[placed.kind.colour])
    brush.polygon(OUTLINES[placed.kind.shape](middle, placed.radius * cell), fill=(red, green, blue))


def grainy(picture: Image.Image, seed: int) -> Image.Image:
    """Return the picture with the same noise for the same seed."""
    pixels = np.asarray(picture, dtype=np.float32)
    noise = np.random.default_rng(seed).standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels + NOISE * noise, 0, 255).round().astype(np.uint8))


def ring(middle: Point, radii: list[float], turn: float) -> list[Point]:
    """Return one point for each radius, evenly round the middle; turn: where the first lies, in radians."""
    angles = [turn + 2 * pi * step / len(radii) for step in range(len(radii))]
    return [
        (middle[0] + radius * cos(angle), middle[1] + radius * sin(angle))
        for radius, angle in zip(radii, angles, strict=True)
    ]


def circle(middle: Point, radius: float) -> list[Point]:
    return ring(middle, [radius * 0.98] * 48, 0.0)


def square(middle: Point, radius: float) -> list[Point]:
    return ring(middle, [radius * 1.22] * 4, pi / 4)


def triangle(middle: Point, radius: float) -> list[Point]:
    # A triangle's middle is low in its box: lifted, it looks centred.
    return ring((middle[0], middle[1] + radius * 0.22), [radius * 1.2] * 3, -pi / 2)


def star(middle: Point, radius: float) -> list[Point]:
    return ring((middle[0], middle[1] + radius * 0.08), [radius * 1.2, radius * 0.52] * 5, -pi / 2)


OUTLINES: dict[str, Callable[[Point, float], list[Point]]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
}
