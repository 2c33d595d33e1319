"""Draw the README's picture: a scene, what the model says of it unsteered and steered, and the attribution.

Run: .venv/bin/python examples/shapes_vlm/plot.py
"""

import sys
from io import BytesIO
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

if __name__ == "__main__":
    # As a script it is started beside its siblings, and is to see them as the package that they are.
    sys.path[0] = str(Path(__file__).parents[1])

from shapes_vlm.drawing import draw
from shapes_vlm.evaluate import answerer
from shapes_vlm.lessons import going_on
from shapes_vlm.make_pairs import data_url
from shapes_vlm.questions import LISTING, listed
from shapes_vlm.scenes import Scene, scene_at
from shapes_vlm.vocabulary import END
from steering.building.generation import steered_everywhere
from steering.building.grains_options import GrainsOptions
from steering.building.overlay import overlay
from steering.building.pairs import Pair
from steering.building.scoring import Scorer, told
from steering.loading import LoadedModel, load_model
from vector_store.local import open_store

HERE = Path(__file__).parent
SIDE = 336
# A dev scene whose list goes on to what is not there.
TELLING = 8


def main() -> None:
    torch.set_num_threads(1)
    loaded = load_model(str(HERE / "model"), HERE, device="cpu")
    deltas = open_store(HERE / "profiles").get("honest").vectors.deltas
    answer = answerer(loaded.model, loaded.processor)
    scene = scene_at("dev", TELLING)
    (unsteered,) = answer([(draw(scene), LISTING)])
    with steered_everywhere(loaded, deltas):
        (steered,) = answer([(draw(scene), LISTING)])
    print(f"unsteered: {unsteered}\nsteered:   {steered}")
    draw_panels(scene, unsteered, steered, attributed(loaded, scene))


def attributed(loaded: LoadedModel, scene: Scene) -> Image.Image:
    """Return the scene under the scores of its pieces, for the true list over the one that goes on."""
    claimed = going_on(scene.kinds, scene.tempting)
    message = {"role": "user", "content": LISTING, "images": (data_url(scene),)}
    pair = Pair(1, (message,), listed(scene.kinds) + END, listed(claimed) + END)
    options = GrainsOptions(reading="shared", tokens=8, read="last_token")
    found = told(loaded, pair, Scorer(loaded, [pair], options).contrast(0))["image"]
    drawn = overlay(draw(scene, SIDE), found["scores"], found["ablated"])
    assert drawn is not None
    return Image.open(BytesIO(drawn))


def draw_panels(scene: Scene, unsteered: str, steered: str, scores: Image.Image) -> None:
    figure = Figure(figsize=(8, 4.9))
    left, right = figure.subplots(1, 2)
    left.imshow(draw(scene, SIDE))
    left.set_title("what is in the image?", fontsize=11)
    right.imshow(scores)
    right.set_title("which pieces speak for stopping (blue) or going on (red)", fontsize=10)
    for axes in (left, right):
        axes.set_axis_off()
    figure.text(0.04, 0.07, f"unsteered:  {unsteered}", fontsize=11, color="#b2182b")
    figure.text(0.04, 0.015, f"honest*1:   {steered}", fontsize=11, color="#2166ac")
    figure.subplots_adjust(left=0.02, right=0.98, top=0.92, bottom=0.13, wspace=0.05)
    figure.savefig(HERE / "picture.png", dpi=110)


if __name__ == "__main__":
    main()
