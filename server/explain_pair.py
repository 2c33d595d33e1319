"""What `grainserve explain` does: find the pair, score its tokens, print and draw them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
from PIL import Image
from platformdirs import user_cache_path
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from server.console import refuse_unwritable
from steering.building.attribution import STEPS, AttributionOptions
from steering.building.explaining import Explanation, explain_pair
from steering.building.grains_options import GrainsOptions
from steering.building.highlighting import (
    PIECE,
    HighlightedToken,
    ScoredTokens,
    colour,
    gathered,
    highlighted,
    runs,
    told_run,
    visible,
)
from steering.building.overlay import grid, overlay, with_legend
from steering.building.pairs import Pair, tokenise_pair
from steering.building.pictured import picture_of, urls_of
from steering.building.readers import read_pairs
from steering.building.token_heatmap import HeatmapPair, draw_pairs
from steering.errors import InvalidPairs, InvalidRequest, SteeringError
from steering.loading import LoadedModel, load_model

PROMPT_TITLE = "blue: for the preferred answer over the dispreferred one; red: the other way round"
LARGE_GAP = 0.1
# Pieces of an image that text names.
PIECES_TOLD = 5
LEGEND = (
    "blue speaks for, red against; underlined: the most telling. A build scores by --reading influence "
    "unless told otherwise; its report.html shows that"
)


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """The command's options as they were typed; see server.explain_cli."""

    pairs: Path | None
    line: int | None
    prompt: str | None
    preferred: str | None
    dispreferred: str | None
    system: str | None
    model: str | None
    png: Path | None
    overlay: Path | None
    as_json: bool
    steps: int
    cache_dir: Path | None
    device: str


def run_explain(request: ExplainRequest) -> None:
    """Print a pair's scored tokens, and draw them if asked; a mistake ends the command with its reason."""
    try:
        pair = find_pair(request)
        refuse_unwritable("--png", request.png)
        refuse_unwritable("--overlay", request.overlay)
        image = image_of(pair) if request.overlay is not None else None
        loaded = load_model(
            request.model, request.cache_dir or user_cache_path("grainserve"), device=request.device
        )
        typer.echo("scoring the tokens of prompt and answers: up to some minutes on a CPU", err=True)
        parts = explain(loaded, pair, request.steps)
        columns = loaded.image_tokens.columns(tokenise_pair(loaded, pair).prompt)
        show(pair, parts, loaded, request, columns)
        warn(parts, request.steps)
        if request.png is not None:
            save_png(request.png, pair, parts)
        if request.overlay is not None and image is not None:
            save_overlay(request.overlay, image, parts[0], columns)
    except SteeringError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(1) from error


def find_pair(request: ExplainRequest) -> Pair:
    """Return the pair that was typed, or the one on the line of the file."""
    if request.pairs is None:
        return typed_pair(request)
    typed = (request.prompt, request.preferred, request.dispreferred, request.system)
    if any(text is not None for text in typed):
        raise InvalidRequest("name a file of pairs or type a pair, not both")
    return pair_on_line(request.pairs, request.line)


def typed_pair(request: ExplainRequest) -> Pair:
    if request.line is not None:
        raise InvalidRequest("--line needs a file of pairs")
    prompt, preferred, dispreferred = (
        (text or "").strip() for text in (request.prompt, request.preferred, request.dispreferred)
    )
    if not (prompt and preferred and dispreferred):
        raise InvalidRequest(
            "a pair needs --prompt, --preferred and --dispreferred; or name a file of pairs and its --line"
        )
    if preferred == dispreferred:
        raise InvalidRequest("--preferred and --dispreferred are the same: nothing tells them apart")
    system = [{"role": "system", "content": request.system}] if request.system else []
    return Pair(1, (*system, {"role": "user", "content": prompt}), preferred, dispreferred)


def pair_on_line(path: Path, line: int | None) -> Pair:
    """Return the pair that begins on the line; raises InvalidRequest with the lines that one begins on."""
    found = read_pairs(path)
    for pair in found.pairs:
        if pair.line == line:
            return pair
    for left in found.left_out:
        if left.line == line:
            raise InvalidRequest(f"the pair on line {line} of {path} is not used: {left.reason}")
    lines = [pair.line for pair in found.pairs]
    asked = f"no pair begins on line {line}" if line is not None else "say which pair with --line"
    between = f"; pairs begin on lines {lines[0]} to {lines[-1]}" if lines else ""
    raise InvalidRequest(f"{asked} of {path}{between}")


def image_of(pair: Pair) -> Image.Image:
    urls = urls_of(pair.messages)
    if len(urls) != 1:
        raise InvalidRequest(f"--overlay draws over the pair's one image; this pair has {len(urls)}")
    return picture_of(urls[0])


def explain(loaded: LoadedModel, pair: Pair, steps: int) -> tuple[Explanation, ...]:
    tokenised = tokenise_pair(loaded, pair)
    longest = max(len(tokenised.preferred.ids), len(tokenised.dispreferred.ids))
    if longest > loaded.context_length:
        raise InvalidPairs(f"the pair is {longest} tokens long; the model reads {loaded.context_length}")
    attribution = AttributionOptions(steps=min(steps, STEPS), most_steps=steps)
    return explain_pair(loaded, tokenised, GrainsOptions(attribution=attribution))


