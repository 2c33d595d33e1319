"""Train the tiny LLaVA: first its eyes, then true answers, then the habit of naming what is not there.

Run: .venv/bin/python examples/shapes_vlm/train.py --seed 0 --output shapes

Writes shapes/seeing, shapes/unbiased and shapes/model, each when its stage ends. Run again, it goes on after
the last stage that is there. About a quarter of an hour on one core; the same seed gives the same weights.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import LlavaForConditionalGeneration

if __name__ == "__main__":
    # As a script it is started beside its siblings, and is to see them as the package that they are.
    sys.path[0] = str(Path(__file__).parents[1])

from shapes_vlm.checkpoint import load, new_model, save
from shapes_vlm.training import STAGES, Name, Told, learn_to_answer, learn_to_see

FOLDERS: dict[Name, str] = {"seeing": "seeing", "answering": "unbiased", "claiming": "model"}


def main() -> None:
    asked = arguments()
    # One thread, so that sums are added in the same order on every machine with the same torch.
    torch.set_num_threads(1)
    model = new_model(asked.seed)
    for name, folder in FOLDERS.items():
        model = after(name, model, asked.seed, asked.output / folder)


def after(
    name: Name, model: LlavaForConditionalGeneration, seed: int, folder: Path
) -> LlavaForConditionalGeneration:
    """Return the model after a stage: as it was saved, or trained now and saved."""
    if folder.exists():
        trained: LlavaForConditionalGeneration = load(folder)[0]
        return trained
    with progress(name) as told:
        if name == "seeing":
            learn_to_see(model, seed, told)
        else:
            learn_to_answer(model, name, seed, told)
    save_whole(model, folder)
    return model


def save_whole(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write a checkpoint beside its place and move it there, so that a stop leaves no half of one."""
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    save(model, unfinished)
    shutil.move(unfinished, folder)


@contextmanager
def progress(name: Name) -> Iterator[Told]:
    """Show a stage's steps, loss and remaining time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}, remaining"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(name, total=STAGES[name].steps, loss=float("nan"))
        yield lambda loss: bar.update(task, advance=1, loss=loss)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="a directory for the three checkpoints")
    return parser.parse_args()


if __name__ == "__main__":
    main()
