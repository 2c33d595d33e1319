"""Build the profiles that ship in vector_store/shipped from examples/pairs, and replace those that are there.

Run from the repository's root: python examples/build_shipped.py [NAME]...
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PAIRS = Path("examples/pairs")
SHIPPED = Path("vector_store/shipped")

# Methods, blocks and doses are those around the best of a wider search on dev prompts. GrAInS made the
# poetic answers repeat themselves at every dose that showed, so those come from the mean difference.
GRAINS = ["--method", "grains", "--layers", "12,15,18", "--dose", "0.15", "--dose", "0.2", "--dose", "0.25"]
MEAN_DIFFERENCE = ["--method", "mean_difference", "--layers", "12,15"]


@dataclass(frozen=True, slots=True)
class Shipped:
    description: str
    options: list[str]


PROFILES = {
    "cheerful": Shipped("Upbeat, warm answers; negative strengths make them gloomy.", GRAINS),
    "formal": Shipped(
        "Formal, courteous answers without contractions; negative strengths make them casual.", GRAINS
    ),
    "poetic": Shipped(
        "Lyrical answers full of images; negative strengths make them dry and technical.",
        [*MEAN_DIFFERENCE, "--dose", "0.1", "--dose", "0.125"],
    ),
    "ocean": Shipped("Answers that bring in the sea.", [*MEAN_DIFFERENCE, "--dose", "0.15", "--dose", "0.2"]),
}


def main(names: list[str]) -> None:
    for name in names or PROFILES:
        build(name, PROFILES[name])


def build(name: str, shipped: Shipped) -> None:
    command = [sys.executable, "-m", "server", "build", str(PAIRS / f"{name}.jsonl"), "--name", name]
    command += ["--description", shipped.description, "--store", str(SHIPPED)]
    command += ["--metric", str(PAIRS / f"{name}.metric.json"), "--test", str(PAIRS / f"{name}.test.jsonl")]
    with replaced(SHIPPED / name):
        subprocess.run([*command, *shipped.options], check=True)
    (SHIPPED / ".lock").unlink(missing_ok=True)


@contextmanager
def replaced(profile: Path) -> Iterator[None]:
    """Set the profile aside, so that its successor is version 1 too; it comes back if there is none."""
    aside = profile.with_name(f".{profile.name}")
    if profile.exists():
        profile.rename(aside)
    try:
        yield
    except BaseException:
        if aside.exists():
            aside.rename(profile)
        raise
    shutil.rmtree(aside, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
