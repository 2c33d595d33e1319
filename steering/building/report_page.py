"""The report as one page of HTML that needs nothing beside it: no script, no other file, no network."""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader

from steering.building.bounds_told import told_bound, told_break
from steering.building.highlighting import AGAINST, TOWARDS, highlighted, scored_answers
from steering.building.overlay import overlay
from steering.building.pictured import picture_of
from steering.building.reporting import shortcomings
from steering.building.side_by_side import side_by_side

Record = Mapping[str, Any]

# The darkest colour of a token, at which text stays readable on a light and on a dark page.
MOST_OPAQUE = 70
SHOWN = {
    "headline",
    "dose_response",
    "random_scores",
    "samples",
    "calibration",
    "attributions",
    "controls",
    "pairs",
}
# What the numbers on the tokens are, by the reading of GrAInS that gave them.
NATS = "Scores are changes of a log-probability, in nats."
SCORE_MEANINGS = {
    "direction": "Scores say how far a token moves the block along the mean difference, to its own side.",
    "influence": "Scores say how far a token moves the block to where answers of its side are likelier.",
    "context": "Scores say how far a token moves its answer to where answers of its side are likelier.",
}
NO_DIGEST = "0" * 64
CONTROLS = {code: "\ufffd" for code in range(32) if chr(code) not in "\t\n\r"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture inside the page; address: its bytes as a data URI."""

    title: str
    caption: str
    address: str


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the first table; costs: column -> number."""

    name: str
    score: float | None
    effect: Record | None = None
    costs: Record = field(default_factory=dict)
    notes: str = ""


# Parts of a headline that say what steering costs, each by "unsteered", "steered" and "steered_away".
COSTS = ("fluency", "damage", "choices")
COLUMNS = {
    "log_probability": "answers' log-probability",
    "distinct_2": "distinct word pairs",
    "loss": "neutral loss",
    "accuracy": "accuracy",
    "chosen_whole": "preferred likelier",
    "chosen_per_token": "preferred likelier per token",
}
CAPTIONS = {
    "dose_response.png": (
        "Dose-response",
        "Score at each strength, with the unsteered score as a dashed line and random directions of the same "
        "length as grey dots and what other ways found in the same pairs; below, what the steering costs.",
    ),
    "effect_by_block.png": (
        "Effect by block",
        "What each block and dose did in the calibration; hollow where the damage bound broke.",
    ),
}


def report_page(manifest: Record, report: Record, pictures: Mapping[str, bytes]) -> str:
    """Return the page; a part whose key the report lacks is left out.

    manifest, report: as in manifest.json and report.json; pictures: file name -> PNG.
    """
    rows = list(score_rows(report))
    return (
        environment()
        .get_template("report.html")
        .render(
            manifest=manifest,
            built_by=built_by(manifest),
            head=report.get("headline"),
            shortcomings=list(shortcomings(report["headline"])) if "headline" in report else [],
            rows=rows,
            columns=cost_columns(rows),
            figures=list(figures(pictures)),
            pairs=[token_pair(each) for each in report.get("attributions", [])],
            score_meaning=SCORE_MEANINGS.get(manifest.get("parameters", {}).get("reading"), NATS),
            samples=[side_by_side(sample) for sample in report.get("samples", [])],
            trial_columns=trial_columns(report.get("calibration", [])),
            trials=trial_rows(manifest, report.get("calibration", [])),
            bound=told_bound(manifest.get("calibration", {})),
            facts=[*facts(manifest), *pair_facts(report.get("pairs", {}), manifest.get("pairs") or {})],
            unshown=sorted(report.keys() - SHOWN),
        )
    )


@cache
def environment() -> Environment:
    """Return the templates' environment, which escapes everything that it is given."""
    made = Environment(
        loader=PackageLoader("steering.building", "pages"),
        autoescape=True,
        finalize=without_controls,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        number=number, signed=signed, percent=percent, interval=interval, shaded=shaded, words=words
    )
    return made


def without_controls(value: object) -> object:
    """Return what is shown: of a text, without the control characters that no page may hold."""
    return value.translate(CONTROLS) if isinstance(value, str) else value


def built_by(manifest: Record) -> str:
    layers = ", ".join(map(str, manifest["layers"]))
    count = f" from {manifest['pairs']['count']} preference pairs" if manifest.get("pairs") else ""
    method = manifest["method"].replace("_", " ")
    return f"{method}{count}, at the output of block{'s' if len(manifest['layers']) > 1 else ''} {layers}"


def figures(pictures: Mapping[str, bytes]) -> Iterator[Figure]:
    for name, (title, caption) in CAPTIONS.items():
        if name in pictures:
            address = f"data:image/png;base64,{b64encode(pictures[name]).decode()}"
            yield Figure(title, caption, address)


def score_rows(report: Record) -> Iterator[Row]:
    """Yield unsteered, steered and every control, each with what is known of it."""
    head = report.get("headline")
    if not head:
        return
    for name, key, effect in (
        ("unsteered", "unsteered", None),
        ("strength 1", "steered", "effect"),
        ("strength -1", "steered_away", "effect_away"),
    ):
        costs = {column: told for part in COSTS for column, told in head.get(part, {}).get(key, {}).items()}
        yield Row(name, head.get(key), head.get(effect), costs)
    if random := head.get("random"):
        directions = f"{random['directions']} random directions"
        yield Row(f"{directions}, mean", random["mean"])
        yield Row(f"{directions}, strongest", random["strongest"])
    yield from control_rows(report.get("controls") or {})


def control_rows(controls: Any) -> Iterator[Row]:
    """Yield a row per control of a mapping name -> numbers, or of a list of numbers with a `name`.

    `advantage` is the profile's over it. What has no column of its own is told in the row's notes.
    """
    named = controls.items() if isinstance(controls, Mapping) else ((each["name"], each) for each in controls)
    for name, told in named:
        costs = {column: told[column] for column in COLUMNS if column in told}
        others = told.keys() - {"name", "score", "effect", "advantage", *costs}
        notes = [f"the profile does {interval(told['advantage'])} better"] if told.get("advantage") else []
        notes += [f"{words(key)} {plain(told[key])}" for key in sorted(others)]
        yield Row(words(name), told.get("score"), told.get("effect"), costs, "; ".join(notes))


def cost_columns(rows: Sequence[Row]) -> dict[str, str]:
    """Return the columns that any row can fill, with their headings."""
    return {key: heading for key, heading in COLUMNS.items() if any(key in row.costs for row in rows)}


def token_pair(attribution: Record) -> dict[str, Any]:
    sides = scored_answers(attribution)
    shown = [
        {"title": side.title, "tokens": tokens}
        for side, tokens in zip(sides, highlighted(sides), strict=True)
    ]
    named = {key: attribution.get(key) for key in ("line", "prompt", "gap")}
    return {**named, "sides": shown, "overlay": overlay_address(attribution.get("image"))}


def overlay_address(image: Record | None) -> str | None:
    """Return the pieces' scores over their image as a data URI, None where there is nothing to draw."""
    if image is None:
        return None
    drawn = overlay(picture_of(image["url"]), image["scores"], image["ablated"], image.get("columns"))
    return f"data:image/png;base64,{b64encode(drawn).decode()}" if drawn else None


def trial_columns(trials: Sequence[Record]) -> list[str]:
    """Return what the trials measured, in their own order."""
    return [key for key in (trials[0] if trials else {}) if key not in ("layers", "admitted")]


def trial_rows(manifest: Record, trials: Sequence[Record]) -> list[dict[str, Any]]:
    chosen = (list(manifest["layers"]), manifest.get("calibration", {}).get("dose"))
    return [
        {
            "blocks": "+".join(map(str, trial["layers"])),
            "values": [trial.get(column) for column in trial_columns(trials)],
            "admitted": trial["admitted"],
            "within": told_break(trial, manifest.get("calibration", {})),
            "chosen": (list(trial["layers"]), trial["dose"]) == chosen,
        }
        for trial in trials
    ]


def facts(manifest: Record) -> Iterator[tuple[str, str]]:
    """Yield name and value of what it takes to build the profile again."""
    yield "method", manifest["method"]
    for key, value in manifest.get("parameters", {}).items():
        yield words(key), plain(value)
    for key, value in manifest.get("calibration", {}).items():
        yield f"calibration: {words(key)}", plain(value)
    yield "seed", str(manifest.get("seed", 0))
    yield from manifest.get("libraries", {}).items()
    yield "model", f"{manifest['model']['id']}, {manifest['model']['architecture']}"
    yield "model's fingerprint", manifest["model"]["fingerprint"]
    if pairs := manifest.get("pairs"):
        yield "pairs' SHA-256", pairs["digest"]
    if manifest.get("digest", NO_DIGEST) != NO_DIGEST:
        yield "vectors' SHA-256", manifest["digest"]
    yield "created", manifest.get("created", "")


def pair_facts(pairs: Record, built: Record) -> Iterator[tuple[str, str]]:
    """Yield how many pairs of the file were used and for what, and which were not and why.

    built: of the manifest, whose count is of those that the directions come from.
    """
    if "used" in pairs:
        parts = f"; directions were found on {built['count']}, the rest held out" if built else ""
        yield "pairs used", f"{pairs['used']}{parts}"
    if left_out := pairs.get("left_out"):
        yield "pairs left out", "; ".join(f"line {left['line']} ({left['reason']})" for left in left_out)


def number(value: Any) -> str:
    """Return three significant digits, or nothing for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def signed(value: float) -> str:
    return f"{value:+.3g}"


def percent(value: float) -> str:
    return f"{value:.1%}"


def interval(value: Any) -> str:
    """Return "+2.42 (1.65 to 3.27)", or nothing where there is no interval."""
    if not isinstance(value, Mapping):
        return ""
    return f"{signed(value['mean'])} ({number(value['low'])} to {number(value['high'])})"


def shaded(share: float) -> str:
    """Return the style of a token whose share is -1..1: blue for, red against, clear at 0."""
    red, green, blue = TOWARDS if share > 0 else AGAINST
    return f"background: rgb({red} {green} {blue} / {abs(share) * MOST_OPAQUE:.0f}%)"


def words(key: str) -> str:
    return key.replace("_", " ")


def plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
