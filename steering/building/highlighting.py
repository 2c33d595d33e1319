"""How strongly each token is coloured: blue where it speaks for its answer, red where it speaks against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

Colour = tuple[int, int, int]

# What stands for a piece of an image among texts of tokens.
PIECE = "\N{SQUARE WITH ORTHOGONAL CROSSHATCH FILL}"

# The arms of ColorBrewer's RdBu, which colour-blind readers tell apart; light enough for black text.
TOWARDS: Colour = (67, 147, 195)
AGAINST: Colour = (214, 96, 77)
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Tokens with one score each, in the objective's unit; ablated: places of those that were taken out."""

    title: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    ablated: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class HighlightedToken:
    """share: the score over the pair's largest, -1 to 1."""

    text: str
    score: float
    share: float
    ablated: bool


def scored_answers(attribution: Mapping[str, Any]) -> tuple[ScoredTokens, ...]:
    """Return both sides of an entry of a report's `attributions`."""
    return tuple(
        ScoredTokens(
            side,
            tuple(attribution[side]["tokens"]),
            tuple(attribution[side]["scores"]),
            frozenset(attribution[side]["ablated"]),
        )
        for side in ("preferred", "dispreferred")
    )


def runs(tokens: Sequence[str]) -> list[list[int]]:
    """Return the tokens' places, each alone but for the pieces of an image that follow each other."""
    found: list[list[int]] = []
    for seen, group in groupby(range(len(tokens)), lambda place: tokens[place] == PIECE):
        places = list(group)
        found += [places] if seen else [[place] for place in places]
    return found


def gathered(side: ScoredTokens) -> ScoredTokens:
    """Return the side with each run of an image's pieces as one token, which has the sum of their scores."""
    places = runs(side.tokens)
    texts = (told_run(len(run)) if side.tokens[run[0]] == PIECE else side.tokens[run[0]] for run in places)
    scores = tuple(sum(side.scores[place] for place in run) for run in places)
    ablated = frozenset(number for number, run in enumerate(places) if side.ablated.intersection(run))
    return ScoredTokens(side.title, tuple(texts), scores, ablated)


def told_run(count: int) -> str:
    return f"[image: {count} piece{'s' if count > 1 else ''}]"


def highlighted(pair: Sequence[ScoredTokens]) -> list[list[HighlightedToken]]:
    """Return the tokens of each side with their share of the largest score on any side of the pair."""
    largest = max((abs(score) for side in pair for score in side.scores), default=0.0) or 1.0
    return [
        [
            HighlightedToken(text, score, score / largest, place in side.ablated)
            for place, (text, score) in enumerate(zip(side.tokens, side.scores, strict=True))
        ]
        for side in pair
    ]


def colour(share: float) -> Colour:
    """Return the colour of a share in -1..1: white at 0, blue towards 1, red towards -1."""
    end, amount = (TOWARDS if share > 0 else AGAINST), min(abs(share), 1.0)
    red, green, blue = (round(w + amount * (e - w)) for w, e in zip(WHITE, end, strict=True))
    return red, green, blue


def visible(text: str) -> str:
    """Return the token on one line: line breaks and tabs as arrows, nothing as a sign of its own."""
    return text.replace("\r", "").replace("\n", "↵").replace("\t", "→") or "∅"
