"""Attributions agree with plain autograd and account for the whole change of the objective."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from steering.building.ablation import BASELINES, ablate, embed, embed_ablated, strongest
from steering.building.activations import mean_activations
from steering.building.attribution import (
    Attribution,
    AttributionOptions,
    ablatable,
    attribute_answer,
    attribute_demonstration,
    attribute_direction,
    attribute_prompt,
    attribute_sequence,
    integrated_gradients,
)
from steering.building.generation import mean_log_probabilities
from steering.building.objectives import Objective, Question, contrast, question
from steering.building.pairs import Pair, TokenisedPair, TokenSequence, tokenise_demonstration, tokenise_text
from steering.loading import LoadedModel

Pairs = tuple[TokenisedPair, ...]


def of_answer(loaded: LoadedModel, sequence: TokenSequence) -> Question:
    end = len(sequence.ids)
    return question(loaded, sequence.ids, range(sequence.start, end), range(sequence.start + 1, end))


def one_rule(steps: int) -> AttributionOptions:
    """Return options for one Gauss-Legendre rule of so many steps."""
    return AttributionOptions(steps=steps, tolerance=math.inf)


def test_a_linear_objective_is_attributed_exactly_in_one_step() -> None:
    torch.manual_seed(0)
    weights, inputs, baseline = torch.randn(5, 8), torch.randn(5, 8), torch.randn(8)
    found = integrated_gradients(lambda points: (points * weights).sum((1, 2)), inputs, baseline, one_rule(1))
    torch.testing.assert_close(found.scores, ((inputs - baseline) * weights).sum(-1))
    assert found.gap < 1e-5


def test_gauss_legendre_is_exact_where_the_gradient_is_a_polynomial() -> None:
    inputs = torch.tensor([[1.0], [2.0]])
    found = integrated_gradients(
        lambda points: points.pow(4).sum((1, 2)), inputs, torch.zeros(1), one_rule(2)
    )
    torch.testing.assert_close(found.scores, torch.tensor([1.0, 16.0]))
    assert found.change == pytest.approx(17.0)


def test_integrated_gradients_equal_a_loop_of_autograd(llama: LoadedModel, tokenised: Pairs) -> None:
    sequence, baseline, steps = tokenised[0].preferred, BASELINES["mean"](llama), 20
    found = attribute_answer(llama, sequence, baseline, one_rule(steps))
    expected = looped_scores(llama, tokenised[0], baseline, steps)
    torch.testing.assert_close(found.scores, expected, rtol=1e-3, atol=1e-3)


def looped_scores(loaded: LoadedModel, pair: TokenisedPair, baseline: Tensor, steps: int) -> Tensor:
    """Integrate over the whole sequence, one step at a time, no cache: only the answer's embeddings move."""
    sequence = pair.preferred
    whole, start = embed(loaded, sequence.ids), sequence.start
    difference = whole[start:] - baseline
    scores = torch.zeros(len(difference))
    nodes, shares = np.polynomial.legendre.leggauss(steps)
    for node, share in zip((nodes + 1) / 2, shares / 2, strict=True):
        answer = (baseline + float(node) * difference).requires_grad_(True)
        logits = loaded.model(inputs_embeds=torch.cat([whole[:start], answer])[None]).logits[0]
        predicted = torch.log_softmax(logits[start - 1 : -1], dim=-1)
        targets = torch.tensor(sequence.ids[start:])
        predicted.gather(1, targets[:, None]).sum().backward()
        assert answer.grad is not None
        scores += float(share) * (answer.grad * difference).sum(-1)
    return scores


def test_scores_equal_captums_on_the_same_function(llama: LoadedModel, tokenised: Pairs) -> None:
    sequence, baseline = tokenised[0].preferred, BASELINES["mean"](llama)
    asked = of_answer(llama, sequence)
    expected = IntegratedGradients(asked.objective).attribute(
        asked.inputs[None],
        baselines=baseline.expand_as(asked.inputs)[None],
        n_steps=20,
        method="gausslegendre",
    )
    found = attribute_answer(llama, sequence, baseline, one_rule(20))
    torch.testing.assert_close(found.scores, expected[0].sum(-1).float(), rtol=1e-4, atol=1e-4)


def kink(points: Tensor) -> Tensor:
    """A function that turns sharply at a tenth of the path."""
    return (20 * (points.sum((1, 2)) - 0.1)).tanh()


def test_a_rough_path_is_halved_where_it_is_rough_until_the_scores_add_up() -> None:
    inputs, baseline = torch.tensor([[0.6], [0.4]]), torch.zeros(1)
    fixed = integrated_gradients(kink, inputs, baseline, one_rule(16))
    adapted = integrated_gradients(kink, inputs, baseline, AttributionOptions(steps=16, tolerance=0.001))
    assert fixed.gap > 0.001
    assert adapted.gap < 0.001
    assert 16 < adapted.steps < 100
    torch.testing.assert_close(adapted.scores[0] / adapted.scores[1], torch.tensor(1.5))


