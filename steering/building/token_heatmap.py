"""Tokens as wrapped text on colours: blue for their answer, red against it, underlined where taken out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from steering.building.drawing import INK, as_png
from steering.building.highlighting import (
    HighlightedToken,
    ScoredTokens,
    colour,
    gathered,
    highlighted,
    scored_answers,
    visible,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In points. DejaVu Sans Mono, which comes with matplotlib, advances 0.602 of its size.
WIDTH, MARGIN, FONT, LINE = 576.0, 16.0, 9.0, 17.0
ADVANCE = 0.602 * FONT
COLUMNS = int((WIDTH - 2 * MARGIN) / ADVANCE)
TITLE_COLUMNS = 100
MOST_PAIRS = 6
SHARES = (-1.0, -0.5, 0.0, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class HeatmapPair:
    """What belongs together: its sides share one scale."""

    title: str
    sides: tuple[ScoredTokens, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """A token's place in wrapped text, in lines and characters."""

    row: int
    column: int
    text: str
    token: HighlightedToken


def told_gap(attribution: Mapping[str, Any]) -> str:
    gap = attribution.get("gap")
    return "" if gap is None else f", completeness gap {gap:.1%}"


def token_heatmap(report: Mapping[str, Any]) -> bytes:
    """Return the PNG of the first pairs of a report's `attributions`."""
    told = report["attributions"]
    pairs = [
        HeatmapPair(f"line {each['line']}{told_gap(each)}: {each['prompt']}", scored_answers(each))
        for each in told[:MOST_PAIRS]
    ]
    count = f"{len(pairs)} of {len(told)} pairs" if len(told) > len(pairs) else f"{len(pairs)} pairs"
    return draw_pairs(pairs, f"Which tokens speak for their answer ({count})")


def draw_pairs(pairs: Sequence[HeatmapPair], title: str) -> bytes:
    """Return the PNG of the pairs below each other, as high as their wrapped text needs."""
    from matplotlib.figure import Figure

    laid_out = [
        (pair, [wrapped(side) for side in highlighted([gathered(side) for side in pair.sides])])
        for pair in pairs
    ]
    lines = sum(1.7 + sum(0.9 + height(side) for side in sides) for _, sides in laid_out)
    tall = (3.4 + lines) * LINE + MARGIN
    figure = Figure(figsize=(WIDTH / 72, tall / 72))
    page = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, WIDTH), ylim=(tall, 0))
    page.set_axis_off()
    draw_legend(page, title)
    top = 3.4 * LINE
    for pair, sides in laid_out:
        top = draw_pair(page, pair, sides, top)
    return as_png(figure)


def wrapped(tokens: Sequence[HighlightedToken], columns: int = COLUMNS) -> list[Placed]:
    """Return the tokens placed in lines of at most `columns` characters; a line break ends its line."""
    placed, row, column = [], 0, 0
    for token in tokens:
        text = visible(token.text)[:columns]
        if column + len(text) > columns:
            row, column = row + 1, 0
        placed.append(Placed(row, column, text, token))
        column += len(text)
        if token.text.endswith("\n"):
            row, column = row + 1, 0
    return placed


def height(placed: Sequence[Placed]) -> int:
    return placed[-1].row + 1 if placed else 1


def draw_legend(page: "Axes", title: str) -> None:
    write(page, MARGIN, 1.2 * LINE, title, size=11)
    for text, place in legend_places():
        if isinstance(text, float):
            draw_box(page, place, 2.3 * LINE, 1.6 * LINE, colour(text))
        else:
            write(page, place, 2.3 * LINE, text, size=8)
    underline(page, MARGIN + 444, 2.3 * LINE, 92)


def legend_places() -> Iterator[tuple[str | float, float]]:
    """Yield the legend's words and shares of colour with where they begin, in points."""
    yield "against its answer", MARGIN
    for place, share in enumerate(SHARES):
        yield share, MARGIN + 84 + 1.6 * LINE * place
    yield "for its answer; each pair has its own scale", MARGIN + 228
    yield "underlined: taken out", MARGIN + 444


def draw_pair(page: "Axes", pair: HeatmapPair, sides: Sequence[Sequence[Placed]], top: float) -> float:
    """Draw the pair from `top` down and return where it ends."""
    write(page, MARGIN, top + 0.6 * LINE, shorten(pair.title, TITLE_COLUMNS, placeholder=" …"), size=9)
    top += 1.1 * LINE
    for side, placed in zip(pair.sides, sides, strict=True):
        write(page, MARGIN, top + 0.45 * LINE, side.title, size=7.5, alpha=0.7)
        top += 0.9 * LINE
        for each in placed:
            draw_token(page, each, top)
        top += height(placed) * LINE
    return top + 0.6 * LINE


def draw_token(page: "Axes", placed: Placed, top: float) -> None:
    left, middle = MARGIN + placed.column * ADVANCE, top + (placed.row + 0.5) * LINE
    length = len(placed.text) * ADVANCE
    draw_box(page, left, middle, length, colour(placed.token.share))
    page.text(
        left,
        middle,
        placed.text,
        family="DejaVu Sans Mono",
        fontsize=FONT,
        va="center_baseline",
        parse_math=False,
    )
    if placed.token.ablated:
        underline(page, left, middle, length)


def draw_box(page: "Axes", left: float, middle: float, length: float, shade: tuple[int, int, int]) -> None:
    from matplotlib.patches import Rectangle

    corner = (left, middle - 0.45 * LINE)
    red, green, blue = (part / 255 for part in shade)
    page.add_patch(Rectangle(corner, length, 0.9 * LINE, facecolor=(red, green, blue), edgecolor="white"))


def underline(page: "Axes", left: float, middle: float, length: float) -> None:
    low = middle + 0.36 * LINE
    page.plot([left + 1, left + length - 1], [low, low], color="black", linewidth=1.6, solid_capstyle="butt")


def write(page: "Axes", left: float, middle: float, text: str, size: float, alpha: float = 1.0) -> None:
    page.text(left, middle, text, fontsize=size, color=INK, alpha=alpha, va="center", parse_math=False)
