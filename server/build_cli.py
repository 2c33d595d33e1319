"""The `grainserve build` command: its options."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Method = Literal["grains", "mean_difference"]


def build(
    pairs: Annotated[Path, typer.Argument(help="Preference pairs: CSV, JSON lines or a JSON list.")],
    name: Annotated[str, typer.Option(help="The profile's name.")],
    model: Annotated[
        str | None, typer.Option(help="Model id or directory.", show_default="the embedded one")
    ] = None,
    method: Annotated[Method, typer.Option(help="How directions are found.")] = "grains",
    layers: Annotated[
        str | None,
        typer.Option(help="Blocks to try: 9,12 one at a time; 10+13 together.", show_default="a few depths"),
    ] = None,
    dose: Annotated[
        list[float] | None,
        typer.Option(
            help="Dose to try, a share of the block's median norm; repeatable.",
            show_default="a few doses",
        ),
    ] = None,
    metric: Annotated[
        Path | None, typer.Option(help="What to measure in answers, JSON; none: the answers' margin.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Held-out prompts for the evidence, JSONL; needs --metric.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="What the profile does.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            envvar="GRAINSERVE_STORE", help="Directory of profiles.", show_default="the user's data directory"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Splits the pairs, draws random directions.")
    ] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of the answers that are measured.")] = 48,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="GRAINSERVE_CACHE_DIR",
            help="Directory for converted weights.",
            show_default="the user's cache",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Build a steering profile from preference pairs, measure it, and publish it."""
    from server.build_profile import BuildRequest, run_build  # torch loads slowly; --help should not

    run_build(
        BuildRequest(
            pairs=pairs,
            name=name,
            model=model,
            method=method,
            layers=layers,
            doses=tuple(dose or ()),
            metric=metric,
            test=test,
            description=description,
            store=store,
            seed=seed,
            max_tokens=max_tokens,
            cache_dir=cache_dir,
            device=device,
        )
    )
