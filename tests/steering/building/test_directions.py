"""Directions equal what a reader would compute from the definitions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from steering.building.ablation import BASELINES, ablate
from steering.building.activations import mean_activations, median_norms
from steering.building.attribution import attribute_answer
from steering.building.grains import GrainsOptions, first_component, grains
from steering.building.mean_difference import mean_difference
from steering.building.pairs import TokenisedPair, TokenSequence
from steering.loading import LoadedModel

Pairs = tuple[TokenisedPair, ...]


def block_outputs(loaded: LoadedModel, ids: tuple[int, ...]) -> list[Tensor]:
    """Return every block's output [length, hidden_size], each caught by a hook of its own."""
    caught: dict[int, Tensor] = {}
    for layer, block in enumerate(loaded.blocks):

        def catch(_module: object, _inputs: object, output: Tensor, layer: int = layer) -> None:
            caught[layer] = output[0]

        handle = block.register_forward_hook(catch)
        with torch.no_grad():
            loaded.model(input_ids=torch.tensor([ids]))
        handle.remove()
    return [caught[layer] for layer in range(len(loaded.blocks))]


def test_mean_difference_equals_one_computed_from_scratch(llama: LoadedModel, tokenised: Pairs) -> None:
    expected = torch.zeros(len(llama.blocks), llama.identity.hidden_size)
    for pair in tokenised:
        for sign, sequence in ((1, pair.preferred), (-1, pair.dispreferred)):
            hidden = block_outputs(llama, sequence.ids)
            expected += sign * torch.stack([h[sequence.start :].mean(0) for h in hidden]) / len(tokenised)
    torch.testing.assert_close(mean_difference(llama, tokenised), expected, rtol=1e-4, atol=1e-5)


def test_the_last_block_is_read_before_the_final_norm(llama: LoadedModel, tokenised: Pairs) -> None:
    sequence = TokenSequence(tokenised[0].prompt, len(tokenised[0].prompt) - 1)
    last = mean_activations(llama, [sequence])[-1, 0]
    with torch.no_grad():
        normed = llama.model.get_decoder().norm(last)
        logits = llama.model.lm_head(normed)
        expected = llama.model(input_ids=torch.tensor([sequence.ids])).logits[0, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_neighbour_in_the_batch_changes_no_activation(llama: LoadedModel, tokenised: Pairs) -> None:
    sequences = [pair.preferred for pair in tokenised[:3]] + [TokenSequence(tokenised[0].prompt, 1)]
    together = mean_activations(llama, sequences)
    alone = torch.cat([mean_activations(llama, [sequence]) for sequence in sequences], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_median_norms_are_those_of_the_answers_tokens(llama: LoadedModel, tokenised: Pairs) -> None:
    sequences = [pair.preferred for pair in tokenised[:3]]
    hidden = [block_outputs(llama, sequence.ids) for sequence in sequences]
    for layer in range(len(llama.blocks)):
        tokens = torch.cat([h[layer][s.start :] for h, s in zip(hidden, sequences, strict=True)])
        torch.testing.assert_close(median_norms(llama, sequences)[layer], tokens.norm(dim=-1).median())


def test_grains_is_the_shift_by_the_strongest_tokens_of_both_answers(
    llama: LoadedModel, tokenised: Pairs
) -> None:
    pairs, baseline, options = tokenised[:2], BASELINES["mean"](llama), GrainsOptions(tokens=2, steps=4)
    expected = torch.zeros(len(llama.blocks), llama.identity.hidden_size)
    for pair in pairs:
        for sign, sequence in ((1, pair.preferred), (-1, pair.dispreferred)):
            scores = attribute_answer(llama, sequence, baseline, 4).scores
            top = [sequence.start + int(place) for place in scores.topk(2).indices]
            both = mean_activations(llama, [sequence, ablate(sequence, top)], baseline)
            expected += sign * (both[:, 0] - both[:, 1]) / len(pairs)
    torch.testing.assert_close(grains(llama, pairs, options).vectors, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("summary", ["mean", "component"])
def test_the_shared_reading_changes_the_prompt_only(
    llama: LoadedModel, tokenised: Pairs, summary: str
) -> None:
    options = GrainsOptions(reading="shared", tokens=2, steps=4, summary=summary)
    found = grains(llama, tokenised[:4], options)
    assert found.vectors.shape == (len(llama.blocks), llama.identity.hidden_size)
    assert len(found.gaps) == 4
    assert bool(found.vectors.isfinite().all())


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "mistral"])
def test_grains_is_built_for_other_families(
    tiny_model: Callable[[str], LoadedModel], tokenised: Pairs, family: str
) -> None:
    found = grains(tiny_model(family), tokenised[:2], GrainsOptions(tokens=2, steps=2))
    assert bool((found.vectors.norm(dim=-1) > 0).all())


def test_the_first_component_equals_numpys_up_to_sign() -> None:
    rows = torch.tensor(np.random.default_rng(0).normal(size=(20, 7)) * np.arange(1, 8), dtype=torch.float32)
    found = first_component(rows)
    centred = rows.numpy() - rows.numpy().mean(0)
    expected = np.linalg.svd(centred)[2][0]
    assert abs(float(np.dot(found.numpy(), expected))) == pytest.approx(1, abs=1e-5)


def test_the_sign_of_a_component_comes_from_the_data() -> None:
    torch.manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(7), dim=0)
    rows = (torch.randn(20, 1) + 1.5) * axis + 0.01 * torch.randn(20, 7)
    assert float(torch.dot(first_component(rows), axis)) > 0.99
    assert float(torch.dot(first_component(-rows), axis)) < -0.99
