"""Build the profiles that ship in vector_store/shipped from examples/pairs, and replace those that are there.

Run from the repository's root: python examples/build_shipped.py [NAME]...
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAIRS = Path("examples/pairs")
SHIPPED = Path("vector_store/shipped")

# The block and the doses around the best of a wider search on dev prompts.
SEARCH = ["--layers", "12", "--dose", "0.1", "--dose", "0.125", "--dose", "0.15"]
PROFILES = {
    "cheerful": "Upbeat, warm answers; negative strengths make them gloomy.",
    "formal": "Formal, courteous answers without contractions; negative strengths make them casual.",
    "poetic": "Lyrical answers full of images; negative strengths make them dry and technical.",
    "vivid": "Answers full of colours, sounds, smells and textures; negative strengths make them abstract.",
}


def main(names: list[str]) -> None:
    for name in names or PROFILES:
        build(name, PROFILES[name])


def build(name: str, description: str) -> None:
    command = [sys.executable, "-m", "server", "build", str(PAIRS / f"{name}.jsonl"), "--name", name]
    command += ["--description", description, "--store", str(SHIPPED)]
    command += ["--metric", str(PAIRS / f"{name}.metric.json"), "--test", str(PAIRS / f"{name}.test.jsonl")]
    with replaced(SHIPPED / name):
        subprocess.run([*command, *SEARCH], check=True)
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
