"""The `grainserve bench` command."""

from pathlib import Path
from typing import Annotated

import typer
from platformdirs import user_cache_path
from rich.console import Console


def bench(
    model: Annotated[str | None, typer.Option(help="Model id or directory; none: the embedded one.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Threads of server and yardstick on a CPU.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every figure is their median.")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="New tokens per request.")] = 64,
    cache_dir: Annotated[Path | None, typer.Option(help="Directory for converted weights.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Measure the whole server over loopback HTTP, interleaved with plain `generate`; about ten minutes."""
    from server.bench.report import json_of, table_of
    from server.bench.run import Plan, run_benchmark
    from steering.errors import SteeringError

    folder = cache_dir or user_cache_path("grainserve")
    arguments = ["--device", device, "--dtype", dtype, "--cache-dir", str(folder)]
    arguments += ["--model", model] if model else []
    arguments += ["--threads", str(threads)] if threads else []
    console = Console(soft_wrap=True)
    try:
        found = run_benchmark(
            Plan(model, folder, tuple(arguments), device, dtype, threads, rounds, tokens),
            Console(stderr=True),
        )
    except (SteeringError, RuntimeError) as error:
        typer.echo(f"grainserve: {error}", err=True)
        raise typer.Exit(1) from None
    console.print(table_of(found))
    if json_file:
        json_file.write_text(json_of(found))
