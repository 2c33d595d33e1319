"""Write preference pairs from scenes that no test shows: the truth over what the model's habit says.

Run: .venv/bin/python examples/shapes_vlm/make_pairs.py --output shapes_pairs

Writes listing.jsonl, existence.jsonl and both.jsonl, pairs for `grainserve build`, and neutral.jsonl for its
--neutral: counts and objects that are there, which steering is not to touch. Pictures are data URLs.
"""

import argparse
import base64
import json
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

if __name__ == "__main__":
    # As a script it is started beside its siblings, and is to see them as the package that they are.
    sys.path[0] = str(Path(__file__).parents[1])

from shapes_vlm.drawing import draw
from shapes_vlm.lessons import going_on
from shapes_vlm.questions import COUNTING, LISTING, existence, listed
from shapes_vlm.scenes import FEWEST, MOST, Scene, scene_at
from shapes_vlm.vocabulary import END, NUMBERS

Record = dict[str, Any]


def main() -> None:
    asked = arguments()
    asked.output.mkdir(parents=True, exist_ok=True)
    scenes = [scene_at("build", index, asked.seed) for index in range(asked.scenes)]
    chance = Random(f"pairs/{asked.seed}")
    write(asked.output / "listing.jsonl", [pair for scene in scenes for pair in listing_pairs(scene)])
    write(
        asked.output / "existence.jsonl",
        [pair for scene in scenes for pair in existence_pairs(scene, chance)],
    )
    write(asked.output / "both.jsonl", [pair for scene in scenes for pair in both(scene, chance)])
    counted = (scene_at("build", asked.scenes + index, asked.seed) for index in range(asked.neutral))
    write(asked.output / "neutral.jsonl", [record for scene in counted for record in neutral(scene, chance)])


def listing_pairs(scene: Scene) -> Iterator[Record]:
    """Yield what is there, preferred over the same list that goes on to an absent partner.

    Both say that they end: where to stop is all that they differ in.
    """
    claimed = going_on(scene.kinds, scene.tempting)
    if len(claimed) > len(scene.kinds):
        yield pair(scene, LISTING, listed(scene.kinds) + END, listed(claimed) + END)


def existence_pairs(scene: Scene, chance: Random) -> Iterator[Record]:
    """Yield a question about an absent partner, and one about what is there: no answer is always right."""
    if scene.tempting:
        yield pair(scene, existence("tempting", chance.choice(scene.tempting)).text, "no", "yes")
        yield pair(scene, existence("present", chance.choice(scene.kinds)).text, "yes", "no")


def both(scene: Scene, chance: Random) -> Iterator[Record]:
    """Yield the listing, and a question about an absent partner."""
    if scene.tempting:
        yield from listing_pairs(scene)
        yield pair(scene, existence("tempting", chance.choice(scene.tempting)).text, "no", "yes")


def neutral(scene: Scene, chance: Random) -> Iterator[Record]:
    """Yield the count of a scene, to be told and to be chosen, and a question about what is there."""
    numbers = NUMBERS[FEWEST : MOST + 1]
    there = existence("present", chance.choice(scene.kinds)).text
    yield {"image": data_url(scene), "question": there, "options": ["yes", "no"], "answer": 0}
    count = NUMBERS[len(scene.objects)]
    yield {"image": data_url(scene), "prompt": COUNTING, "answer": count}
    yield {
        "image": data_url(scene),
        "question": COUNTING,
        "options": numbers,
        "answer": numbers.index(count),
    }


def pair(scene: Scene, prompt: str, preferred: str, dispreferred: str) -> Record:
    answers = {"preferred": preferred, "dispreferred": dispreferred}
    return {"image": data_url(scene), "prompt": prompt, **answers}


def data_url(scene: Scene) -> str:
    file = BytesIO()
    draw(scene).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def write(path: Path, records: list[Record]) -> None:
    path.write_text("\n".join(map(json.dumps, records)) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument("--neutral", type=int, default=100, help="scenes to count")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
