"""Directions equal what a reader would compute from the definitions."""

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from steering.building.ablation import BASELINES, ablate
from steering.building.activations import mean_activations, median_norms
from steering.building.attribution import AttributionOptions, attribute_answer, attribute_direction
from steering.building.contrastive_gradient import contrastive_gradient
from steering.building.generation import mean_log_probabilities
from steering.building.grains import first_component, grains
from steering.building.grains_options import ABLATION, PAPER, GrainsOptions
from steering.building.mean_difference import mean_difference
from steering.building.pairs import Pair, TokenisedPair, TokenSequence
from steering.building.scoring import Scorer, told
from steering.errors import InvalidPairs
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


@pytest.mark.parametrize("layer", [0, 2])
def test_the_contrastive_gradient_is_how_fast_steering_raises_the_margin(
    llama: LoadedModel, tokenised: Pairs, layer: int
) -> None:
    def margin(delta: Tensor) -> float:
        preferred = mean_log_probabilities(llama, [pair.preferred for pair in tokenised], {layer: delta})
        others = mean_log_probabilities(llama, [pair.dispreferred for pair in tokenised], {layer: delta})
        return fmean(preferred) - fmean(others)

    gradient = contrastive_gradient(llama, tokenised)[layer]
    for seed in range(3):
        step = 0.02 * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(seed))
        slope = (margin(step) - margin(-step)) / 2
        assert slope == pytest.approx(float(gradient @ step), rel=0.05, abs=1e-5)


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
    llama: LoadedModel, raw: tuple[Pair, ...], tokenised: Pairs
) -> None:
    baseline = BASELINES["mean"](llama)
    options = GrainsOptions(reading="response", attribution=AttributionOptions(), tokens=2)
    expected = torch.zeros(len(llama.blocks), llama.identity.hidden_size)
    for pair in tokenised[:2]:
        for sign, sequence in ((1, pair.preferred), (-1, pair.dispreferred)):
            scores = attribute_answer(llama, sequence, baseline).scores
            top = [sequence.start + int(place) for place in scores.topk(2).indices]
            both = mean_activations(llama, [sequence, ablate(sequence, top)], baseline)
            expected += sign * (both[:, 0] - both[:, 1]) / 2
    torch.testing.assert_close(grains(llama, raw[:2], options).vectors, expected, rtol=1e-4, atol=1e-5)