def test_the_halving_ends_with_the_most_steps_and_tells_the_gap() -> None:
    found = integrated_gradients(
        lambda points: (points.sum((1, 2)) > 0.3).float() + 0 * points.sum((1, 2)),
        torch.ones(1, 1),
        torch.zeros(1),
        AttributionOptions(steps=8, tolerance=0.05, most_steps=24),
    )
    assert found.gap == pytest.approx(1.0)
    assert found.steps == 24


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_scores_account_for_the_change_on_models(
    tiny_model: Callable[[str], LoadedModel], tokenised: Pairs, family: str
) -> None:
    loaded = tiny_model(family)
    baseline = BASELINES["mean"](loaded)
    for pair in tokenised[:3]:
        assert attribute_answer(loaded, pair.preferred, baseline).gap < 0.05


def test_how_many_points_run_together_changes_nothing(llama: LoadedModel, tokenised: Pairs) -> None:
    baseline = BASELINES["mean"](llama)
    few, many = (
        attribute_answer(llama, tokenised[0].preferred, baseline, AttributionOptions(batch_tokens=tokens))
        for tokens in (1, 4096)
    )
    torch.testing.assert_close(few.scores, many.scores, rtol=1e-3, atol=1e-3)


def test_the_plain_gradient_is_the_smooth_one_without_noise(llama: LoadedModel, tokenised: Pairs) -> None:
    baseline, sequence = BASELINES["mean"](llama), tokenised[0].preferred
    plain = attribute_answer(llama, sequence, baseline, AttributionOptions(method="gradient"))
    still, noisy = (
        attribute_answer(llama, sequence, baseline, AttributionOptions(method="smooth", steps=4, noise=noise))
        for noise in (0.0, 0.1)
    )
    torch.testing.assert_close(plain.scores, still.scores, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain.scores, noisy.scores, rtol=1e-3)


def test_expected_gradients_average_over_sampled_baselines(llama: LoadedModel, tokenised: Pairs) -> None:
    baseline, sequence = BASELINES["mean"](llama), tokenised[0].preferred
    one, other = (
        attribute_answer(llama, sequence, baseline, AttributionOptions(method="expected", samples=2))
        for _ in range(2)
    )
    assert one.gap < 0.05
    torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-4)


def test_the_authors_reading_scores_prompt_and_answer_by_the_last_token(
    llama: LoadedModel, tokenised: Pairs
) -> None:
    sequence = tokenised[0].preferred
    found = attribute_sequence(llama, sequence, BASELINES["mean"](llama))
    assert found.scores.shape == (len(sequence.ids),)
    assert abs(float(found.scores[-1])) < 1e-6, "the last token does not predict itself"
    assert found.gap < 0.05


def test_a_demonstration_is_scored_by_what_it_does_to_another_pairs_answers(
    llama: LoadedModel, raw: tuple[Pair, ...]
) -> None:
    continued, place = tokenise_demonstration(llama, raw[0], raw[0].preferred, raw[1])
    assert continued.prompt[place.start : place.stop] == tokenise_text(llama, raw[0].preferred)
    found: Attribution = attribute_demonstration(llama, continued, place, BASELINES["mean"](llama))
    assert found.scores.shape == (len(place),)
    margins = mean_log_probabilities(llama, [continued.preferred, continued.dispreferred], {})
    nothing = demonstrated(llama, continued, place)(BASELINES["mean"](llama).expand(1, len(place), -1))
    assert found.change == pytest.approx(margins[0] - margins[1] - float(nothing), abs=2e-3)


def demonstrated(loaded: LoadedModel, continued: TokenisedPair, place: range) -> Objective:
    """Return the demonstration's objective as a function of its embeddings."""
    preferred, dispreferred = (
        question(loaded, side.ids, place, range(side.start, len(side.ids)), per_token=True)
        for side in (continued.preferred, continued.dispreferred)
    )
    return contrast(preferred, dispreferred).objective


def test_prompt_scores_account_for_the_difference_of_both_answers(
    llama: LoadedModel, tokenised: Pairs
) -> None:
    pair, baseline = tokenised[0], BASELINES["mean"](llama)
    found = attribute_prompt(llama, pair, baseline)
    assert found.scores.shape == (len(pair.prompt),)
    assert found.gap < 0.05


