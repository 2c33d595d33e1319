"""The profile that ships with the drawn-scene model: it takes away most of what the model makes up."""

from pathlib import Path

import pytest
from shapes_vlm.evaluate import answerer, ask
from shapes_vlm.make_pairs import listing_pairs
from shapes_vlm.measures import Measure, measure
from shapes_vlm.scenes import scene_at
from shapes_vlm.vocabulary import END

from steering.building.generation import Deltas, steered_everywhere
from steering.loading import LoadedModel, load_model
from vector_store.local import open_store
from vector_store.manifest import incompatibility

FOLDER = Path(__file__).parents[2] / "examples" / "shapes_vlm"
SCENES = 80


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(FOLDER / "model"), FOLDER, device="cpu")


def measured(loaded: LoadedModel, deltas: Deltas) -> dict[str, Measure]:
    with steered_everywhere(loaded, deltas):
        return measure(ask(answerer(loaded.model, loaded.processor), "test", SCENES))


def test_the_honest_profile_fits_its_model_and_takes_hallucinations_away(loaded: LoadedModel) -> None:
    profile = open_store(FOLDER / "profiles").get("honest")
    assert incompatibility(profile.manifest, loaded.identity) is None
    plain, honest = measured(loaded, {}), measured(loaded, profile.vectors.deltas)
    assert plain["chair_s"].share > 0.25
    assert plain["adversarial_hallucination"].share > 0.25
    assert honest["chair_s"].share <= 0.05
    assert honest["adversarial_hallucination"].share <= 0.1
    assert min(honest[kept].share for kept in ("list_recall", "existence_recall")) >= 0.95
    assert honest["counting_accuracy"].share >= 0.98


def test_listing_pairs_part_where_the_list_should_end() -> None:
    (pair,) = listing_pairs(scene_at("dev", 8))
    assert pair["preferred"].endswith(END)
    beginning = pair["preferred"].removesuffix(END)
    assert pair["dispreferred"].startswith(f"{beginning}, a ")