SHARED, AUTHORS = GrainsOptions(reading="shared", tokens=2), GrainsOptions(reading="authors", tokens=2)
VARIANTS = {
    "default": GrainsOptions(),
    "response": GrainsOptions(reading="response"),
    "paper": replace(PAPER, tokens=2),
    "shared component": replace(SHARED, summary="component"),
    "shared last token": replace(SHARED, last_token=True, read="last_token"),
    "authors": replace(AUTHORS, read="last_token", summary="unsigned_component"),
    "response last token": GrainsOptions(reading="response", tokens=2, last_token=True),
    "demonstration": GrainsOptions(reading="demonstration", tokens=2),
    "direction": GrainsOptions(reading="direction", tokens=2),
    "direction of a block": GrainsOptions(reading="direction", tokens=2, block=1),
    "influence on a block": GrainsOptions(block=1),
    "masked": GrainsOptions(tokens=2, ablation="mask"),
    "random tokens": GrainsOptions(tokens=2, control=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_the_same_finite_direction_at_each_block_twice(
    llama: LoadedModel, raw: tuple[Pair, ...], variant: str
) -> None:
    first, second = (grains(llama, raw[:4], VARIANTS[variant]) for _ in range(2))
    assert first.vectors.shape == (len(llama.blocks), llama.identity.hidden_size)
    assert bool((first.vectors.norm(dim=-1) > 0).all())
    assert torch.equal(first.vectors, second.vectors)


def test_only_what_the_reading_scores_is_taken_out(
    llama: LoadedModel, raw: tuple[Pair, ...], tokenised: Pairs
) -> None:
    start = tokenised[0].preferred.start
    for options, allowed in (
        (SHARED, range(1, start - 1)),
        (VARIANTS["default"], range(start, len(tokenised[0].preferred.ids))),
        (VARIANTS["demonstration"], range(start, len(tokenised[0].preferred.ids))),
    ):
        contrast = Scorer(llama, raw, options).contrast(0)
        assert set(contrast.towards.taken) <= set(allowed)
        assert 0 < len(contrast.towards.taken) <= 2


def test_influence_is_scored_along_the_other_pairs_gradient(
    llama: LoadedModel, raw: tuple[Pair, ...], tokenised: Pairs
) -> None:
    others = contrastive_gradient(llama, tokenised[1:3])[1]
    scored = Scorer(llama, raw[:3], GrainsOptions(block=1)).contrast(0)
    for side, sequence, sign in (
        (scored.towards, tokenised[0].preferred, 1),
        (scored.away, tokenised[0].dispreferred, -1),
    ):
        expected = attribute_direction(llama, sequence, 1, others, BASELINES["mean"](llama), ABLATION)
        assert side.scores == pytest.approx((sign * expected.scores).tolist(), rel=1e-3, abs=1e-5)
        ranked = sorted((-score, place) for place, score in enumerate(side.scores))
        assert side.taken == tuple(sequence.start + place for score, place in ranked[:2] if score < 0)


def test_a_masked_token_is_neither_attended_to_nor_read(llama: LoadedModel, tokenised: Pairs) -> None:
    sequence = tokenised[0].preferred
    place = sequence.start + 1
    other = replace(sequence, ids=(*sequence.ids[:place], 7, *sequence.ids[place + 1 :]))
    masked = mean_activations(llama, [ablate(sequence, [place]), ablate(other, [place])], None)
    torch.testing.assert_close(masked[:, 0], masked[:, 1])
    assert not torch.allclose(masked[:, 0], mean_activations(llama, [sequence])[:, 0], rtol=1e-3)


def test_attributions_that_do_not_add_up_are_no_vector(llama: LoadedModel, raw: tuple[Pair, ...]) -> None:
    hasty = AttributionOptions(steps=4, tolerance=1e-9, most_steps=8)
    with pytest.raises(InvalidPairs, match="completeness tolerance"):
        grains(llama, raw[:2], GrainsOptions(attribution=hasty))


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "mistral", "qwen3"])
def test_grains_is_built_for_other_families(
    tiny_model: Callable[[str], LoadedModel], raw: tuple[Pair, ...], family: str
) -> None:
    found = grains(tiny_model(family), raw[:2], GrainsOptions(tokens=2))
    assert bool((found.vectors.norm(dim=-1) > 0).all())


def test_what_is_told_of_a_pair_is_its_tokens_scores_and_choice(
    llama: LoadedModel, raw: tuple[Pair, ...]
) -> None:
    side = told(llama, raw[0], Scorer(llama, raw, VARIANTS["default"]).contrast(0))["preferred"]
    assert "".join(side["tokens"]) == raw[0].preferred
    assert len(side["scores"]) == len(side["tokens"])
    assert sorted(side["scores"])[-2:] == sorted(side["scores"][place] for place in side["ablated"])


def test_the_first_component_equals_scikit_learns_up_to_sign() -> None:
    rows = torch.tensor(np.random.default_rng(0).normal(size=(20, 7)) * np.arange(1, 8), dtype=torch.float32)
    found = first_component(rows)
    expected = PCA(n_components=1).fit(rows.numpy()).components_[0]
    assert abs(float(np.dot(found.numpy(), expected))) == pytest.approx(1, abs=1e-5)


def test_the_sign_of_a_component_comes_from_the_data() -> None:
    torch.manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(7), dim=0)
    rows = (torch.randn(20, 1) + 1.5) * axis + 0.01 * torch.randn(20, 7)
    assert float(torch.dot(first_component(rows), axis)) > 0.99
    assert float(torch.dot(first_component(-rows), axis)) < -0.99
