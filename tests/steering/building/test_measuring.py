"""Effects are measured on answers steered by the kernel, and doses and intervals follow from them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steering.building import metrics
from steering.building.activations import median_norms
from steering.building.calibration import DamageBound, Setting, calibrate, deltas_at
from steering.building.damage import Damage
from steering.building.evaluation import ENOUGH_DIRECTIONS, evaluate, paired_interval, random_deltas
from steering.building.generation import Deltas, generate_answers, mean_log_probabilities, steered_everywhere
from steering.building.measuring import (
    Fluency,
    Outcome,
    distinct_bigrams,
    measure_by_margin,
    repeats_itself,
    with_damage,
)
from steering.building.metrics import read_metric
from steering.building.pairs import TokenisedPair, TokenSequence, tokenise_prompt, tokenise_text
from steering.building.reporting import report
from steering.errors import InvalidPairs, InvalidRequest
from steering.kernel import renormalised_add
from steering.loading import LoadedModel

Pairs = tuple[TokenisedPair, ...]


def test_steering_adds_exactly_what_the_kernel_adds(llama: LoadedModel, tokenised: Pairs) -> None:
    torch.manual_seed(0)
    delta, ids = torch.randn(llama.identity.hidden_size), torch.tensor([tokenised[0].prompt] * 2)
    caught: list[Tensor] = []

    def catch(_module: object, _inputs: object, output: Tensor) -> None:
        caught.append(output)

    with torch.no_grad():
        for deltas in ({}, {1: delta}):
            with steered_everywhere(llama, deltas):
                handle = llama.blocks[1].register_forward_hook(catch)
                llama.model(input_ids=ids)
                handle.remove()
    unsteered, steered = caught
    assert torch.equal(steered, renormalised_add(unsteered, delta))
    assert not torch.equal(steered, unsteered)


def test_answers_are_greedy_and_no_neighbour_changes_them(llama: LoadedModel, tokenised: Pairs) -> None:
    prompts = [tokenised[0].prompt, tokenised[1].prompt[2:], tokenised[2].prompt]
    together = generate_answers(llama, prompts, {}, 8)
    for prompt, answered in zip(prompts, together, strict=True):
        ids = list(prompt)
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(llama.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        length = len(answered.ids)
        assert answered.ids == tuple(ids[:length])
        assert length == len(ids) or ids[length] == llama.tokenizer.eos_token_id


def test_log_probabilities_are_aligned_with_the_tokens_that_they_predict(
    llama: LoadedModel, tokenised: Pairs
) -> None:
    sequences = [pair.preferred for pair in tokenised[:3]] + [tokenised[0].dispreferred]
    found = mean_log_probabilities(llama, sequences, {})
    for sequence, mean in zip(sequences, found, strict=True):
        with torch.no_grad():
            predicted = torch.log_softmax(llama.model(input_ids=torch.tensor([sequence.ids])).logits[0], -1)
        chosen = [float(predicted[t - 1, sequence.ids[t]]) for t in range(sequence.start, len(sequence.ids))]
        assert mean == pytest.approx(sum(chosen) / len(chosen), rel=1e-4)


def outcome(
    scores: Sequence[float],
    log_probability: float = -1.0,
    distinct: float = 1.0,
    loss: float = 4.0,
    right: int = 50,
) -> Outcome:
    """Return an outcome of constant fluency, with `right` of 100 questions answered right."""
    count = len(scores)
    fluency = Fluency((log_probability,) * count, (distinct,) * count)
    damage = Damage((loss,), (1,), (True,) * right + (False,) * (100 - right))
    return Outcome(tuple(scores), ("",) * count, fluency, damage)


def test_the_largest_effect_within_the_bound_is_chosen() -> None:
    """A stand-in model whose effect grows with the delta, and whose fluency breaks beyond 0.25."""

    def measure(deltas: Deltas, fluently: bool) -> Outcome:
        size = float(sum(delta.norm() for delta in deltas.values()))
        return outcome([size, size], log_probability=-1.0 if size < 0.26 else -5.0)

    settings = [Setting((0,), dose) for dose in (0.1, 0.2, 0.3, 0.25)]
    found = calibrate(torch.ones(1, 4), torch.ones(1), measure, settings, DamageBound(1.0, 0.9))
    assert found.chosen.setting.dose == 0.25
    assert [trial.admitted for trial in found.trials] == [True, True, False, True]
    with pytest.raises(InvalidPairs, match="smaller --dose"):
        calibrate(torch.ones(1, 4), torch.ones(1), measure, [Setting((0,), 0.5)], DamageBound(1.0, 0.9))


def test_of_settings_that_do_no_good_none_is_chosen_but_a_single_one_stands() -> None:
    """A stand-in model on which every dose works against the behaviour."""

    def measure(deltas: Deltas, fluently: bool) -> Outcome:
        return outcome([-sum(float(delta.norm()) for delta in deltas.values())])

    settings = [Setting((3,), 0.1), Setting((3,), 0.2)]
    vectors, norms = torch.ones(4, 2), torch.ones(4)
    with pytest.raises(InvalidPairs, match=r"none of the 2 .* block 3, dose 0.1: effect -0.1000; try other"):
        calibrate(vectors, norms, measure, settings)
    assert calibrate(vectors, norms, measure, settings[:1]).chosen.effect == pytest.approx(-0.1)


def test_doses_above_one_that_raises_the_loss_too_far_are_not_tried() -> None:
    def measure(deltas: Deltas, fluently: bool) -> Outcome:
        size = sum(float(delta.norm()) for delta in deltas.values())
        return outcome([size], loss=8.0 if 0.15 < size < 0.25 else 4.0)

    settings = [Setting((layer,), dose) for layer, dose in ((0, 0.1), (0, 0.2), (0, 0.3), (1, 0.3))]
    found = calibrate(torch.ones(2, 4), torch.ones(2), measure, settings)
    assert [trial.setting for trial in found.trials] == [settings[0], settings[1], settings[3]]


@pytest.mark.parametrize(
    ("steered", "admitted"),
    [
        (outcome([9.0]), True),
        (outcome([9.0], log_probability=-1.7), False),
        (outcome([9.0], log_probability=-0.1, distinct=0.5), False),
        (outcome([9.0], loss=4.19), True),
        (outcome([9.0], loss=4.21), False),
        (outcome([9.0], right=48), True),
        (outcome([9.0], right=47), False),
    ],
)
def test_each_cost_alone_breaks_the_bound(steered: Outcome, admitted: bool) -> None:
    assert DamageBound().admits(steered, outcome([0.0])) is admitted


@pytest.mark.parametrize(("loss", "admitted"), [(0.019, True), (0.023, False)])
def test_a_loss_near_nothing_may_rise_by_little_in_nats(loss: float, admitted: bool) -> None:
    assert DamageBound().admits(outcome([9.0], loss=loss), outcome([0.0], loss=0.001)) is admitted


@pytest.mark.parametrize(
    ("breaks_above", "breaks_below", "safe"),
    [
        (0.2, -0.2, [-1.5, 1.5]),
        (9.0, -9.0, [-2.0, 2.0]),
        (0.11, -0.06, [-0.5, 1.0]),
        (0.11, -0.01, [0.0, 1.0]),
    ],
)
def test_the_safe_range_ends_before_the_bound_breaks(
    breaks_above: float, breaks_below: float, safe: list[float]
) -> None:
    """A stand-in model whose loss doubles where the delta is beyond either end."""

    def measure(deltas: Deltas, fluently: bool) -> Outcome:
        size = sum(float(delta.sum()) for delta in deltas.values())
        return outcome([size], loss=4.0 if breaks_below < size < breaks_above else 8.0)

    found = calibrate(torch.tensor([[1.0, 0.0]]), torch.ones(1), measure, [Setting((0,), 0.1)])
    assert list(found.safe_strengths) == safe


def test_damage_is_measured_where_fluency_is(llama: LoadedModel, tokenised: Pairs) -> None:
    damage = Damage((1.0,), (1,), (True,))
    measure = with_damage(measure_by_margin(llama, tokenised[:2], 2), lambda deltas: damage)
    assert measure({}, True).damage == damage
    assert measure({}, False).damage is None


def test_choices_follow_the_log_probabilities_of_both_answers(llama: LoadedModel, tokenised: Pairs) -> None:
    found = measure_by_margin(llama, tokenised, 2)({}, False)
    assert found.choices is not None
    assert found.choices.per_token == tuple(margin > 0 for margin in found.scores)
    for pair, whole in zip(tokenised, found.choices.whole, strict=True):
        sums = [
            mean_log_probabilities(llama, [sequence], {})[0] * (len(sequence.ids) - sequence.start)
            for sequence in (pair.preferred, pair.dispreferred)
        ]
        assert whole is (sums[0] > sums[1])


def test_a_delta_is_as_long_as_its_dose_says(llama: LoadedModel, tokenised: Pairs) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(len(llama.blocks), llama.identity.hidden_size)
    norms = median_norms(llama, [pair.preferred for pair in tokenised])
    deltas = deltas_at(Setting((1, 3), 0.2), vectors, norms)
    assert sorted(deltas) == [1, 3]
    for layer, delta in deltas.items():
        assert float(delta.norm()) == pytest.approx(0.2 * float(norms[layer]), rel=1e-5)
        assert float(torch.cosine_similarity(delta, vectors[layer], dim=0)) == pytest.approx(1, abs=1e-5)


def test_random_directions_are_as_long_as_the_deltas_and_follow_the_seed() -> None:
    deltas = {2: torch.full((64,), 0.5), 5: torch.full((64,), 2.0)}
    found = random_deltas(deltas, 3, seed=1)
    for direction in found:
        for layer, delta in deltas.items():
            assert float(direction[layer].norm()) == pytest.approx(float(delta.norm()), rel=1e-5)
    assert torch.equal(found[2][5], random_deltas(deltas, 3, seed=1)[2][5])
    assert not torch.equal(found[0][5], found[1][5])


def test_the_interval_covers_a_constant_difference_and_widens_with_noise() -> None:
    exact = paired_interval([3.0, 4.0, 5.0], [1.0, 2.0, 3.0], seed=0)
    assert (exact.mean, exact.low, exact.high) == (2.0, 2.0, 2.0)
    noisy = paired_interval([3.0, -4.0, 5.0, 0.5], [0.0] * 4, seed=0)
    assert noisy.low < noisy.mean < noisy.high


@pytest.mark.parametrize(
    ("strength_counts", "few", "works"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_only_an_effect_that_beats_no_steering_and_chance_on_enough_items_works(
    strength_counts: bool, few: bool, works: bool
) -> None:
    target = torch.nn.functional.normalize(torch.arange(1.0, 65.0), dim=0)

    def measure(deltas: Deltas, fluently: bool) -> Outcome:
        along = sum(float(torch.dot(delta, target)) for delta in deltas.values()) * strength_counts
        return outcome([along + noise for noise in (0.1, 0.2, 0.3)] * (1 if few else 7))

    found = evaluate({0: target}, measure, random_directions=ENOUGH_DIRECTIONS)
    assert found.works is works
    assert evaluate({0: target}, measure, random_directions=ENOUGH_DIRECTIONS - 1).works is False
    assert found.effect(1.0).mean == pytest.approx(float(strength_counts))
    assert found.effect(-1.0).mean == pytest.approx(-float(strength_counts))


def test_every_strength_has_its_interval_and_its_costs_in_the_report() -> None:
    def measure(deltas: Deltas, fluently: bool) -> Outcome:
        size = sum(float(delta.sum()) for delta in deltas.values())
        return outcome([size, size + 1], loss=4 + abs(size))

    found = report(evaluate({0: torch.tensor([1.0])}, measure, random_directions=3), "m", -1, ["a", "b"])
    rows = found["dose_response"]
    assert [row["strength"] for row in rows] == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]
    for row in rows:
        assert row["score"] == pytest.approx(-row["strength"] - 0.5)
        assert row["loss"] == 4 + abs(row["strength"])
        assert (row["accuracy"], row["repetition"]) == (0.5, 0.0)
        if row["strength"]:
            assert row["effect"] == dict.fromkeys(("mean", "low", "high"), row["strength"])
            assert row["accuracy_change"] == {"share": 0, "error": 0}
    assert len(found["random_scores"]) == 3


def test_a_control_is_told_with_its_costs_and_how_far_the_profile_is_above_it() -> None:
    def measure(deltas: Deltas, fluently: bool) -> Outcome:
        size = sum(float(delta.sum()) for delta in deltas.values())
        return outcome([size, size + 1], loss=4 + abs(size))

    controls = {"mean_difference": {0: torch.tensor([0.25])}, "random_tokens": {0: torch.tensor([2.0])}}
    evaluation = evaluate({0: torch.tensor([1.0])}, measure, random_directions=3, controls=controls)
    found = report(evaluation, "m", -1, ["a", "b"])
    told = found["controls"]["mean_difference"]
    assert told["score"] == -0.75
    assert told["loss"] == 4.25
    assert told["effect"] == dict.fromkeys(("mean", "low", "high"), 0.25)
    assert told["advantage"] == dict.fromkeys(("mean", "low", "high"), 0.75)
    assert found["controls"]["random_tokens"]["advantage"]["mean"] == -1
    assert found["headline"]["controls"]["random_tokens"] == {
        "score": -2.5,
        "advantage": dict.fromkeys(("mean", "low", "high"), -1.0),
    }
    assert len(found["random_scores"]) == 3


def test_an_answer_repeats_itself_when_four_words_return() -> None:
    assert repeats_itself("the sea is wide, and The sea is wide")
    assert not repeats_itself("the sea is wide, and the sea is deep")
    assert not repeats_itself("one")


def test_distinct_bigrams_fall_with_repetition() -> None:
    assert distinct_bigrams("the sea is wide") == 1.0
    assert distinct_bigrams("so so so so so") == 0.25
    assert distinct_bigrams("one") == 1.0


@pytest.mark.parametrize(
    ("definition", "text", "expected"),
    [
        ({"kind": "lexicon", "positive": ["Joy"], "negative": ["sad"]}, "Joy, joy! Sad enjoy", 25.0),
        ({"kind": "regex", "positive": ["!"], "negative": []}, "Yes! No!", 100.0),
        ({"kind": "length"}, "It's three words.", 3.0),
    ],
)
def test_metrics_count_what_they_say(
    llama: LoadedModel, tmp_path: Path, definition: dict[str, object], text: str, expected: float
) -> None:
    path = tmp_path / "metric.json"
    path.write_text(json.dumps({"name": "m", "metric": definition}))
    assert read_metric(path).score(llama, [text, text]) == [expected] * 2


def test_the_models_own_logits_score_an_answer(llama: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "metric.json"
    definition = {"kind": "logits", "question": "Is it kind?", "yes": "Yes", "no": "Not"}
    path.write_text(json.dumps({"name": "kind", "metric": definition}))
    answers = ["Of course.", "No.", ""]
    expected = []
    for answer in answers:
        messages = [{"role": "user", "content": f"{answer}\n\nIs it kind?"}]
        prompt = tokenise_prompt(llama, messages)
        sums = []
        for text in ("Yes", "Not"):
            option = tokenise_text(llama, text)
            sequence = TokenSequence(prompt + option, len(prompt))
            sums.append(mean_log_probabilities(llama, [sequence], {})[0] * len(option))
        expected.append(sums[0] - sums[1])
    metric = read_metric(path)
    assert metric.score(llama, answers) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert metric.direction == 1


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"name": "m"}',
        '{"name": "m", "metric": {"kind": "loud"}}',
        '{"name": "m", "metric": {"kind": "length", "direction": 0}}',
        '{"name": "m", "metric": {"kind": "length", "direction": Infinity}}',
        '{"name": "m", "description": 7, "metric": {"kind": "length"}}',
        '{"name": "m", "metric": {"kind": "lexicon", "positive": [1], "negative": []}}',
        "[" * 200_000,
        '{"name": "m", "metric": {"kind": "logits", "question": "q", "yes": "a", "no": "a"}}',
        '{"name": "m", "metric": {"kind": "logits", "question": "q", "yes": "a"}}',
        '{"name": "m", "metric": {"kind": "regex", "positive": ["("], "negative": []}}',
        '{"kind": "regex", "positive": [], "negative": []}',
        '{"name": "m", "metric": {"kind": "lexicon", "positive": "happy", "negative": ["sad"]}}',
        '{"name": "m", "metric": {"kind": "lexicon", "positive": [], "negative": []}}',
        '{"name": "m", "metric": {"kind": "lexicon", "positive": ["New York"], "negative": []}}',
        '{"name": "m", "metric": {"kind": "regex", "positive": "happy", "negative": []}}',
        '{"name": "m", "metric": {"kind": "regex", "positive": ["x*"], "negative": []}}',
    ],
)
def test_a_bad_metric_is_refused_with_a_reason(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metric.json"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match="is not a metric"):
        read_metric(path)


def test_a_pattern_that_would_run_for_ever_ends_with_its_name(
    llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "SECONDS_PER_TEXT", 0.2)
    path = tmp_path / "metric.json"
    path.write_text('{"name": "m", "metric": {"kind": "regex", "positive": ["(a|aa)+$"], "negative": []}}')
    metric = read_metric(path)
    with pytest.raises(InvalidRequest, match="takes longer than"):
        metric.score(llama, ["a" * 60 + "b"])
