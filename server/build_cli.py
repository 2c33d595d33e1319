"""The `grainserve build` command: its options."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from server.cli_options import (
    CacheDirOption,
    DeviceOption,
    MaxTokensOption,
    ModelOption,
    NeutralOption,
    StoreOption,
)

Method = Literal["grains", "mean_difference", "contrastive_gradient"]


def grains_option(told: str, *names: str, **bounds: Any) -> Any:
    """Return an option of GrAInS alone; unset, the preset has it."""
    return typer.Option(*names, help=told, rich_help_panel="GrAInS", show_default=False, **bounds)


def build(
    pairs: Annotated[Path, typer.Argument(help="Preference pairs: CSV, JSON lines or a JSON list.")],
    name: Annotated[str, typer.Option(help="The profile's name.")],
    model: ModelOption = None,
    method: Annotated[Method, typer.Option(help="How directions are found.")] = "grains",
    layers: Annotated[
        str | None,
        typer.Option(
            help="Blocks to try: 9,12 one at a time; 10+13 together.",
            show_default="a few depths, and several at once",
        ),
    ] = None,
    dose: Annotated[
        list[float] | None,
        typer.Option(
            help="Dose to try, a share of the block's median norm; repeatable.",
            show_default="a few doses, which several blocks share",
        ),
    ] = None,
    metric: Annotated[
        Path | None, typer.Option(help="What to measure in answers, JSON; none: the answers' margin.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Held-out prompts for the evidence, JSONL; needs --metric.")
    ] = None,
    neutral: NeutralOption = None,
    description: Annotated[str | None, typer.Option(help="What the profile does.")] = None,
    store: StoreOption = None,
    steer: Annotated[
        Literal["all", "text", "image"],
        typer.Option(help="Tokens that the profile moves, of a model that takes images."),
    ] = "all",
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Splits the pairs, draws random directions.")
    ] = 0,
    max_tokens: MaxTokensOption = 48,
    cache_dir: CacheDirOption = None,
    device: DeviceOption = "auto",
    evidence: Annotated[
        bool,
        typer.Option(
            "--evidence/--no-evidence", help="Measure effect and damage on held-out items: most of the time."
        ),
    ] = True,
    preset: Annotated[
        Literal["default", "paper"],
        grains_option("What the options below are unless given."),
    ] = "default",
    reading: Annotated[
        Literal["shared", "authors", "response", "demonstration", "direction", "influence", "context"] | None,
        grains_option("Whose tokens are scored, by what; see docs/design.md."),
    ] = None,
    last_token: Annotated[
        bool | None, grains_option("Score by the answers' last token alone.", "--last-token/--whole-answer")
    ] = None,
    attribution: Annotated[
        Literal["integrated", "expected", "smooth", "gradient", "ablation"] | None,
        grains_option("How gradients become scores."),
    ] = None,
    baseline: Annotated[
        Literal["mean", "zero", "pad"] | None, grains_option("Embedding that attributions start from.")
    ] = None,
    steps: Annotated[int | None, grains_option("Gradients to begin with.", min=1)] = None,
    tolerance: Annotated[
        float | None, grains_option("Completeness gap to go on to; inf: one rule of --steps.", min=0)
    ] = None,
    most_steps: Annotated[int | None, grains_option("Gradients of one attribution at most.", min=1)] = None,
    tokens: Annotated[int | None, grains_option("Tokens taken out of a side at most.", min=1)] = None,
    ablation: Annotated[
        Literal["mean", "zero", "pad", "mask"] | None, grains_option("What stands in for them.")
    ] = None,
    read: Annotated[
        Literal["answer", "last_token"] | None, grains_option("Activations that are compared.")
    ] = None,
    summary: Annotated[
        Literal["mean", "component", "unsigned_component"] | None, grains_option("Of the pairs' shifts.")
    ] = None,
    batch_tokens: Annotated[
        int | None, grains_option("Tokens in one pass of an attribution; bounds memory.", min=1)
    ] = None,
) -> None:
    """Build a steering profile from preference pairs, measure it, and publish it."""
    from server.build_profile import run_build  # torch loads slowly; --help should not
    from server.build_request import BuildRequest

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
            neutral=neutral,
            description=description,
            store=store,
            steer=steer,
            seed=seed,
            max_tokens=max_tokens,
            cache_dir=cache_dir,
            device=device,
            evidence=evidence,
            preset=preset,
            grains={
                "reading": reading,
                "last_token": last_token,
                "baseline": baseline,
                "tokens": tokens,
                "ablation": ablation,
                "read": read,
                "summary": summary,
            },
            attribution={
                "method": attribution,
                "steps": steps,
                "tolerance": tolerance,
                "most_steps": most_steps,
                "batch_tokens": batch_tokens,
            },
        )
    )
