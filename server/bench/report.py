"""What the benchmark found, as a table against the numbers to reach and as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rich.table import Table

from server.bench.run import Findings, Round

MEGABYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One measure: what, the value, how it is written, and the bound it must keep (None: told only)."""

    what: str
    value: float
    written: str
    bound: str
    kept: bool | None


def ratio(found: Findings, top: Callable[[Round], float], bottom: Callable[[Round], float]) -> float:
    return found.median(lambda r: top(r) / bottom(r))


def speed(what: str, value: float) -> Line:
    return Line(what, value, f"{value:.1f} tok/s", "", None)


def at_least(what: str, value: float, bound: float) -> Line:
    return Line(what, value, f"{value:.2f}x", f">= {bound:g}x", value >= bound)


def lines_of(found: Findings) -> list[Line]:
    def rate(name: str) -> Callable[[Round], float]:
        return lambda r: float(getattr(r, name).tokens_per_second)

    generate = rate("generate")
    waiting = ratio(found, lambda r: r.eight.first_token, lambda r: r.generate.first_token)
    grown = found.rounds[-1].grown_bytes / MEGABYTE
    return [
        speed("generate, one after the other", found.median(generate)),
        speed("server, 1 request", found.median(rate("one"))),
        speed("server, 8 concurrent", found.median(rate("eight"))),
        speed("server, 32 concurrent", found.median(rate("many"))),
        at_least("1 request / generate", ratio(found, rate("one"), generate), 0.95),
        at_least("8 concurrent / generate", ratio(found, rate("eight"), generate), 3.2),
        at_least("32 concurrent / generate", ratio(found, rate("many"), generate), 7.0),
        at_least(
            "8, all steered apart / unsteered", ratio(found, rate("eight_steered"), rate("eight")), 0.97
        ),
        at_least("32, all steered apart / unsteered", ratio(found, rate("many_steered"), rate("many")), 0.97),
        at_least(
            "200 new pairs of 1,000 profiles / one pair",
            ratio(found, rate("new_pairs"), rate("same_pair")),
            0.97,
        ),
        Line("first token, 8 concurrent / in turn", waiting, f"{waiting:.2f}x", "<= 0.25x", waiting <= 0.25),
        Line("memory grown over the last 400 requests", grown, f"{grown:.1f} MB", "<= 20 MB", grown <= 20),
        Line(
            "start, model converted",
            found.start_seconds,
            f"{found.start_seconds:.1f} s",
            "<= 15 s",
            found.start_seconds <= 15,
        ),
    ]


def table_of(found: Findings) -> Table:
    table = Table(title=f"grainserve bench: {found.machine}, median of {len(found.rounds)} rounds")
    for heading in ("measure", "found", "to reach", ""):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for line in lines_of(found):
        table.add_row(line.what, line.written, line.bound, {None: "", True: "yes", False: "NO"}[line.kept])
    return table


def json_of(found: Findings) -> str:
    rounds = [asdict(r) for r in found.rounds]
    lines = [asdict(line) for line in lines_of(found)]
    return json.dumps({"machine": found.machine, "lines": lines, "rounds": rounds}, indent=2)