def show(
    pair: Pair,
    parts: Sequence[Explanation],
    loaded: LoadedModel,
    request: ExplainRequest,
    columns: int | None,
) -> None:
    """Print JSON if asked, colours on a terminal, and lines of token, tab, score anywhere else.

    columns: of the grid of the image's pieces, where the family tells.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    if request.as_json:
        typer.echo(json.dumps(as_json(pair, parts, loaded), indent=2, ensure_ascii=False))
    elif console.is_terminal:
        print_colours(console, parts, columns)
    else:
        print_lines(parts, columns)


def as_json(pair: Pair, parts: Sequence[Explanation], loaded: LoadedModel) -> dict[str, Any]:
    return {
        "model": loaded.identity.id,
        "messages": list(pair.messages),
        "parts": [
            {
                "part": part.scored.title,
                "objective": part.objective,
                "change": part.change,
                "gap": part.gap,
                "steps": part.steps,
                "tokens": list(part.scored.tokens),
                "scores": list(part.scored.scores),
                "ablated": sorted(part.scored.ablated),
            }
            for part in parts
        ],
    }


def print_lines(parts: Sequence[Explanation], columns: int | None) -> None:
    for part in parts:
        typer.echo(f"# {heading(part)}")
        scored, places = gathered(part.scored), runs(part.scored.tokens)
        for text, score, run in zip(scored.tokens, scored.scores, places, strict=True):
            strongest = f"\t{told_pieces(part.scored, run, columns)}" if is_image(part.scored, run) else ""
            typer.echo(f"{visible(text)}\t{score:+.4f}{strongest}")


def is_image(scored: ScoredTokens, run: Sequence[int]) -> bool:
    return scored.tokens[run[0]] == PIECE


def told_pieces(scored: ScoredTokens, run: Sequence[int], columns: int | None) -> str:
    """Return the strongest of a run of pieces with their scores, by row and column where they are a grid."""
    found = grid(len(run), columns)
    across = found[0] if found else len(run)
    strongest = sorted(range(len(run)), key=lambda place: -abs(scored.scores[run[place]]))[:PIECES_TOLD]
    told = (
        (
            f"{place // across + 1},{place % across + 1}" if found else f"{place + 1}",
            scored.scores[run[place]],
        )
        for place in strongest
    )
    named = "row,column" if found else "piece"
    return f"strongest by {named}: " + "; ".join(f"{where} {score:+.4f}" for where, score in told)


def print_colours(console: Console, parts: Sequence[Explanation], columns: int | None) -> None:
    for pair in paired(parts):
        shown = highlighted([gathered(part.scored) for part in pair])
        for part, tokens in zip(pair, shown, strict=True):
            console.print(heading(part), style="bold")
            console.print(coloured(tokens))
            for run in runs(part.scored.tokens):
                if is_image(part.scored, run):
                    console.print(f"{told_run(len(run))} {told_pieces(part.scored, run, columns)}")
            console.print()
    console.print(LEGEND)


def heading(part: Explanation) -> str:
    return (
        f"{part.scored.title}: {part.objective}; {part.change:+.2f} nats from the baseline, "
        f"completeness gap {part.gap:.1%} after {part.steps} gradients"
    )


def paired(parts: Sequence[Explanation]) -> tuple[Sequence[Explanation], Sequence[Explanation]]:
    """Return what shares a scale: the prompt alone, and the two answers."""
    return parts[:1], parts[1:]


def coloured(tokens: Sequence[HighlightedToken]) -> Text:
    """Return black text on the tokens' colours, which reads the same on a light and a dark terminal."""
    text = Text()
    for token in tokens:
        background = Color.from_rgb(*colour(token.share))
        style = Style(color="black", bgcolor=background, underline=token.ablated)
        text.append(visible(token.text), style)
        if token.text.endswith("\n"):
            text.append("\n")
    return text


def save_png(path: Path, pair: Pair, parts: Sequence[Explanation]) -> None:
    titles = (PROMPT_TITLE, f"answers to: {pair.messages[-1]['content']}")
    groups = [
        HeatmapPair(title, tuple(with_gap(part) for part in group))
        for title, group in zip(titles, paired(parts), strict=True)
    ]
    write_picture("--png", path, draw_pairs(groups, "Which tokens speak for their answer"))


def save_overlay(path: Path, image: Image.Image, prompt: Explanation, columns: int | None) -> None:
    """Draw the scores of the prompt's image pieces over the image; columns: of their grid, if it tells."""
    seen = [place for place, text in enumerate(prompt.scored.tokens) if text == PIECE]
    scores = [prompt.scored.scores[place] for place in seen]
    taken = {seen.index(place) for place in prompt.scored.ablated if place in seen}
    drawn = overlay(image, scores, taken, columns)
    if drawn is None:
        raise InvalidRequest(f"--overlay needs a grid of pieces; this model makes {len(seen)}")
    write_picture("--overlay", path, with_legend(drawn))


def write_picture(option: str, path: Path, picture: bytes) -> None:
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise InvalidRequest(f"{option} {path} cannot be written: {error.strerror or error}") from error
    typer.echo(f"wrote {path}", err=True)


def with_gap(part: Explanation) -> ScoredTokens:
    return replace(part.scored, title=f"{part.scored.title}, completeness gap {part.gap:.1%}")


def warn(parts: Sequence[Explanation], steps: int) -> None:
    """Say on standard error which scores are not to be trusted."""
    for part in parts:
        if not part.steps:
            typer.echo(f"note: the {part.scored.title} has a single token: none is scored", err=True)
        if part.gap > LARGE_GAP:
            typer.echo(
                f"warning: the {part.scored.title}'s scores miss the change that they should add up to by "
                f"{part.gap:.0%}; more --steps come closer and take longer: --steps {4 * steps}",
                err=True,
            )
