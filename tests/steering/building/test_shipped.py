"""The profiles that ship are whole, work by their own evidence, and move answers on held-out prompts."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from steering.building.calibration import DamageBound
from steering.building.damage import measure_damage
from steering.building.evaluation import random_deltas
from steering.building.measuring import measure_by_metric, with_damage
from steering.building.metrics import read_metric
from steering.building.pairs import tokenise_prompt
from steering.building.questions import neutral_text
from steering.building.readers import read_prompts
from steering.embedded import EMBEDDED_ID
from steering.loading import LoadedModel, load_model
from vector_store.local import SHIPPED, LocalStore

EXAMPLES = Path(__file__).parents[3] / "examples" / "pairs"
NAMES = sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())
PROMPTS = 24


@pytest.fixture(scope="module")
def embedded() -> LoadedModel:
    cache_dir = os.environ.get("GRAINSERVE_CACHE_DIR")
    return load_model(None, Path(cache_dir) if cache_dir else user_cache_path("grainserve"))


def test_at_least_three_profiles_ship() -> None:
    assert len(NAMES) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_is_whole_and_works_by_its_evidence(name: str) -> None:
    profile = LocalStore(SHIPPED).get(name)
    manifest, evidence = profile.manifest, profile.manifest.evidence
    assert (manifest.name, manifest.version, manifest.model.id) == (name, 1, EMBEDDED_ID)
    assert manifest.pairs.digest == hashlib.sha256((EXAMPLES / f"{name}.jsonl").read_bytes()).hexdigest()
    report = json.loads((profile.path / "report.json").read_text())
    assert report["headline"] == evidence
    assert evidence["works"] is True
    assert evidence["items"] >= 50
    assert evidence["random"]["directions"] >= 30
    assert evidence["controls"].keys() == {"mean_difference", "random_tokens"} - {manifest.method}
    steered, unsteered = (
        {**evidence["fluency"][side], **evidence["damage"][side]} for side in ("steered", "unsteered")
    )
    bound = DamageBound()
    assert steered["log_probability"] >= unsteered["log_probability"] - bound.log_probability
    assert steered["distinct_2"] >= unsteered["distinct_2"] * bound.distinct_2
    assert steered["loss"] <= unsteered["loss"] * (1 + bound.loss)
    assert steered["accuracy"] >= unsteered["accuracy"] - bound.accuracy - 1e-9
    assert name in (profile.path / "report.html").read_text()
    for layer, delta in profile.vectors.deltas.items():
        norm = manifest.calibration["median_norms"][str(layer)]
        assert float(delta.norm()) == pytest.approx(manifest.calibration["dose"] * norm, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_moves_held_out_answers_visibly(embedded: LoadedModel, name: str) -> None:
    profile = LocalStore(SHIPPED).get(name)
    assert profile.manifest.model.fingerprint == embedded.identity.fingerprint
    prompts = read_prompts(EXAMPLES / f"{name}.test.jsonl")[:PROMPTS]
    metric = read_metric(EXAMPLES / f"{name}.metric.json")
    tokens = [tokenise_prompt(embedded, prompt) for prompt in prompts]
    measure = with_damage(
        measure_by_metric(embedded, tokens, metric, max_tokens=48),
        measure_damage(embedded, neutral_text().portion()),
    )
    deltas = profile.vectors.deltas
    unsteered, steered = measure({}, True), measure(deltas, True)
    random = measure(random_deltas(deltas, 1, seed=5)[0], False)
    assert steered.score > max(unsteered.score, random.score)
    assert DamageBound().leaves_the_rest(steered, unsteered)
    # A part of the held-out prompts scatters more than all of them: half the interval's low end is asked.
    low = profile.manifest.evidence["effect"]["low"]
    assert steered.score - unsteered.score > low / 2
