"""Attributions agree with plain autograd and account for the whole change of the objective."""

import numpy as np
import pytest
import torch
from torch import Tensor

from steering.building.ablation import BASELINES, ablate, embed, embed_ablated, strongest
from steering.building.attribution import (
    ablatable,
    answer_objective,
    attribute_answer,
    attribute_prompt,
    continuation_objective,
    integrated_gradients,
)
from steering.building.generation import mean_log_probabilities
from steering.building.pairs import TokenisedPair
from steering.loading import LoadedModel

Pairs = tuple[TokenisedPair, ...]


def test_a_linear_objective_is_attributed_exactly_in_one_step() -> None:
    torch.manual_seed(0)
    weights, inputs, baseline = torch.randn(5, 8), torch.randn(5, 8), torch.randn(8)
    found = integrated_gradients(lambda points: (points * weights).sum((1, 2)), inputs, baseline, steps=1)
    torch.testing.assert_close(found.scores, ((inputs - baseline) * weights).sum(-1))
    assert found.gap < 1e-5


def test_gauss_legendre_is_exact_where_the_gradient_is_a_polynomial() -> None:
    inputs = torch.tensor([[1.0], [2.0]])
    found = integrated_gradients(lambda points: points.pow(4).sum((1, 2)), inputs, torch.zeros(1), steps=2)
    torch.testing.assert_close(found.scores, torch.tensor([1.0, 16.0]))
    assert found.change == pytest.approx(17.0)


def test_integrated_gradients_equal_a_loop_of_autograd(llama: LoadedModel, tokenised: Pairs) -> None:
    sequence, baseline, steps = tokenised[0].preferred, BASELINES["mean"](llama), 20
    found = attribute_answer(llama, sequence, baseline, steps)
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


def test_enough_steps_account_for_the_change_on_a_model(llama: LoadedModel, tokenised: Pairs) -> None:
    baseline = BASELINES["mean"](llama)
    few, many = (attribute_answer(llama, tokenised[0].preferred, baseline, steps) for steps in (2, 200))
    assert many.gap < 0.02
    assert many.gap < few.gap


def test_prompt_scores_account_for_the_difference_of_both_answers(
    llama: LoadedModel, tokenised: Pairs
) -> None:
    pair, baseline = tokenised[0], BASELINES["mean"](llama)
    found = attribute_prompt(llama, pair, baseline, steps=200)
    assert found.scores.shape == (len(pair.prompt),)
    assert found.gap < 0.05


def test_objectives_are_the_models_log_probabilities(llama: LoadedModel, tokenised: Pairs) -> None:
    sequence = tokenised[0].preferred
    length = len(sequence.ids) - sequence.start
    expected = mean_log_probabilities(llama, [sequence], {})[0] * length
    prompt = embed(llama, sequence.ids[: sequence.start])[None]
    assert float(continuation_objective(llama, sequence)(prompt)) == pytest.approx(expected, rel=1e-4)
    logits = llama.model(input_ids=torch.tensor([sequence.ids])).logits[0, sequence.start - 1]
    first = float(torch.log_softmax(logits, dim=-1)[sequence.ids[sequence.start]])
    answer = embed(llama, sequence.ids[sequence.start :])[None]
    assert float(answer_objective(llama, sequence)(answer)) == pytest.approx(expected - first, rel=1e-4)


def test_an_objective_can_be_asked_twice(llama: LoadedModel, tokenised: Pairs) -> None:
    sequence = tokenised[0].preferred
    objective = answer_objective(llama, sequence)
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
