"""The `grainserve explain` command: its options."""

from pathlib import Path
from typing import Annotated

import typer

from server.cli_options import CacheDirOption, DeviceOption, ModelOption


def explain(
    pairs: Annotated[
        Path | None, typer.Argument(help="Preference pairs, in a format that build reads; needs --line.")
    ] = None,
    line: Annotated[int | None, typer.Option(min=1, help="The line on which the pair begins.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the user says, instead of a file.")] = None,
    preferred: Annotated[str | None, typer.Option(help="The answer that is wanted.")] = None,
    dispreferred: Annotated[str | None, typer.Option(help="The answer that is not.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message before the prompt.")] = None,
    model: ModelOption = None,
    png: Annotated[Path | None, typer.Option(help="File for a picture of the scores.")] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="File for the pair's image with its pieces coloured.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    steps: Annotated[
        int, typer.Option(min=1, help="Gradients after which each part ends; sooner where scores add up.")
    ] = 64,
    cache_dir: CacheDirOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Show which tokens of a preference pair speak for its answers, and which against them."""
    from server.explain_pair import ExplainRequest, run_explain  # torch loads slowly; --help should not

    run_explain(
        ExplainRequest(
            pairs=pairs,
            line=line,
            prompt=prompt,
            preferred=preferred,
            dispreferred=dispreferred,
            system=system,
            model=model,
            png=png,
            overlay=overlay,
            as_json=as_json,
            steps=steps,
            cache_dir=cache_dir,
            device=device,
        )
    )
