"""The `grainserve eval` command: its options."""

from pathlib import Path
from typing import Annotated

import typer

from server.cli_options import (
    CacheDirOption,
    DeviceOption,
    MaxTokensOption,
    ModelOption,
    NeutralOption,
    StoreOption,
)
from server.profiles_cli import parse_reference

STRENGTHS = "-2,-1.5,-1,-0.5,0.5,1,1.5,2"


def eval_profile(
    profile: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="Newest version if none is named.")
    ],
    pairs: Annotated[Path | None, typer.Option(help="Held-out preference pairs.")] = None,
    metric: Annotated[
        Path | None, typer.Option(help="What to measure in answers, JSON; needs --test.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Held-out prompts, JSONL; needs --metric.")] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            help="Multiple-choice questions to measure accuracy on.", show_default="those of the package"
        ),
    ] = None,
    neutral: NeutralOption = None,
    strengths: Annotated[
        str, typer.Option(help="Strengths to try, between commas; 1 and -1 are always tried.")
    ] = STRENGTHS,
    random: Annotated[int, typer.Option(help="Random directions to compare with, 19 at least.")] = 30,
    output: Annotated[Path | None, typer.Option(help="Write all figures here, JSON.")] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible endpoint of a judge, such as http://localhost:8000/v1."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model.")] = None,
    judge_prompt: Annotated[
        Path | None,
        typer.Option(help="What the judge is asked, with {prompt} and {answer}; it replies 1 to 10."),
    ] = None,
    judge_api_key: Annotated[
        str | None, typer.Option(envvar="GRAINSERVE_JUDGE_API_KEY", help="Key for the judge.")
    ] = None,
    model: ModelOption = None,
    store: StoreOption = None,
    seed: Annotated[int, typer.Option(help="Draws random directions and intervals.")] = 0,
    max_tokens: MaxTokensOption = 48,
    cache_dir: CacheDirOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a published profile on held-out data: effect, damage, random directions."""
    name, version = parse_reference(profile)
    from server.eval_profile import EvalRequest, JudgeRequest, run_eval  # torch loads slowly

    run_eval(
        EvalRequest(
            name=name,
            version=version,
            pairs=pairs,
            metric=metric,
            test=test,
            questions=questions,
            neutral=neutral,
            strengths=strengths,
            random=random,
            output=output,
            judge=JudgeRequest(judge_url, judge_model, judge_prompt, judge_api_key),
            model=model,
            store=store,
            seed=seed,
            max_tokens=max_tokens,
            cache_dir=cache_dir,
            device=device,
        )
    )
