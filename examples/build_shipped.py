"""Build the profiles that ship in vector_store/shipped from examples/pairs, and replace those that are there.

Run from the repository's root: python examples/build_shipped.py [NAME]...
"""

import shutil
import subprocess
import sys
from pathlib import Path

PAIRS = Path("examples/pairs")
SHIPPED = Path("vector_store/shipped")

DESCRIPTIONS = {
    "cheerful": "Upbeat, warm answers; negative strengths make them gloomy.",
    "formal": "Formal, courteous answers without contractions; negative strengths make them casual.",
    "poetic": "Lyrical answers full of images; negative strengths make them dry and technical.",
}
# The blocks around the best of a wider search, on dev prompts.
OPTIONS = ["--method", "grains", "--layers", "12,15,18", "--dose", "0.15", "--dose", "0.2", "--dose", "0.25"]


def main(names: list[str]) -> None:
    for name in names or DESCRIPTIONS:
        build(name)


def build(name: str) -> None:
    """Build beside what ships, and put it in its place once it is whole."""
    fresh = SHIPPED / ".fresh"
    command = [sys.executable, "-m", "server", "build", str(PAIRS / f"{name}.jsonl"), "--name", name]
    command += ["--description", DESCRIPTIONS[name]]
    command += ["--metric", str(PAIRS / f"{name}.metric.json"), "--test", str(PAIRS / f"{name}.test.jsonl")]
    try:
        subprocess.run([*command, "--store", str(fresh), *OPTIONS], check=True)
        shutil.rmtree(SHIPPED / name, ignore_errors=True)
        (fresh / name).rename(SHIPPED / name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