def test_objectives_are_the_models_log_probabilities(llama: LoadedModel, tokenised: Pairs) -> None:
    sequence = tokenised[0].preferred
    length = len(sequence.ids) - sequence.start
    expected = mean_log_probabilities(llama, [sequence], {})[0] * length
    prompt = embed(llama, sequence.ids[: sequence.start])[None]
    of_prompt = question(llama, sequence.ids, range(sequence.start), range(sequence.start, len(sequence.ids)))
    assert float(of_prompt.objective(prompt)) == pytest.approx(expected, rel=1e-4)
    logits = llama.model(input_ids=torch.tensor([sequence.ids])).logits[0, sequence.start - 1]
    first = float(torch.log_softmax(logits, dim=-1)[sequence.ids[sequence.start]])
    answer = embed(llama, sequence.ids[sequence.start :])[None]
    assert float(of_answer(llama, sequence).objective(answer)) == pytest.approx(expected - first, rel=1e-4)


def test_an_objective_can_be_asked_twice(llama: LoadedModel, tokenised: Pairs) -> None:
    sequence = tokenised[0].preferred
    objective = of_answer(llama, sequence).objective
    answer = embed(llama, sequence.ids[sequence.start :])[None]
    assert torch.equal(objective(answer), objective(answer))


def test_the_last_prompt_token_and_special_tokens_are_never_ablated(
    llama: LoadedModel, tokenised: Pairs
) -> None:
    prompt = tokenised[0].prompt
    places = ablatable(llama, prompt)
    assert len(prompt) - 1 not in places
    assert llama.tokenizer.decode([prompt[place] for place in places]) == "say 0"


def test_only_tokens_that_speak_for_the_answer_are_strongest() -> None:
    scores = torch.tensor([3.0, -1.0, 5.0, 0.0, 4.0])
    assert strongest(scores, range(5), 2) == [2, 4]
    assert strongest(scores, range(5), 10) == [2, 4, 0]
    assert strongest(scores, [0, 1], 10) == [0]


def test_ablated_positions_carry_the_baseline_and_the_others_their_embedding(
    llama: LoadedModel, tokenised: Pairs
) -> None:
    sequence, baseline = tokenised[0].preferred, BASELINES["pad"](llama)
    before = embed(llama, sequence.ids)
    found = embed_ablated(llama, ablate(sequence, [2, 0]), baseline)
    assert torch.equal(found[[0, 2]], baseline.expand(2, -1))
    assert torch.equal(found[[1, 3]], before[[1, 3]])
    assert torch.equal(before, embed(llama, sequence.ids))


def test_the_mean_baseline_is_the_mean_of_the_table(llama: LoadedModel) -> None:
    table = llama.model.get_input_embeddings().weight
    torch.testing.assert_close(BASELINES["mean"](llama), table.mean(0))


@pytest.mark.parametrize("last_token", [True, False])
def test_an_answer_of_one_token_scores_nothing_since_nothing_in_it_comes_before(
    llama: LoadedModel, tokenised: Pairs, last_token: bool
) -> None:
    sequence = tokenised[0].preferred
    short = TokenSequence(sequence.ids[: sequence.start + 1], sequence.start)
    found = attribute_answer(llama, short, BASELINES["mean"](llama), last_token=last_token)
    assert (found.scores.tolist(), found.change, found.gap) == ([0.0], 0.0, 0.0)


def test_a_single_ablation_is_scored_by_what_the_objective_loses(
    llama: LoadedModel, tokenised: Pairs
) -> None:
    sequence, baseline = tokenised[0].preferred, BASELINES["mean"](llama)
    direction = torch.randn(llama.identity.hidden_size, generator=torch.Generator().manual_seed(0))
    options = AttributionOptions(method="ablation", batch_tokens=2 * len(sequence.ids))
    found = attribute_direction(llama, sequence, 1, direction, baseline, options)
    without = [ablate(sequence, [place]) for place in range(sequence.start, len(sequence.ids))]
    states = mean_activations(llama, [sequence, *without], baseline)[1]
    along = states @ torch.nn.functional.normalize(direction, dim=0)
    torch.testing.assert_close(found.scores, along[0] - along[1:], rtol=1e-3, atol=1e-5)
    assert found.steps == len(without)


def test_a_direction_is_scored_by_the_projection_of_a_blocks_output(
    llama: LoadedModel, tokenised: Pairs
) -> None:
    sequence, baseline = tokenised[0].preferred, BASELINES["mean"](llama)
    direction = torch.randn(llama.identity.hidden_size, generator=torch.Generator().manual_seed(0))
    found = attribute_direction(llama, sequence, 1, direction, baseline)
    assert found.gap < 0.05
    ablated = ablate(sequence, range(sequence.start, len(sequence.ids)))
    turned = [
        projection(llama, embed_ablated(llama, each, baseline), sequence.start, direction)
        for each in (sequence, ablated)
    ]
    assert found.change == pytest.approx(turned[0] - turned[1], abs=1e-4)


def projection(loaded: LoadedModel, embeddings: Tensor, start: int, direction: Tensor) -> float:
    states = loaded.model(inputs_embeds=embeddings[None], output_hidden_states=True).hidden_states[2][0]
    return float((states[start:] @ direction).mean() / direction.norm())
