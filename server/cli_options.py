"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Model id or directory.", show_default="the embedded one")
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        envvar="GRAINSERVE_STORE",
        help="Directory of profiles.",
        show_default="the user's data directory",
    ),
]
CacheDirOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        envvar="GRAINSERVE_CACHE_DIR",
        help="Directory for converted weights.",
        show_default="the user's cache",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
NeutralOption = Annotated[
    Path | None,
    typer.Option(
        "--neutral",
        help="What damage is measured on, JSONL; see docs/design.md.",
        show_default="passages and questions of the package",
    ),
]
MaxTokensOption = Annotated[
    int, typer.Option("--max-tokens", min=1, help="Length of the answers that are measured.")
]
