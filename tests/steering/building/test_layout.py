"""Building from images where a decoder is handed more than embeddings: as the family's own forward."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from steering.building.ablation import FILLS, embed, mean_embedding, standing_in
from steering.building.activations import mean_activations, median_norms, watching
from steering.building.attribution import AttributionOptions, attribute_context, attribute_prompt
from steering.building.builders import BUILDERS
from steering.building.choosing import Choice, option_scores
from steering.building.contrastive_gradient import across, steering_gradient
from steering.building.generation import generate_answers, mean_log_probabilities, steered_everywhere
from steering.building.grains_options import GrainsOptions
from steering.building.memo import Memo
from steering.building.objectives import answers_contrast, projection, question
from steering.building.pairs import (
    Pair,
    TokenSequence,
    parted,
    tokenise_demonstration,
    tokenise_pair,
    tokenise_prompt,
    tokenise_text,
)
from steering.building.pictured import replaced
from steering.building.progress import silent
from steering.building.scoring import READINGS
from steering.errors import InvalidPairs, ModelUnavailable
from steering.image_tokens import is_piece, pieces
from steering.loading import LoadedModel
from steering.picturing import pictured_of
from steering.types import Tokens
from steering.vision import ImageInputs, JoinedPrompt, opened
from steering.vision import joined as taken
from tests.server.engine.reference import (
    greedy_job,
    naive_tokens,
    naively_steered,
    random_vectors,
    term,
)
from tests.server.engine.test_seeing import noise
from tests.steering.building.test_pictured import url
from tests.tiny_vlms import VLMS

Loader = Callable[[str], LoadedModel]
# Positions along three axes; these and rows that the first blocks add; pieces that see each other.
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "gemma3")
# By seed; the smallest become images of 2 x 2 pieces, others of as many as the family makes of them.
SIZES = ((24, 20), (90, 40), (40, 120))
ANSWER = " a thing"


@pytest.fixture(params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tiny_vlm: Loader) -> LoadedModel:
    return tiny_vlm(request.param)


def asked(*seeds: int, words: str = "what is it") -> list[dict[str, Any]]:
    return [{"role": "user", "content": words, "images": tuple(url(seed, size(seed)) for seed in seeds)}]


def size(seed: int) -> tuple[int, int]:
    return SIZES[seed % len(SIZES)]


def as_the_model_has_it(
    loaded: LoadedModel, *seeds: int, words: str = "what is it"
) -> tuple[tuple[int, ...], ImageInputs | None]:
    """Return the family's own prompt for the same conversation."""
    parts = [{"type": "image"} for _ in seeds] + [{"type": "text", "text": words}]
    text = pictured_of(loaded).render([{"role": "user", "content": parts}])
    return pictured_of(loaded).prompt(text, [noise(size(seed), seed) for seed in seeds])


def plain_inputs(
    loaded: LoadedModel, answer: Sequence[int], *seeds: int, words: str = "what is it"
) -> dict[str, Tensor]:
    """Return what the family's own forward takes for the conversation and an answer."""
    prompt, images = as_the_model_has_it(loaded, *seeds, words=words)
    ids = torch.tensor([[*prompt, *answer]])
    tensors = dict(images.tensors) if images is not None else {}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in tensors:
            tensors[name] = torch.nn.functional.pad(tensors[name], (0, len(answer)))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **tensors}


def plain_log_probabilities(
    loaded: LoadedModel, answer: Sequence[int], *seeds: int, words: str = "what is it"
) -> Tensor:
    with torch.no_grad():
        logits = loaded.model(**plain_inputs(loaded, answer, *seeds, words=words)).logits
    told = logits[0, -len(answer) - 1 : -1].float().log_softmax(-1)
    return told.gather(1, torch.tensor(answer)[:, None])[:, 0]


def sequence(
    loaded: LoadedModel, *seeds: int, words: str = "what is it", answer: str = ANSWER
) -> TokenSequence:
    prompt = tokenise_prompt(loaded, asked(*seeds, words=words))
    return TokenSequence(prompt + tokenise_text(loaded, answer), len(prompt))


CONVERSATIONS: tuple[tuple[tuple[int, ...], str], ...] = (
    ((1,), "what is it"),
    ((2,), "and this here, what may it be"),
    ((0, 1), "are these alike"),
    ((), "no image"),
)


@pytest.mark.parametrize(("seeds", "words"), CONVERSATIONS)
@pytest.mark.parametrize("family", VLMS)
def test_an_answers_probability_is_that_under_the_familys_own_forward(
    family: str, seeds: tuple[int, ...], words: str, tiny_vlm: Loader
) -> None:
    loaded = tiny_vlm(family)
    found = mean_log_probabilities(loaded, [sequence(loaded, *seeds, words=words)], {})
    answer = tokenise_text(loaded, ANSWER)
    expected = plain_log_probabilities(loaded, answer, *seeds, words=words).mean()
    assert found[0] == pytest.approx(float(expected), abs=1e-5)


def test_a_batch_of_mixed_lengths_says_what_each_row_says_alone(loaded: LoadedModel) -> None:
    rows = [sequence(loaded, *seeds, words=words) for seeds, words in CONVERSATIONS]
    together = mean_log_probabilities(loaded, rows, {})
    alone = [mean_log_probabilities(loaded, [row], {})[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-5)
    activations = mean_activations(loaded, rows)
    for place, row in enumerate(rows):
        assert torch.allclose(activations[:, place], mean_activations(loaded, [row])[:, 0], atol=1e-4)


def test_answers_are_those_of_generate(loaded: LoadedModel) -> None:
    prompts = [tokenise_prompt(loaded, asked(*seeds, words=words)) for seeds, words in CONVERSATIONS]
    answered = generate_answers(loaded, prompts, {}, 8)
    for (seeds, words), found in zip(CONVERSATIONS, answered, strict=True):
        own = plain_inputs(loaded, (), *seeds, words=words)
        made = loaded.model.generate(**own, max_new_tokens=8, do_sample=False, pad_token_id=0)
        expected = made[0, own["input_ids"].shape[1] :].tolist()
        if loaded.tokenizer.eos_token_id in expected:
            expected = expected[: expected.index(loaded.tokenizer.eos_token_id)]
        assert found.ids[found.start :] == tuple(expected)


def test_mean_activations_are_those_of_the_familys_own_forward(loaded: LoadedModel) -> None:
    answer, shown = tokenise_text(loaded, ANSWER), dict[int, Tensor]()
    with torch.no_grad(), watching(loaded.blocks, shown.__setitem__):
        loaded.model(**plain_inputs(loaded, answer, 2, 0))
    found = mean_activations(loaded, [sequence(loaded, 2, 0)])
    for layer, hidden in shown.items():
        assert torch.allclose(found[layer, 0], hidden[0, -len(answer) :].mean(0), atol=1e-5)


@pytest.mark.parametrize("moving", ["all", "prompt", "answer"])
def test_objectives_are_the_familys_own_log_probability(loaded: LoadedModel, moving: str) -> None:
    asking = sequence(loaded, 1)
    end, start = len(asking.ids), asking.start
    places = {"all": range(end), "prompt": range(start), "answer": range(start, end)}[moving]
    targets = range(start + (moving == "answer"), end)
    put = question(loaded, asking.ids, places, targets)
    with torch.no_grad():
        found = put.objective(torch.stack([put.inputs] * 2))
    own = plain_log_probabilities(loaded, tokenise_text(loaded, ANSWER), 1)
    expected = float(own[targets.start - start :].sum())
    assert found.tolist() == pytest.approx([expected] * 2, abs=1e-4)


@pytest.mark.parametrize("of_prompt", [True, False])
def test_projections_are_those_of_the_familys_own_activations(loaded: LoadedModel, of_prompt: bool) -> None:
    asking, direction = sequence(loaded, 1), torch.randn(32, generator=torch.Generator().manual_seed(0))
    moving = range(asking.start) if of_prompt else range(asking.start, len(asking.ids))
    put = projection(loaded, asking, moving, 2, direction)
    with torch.no_grad():
        found = float(put.objective(put.inputs[None]))
    expected = mean_activations(loaded, [asking])[2, 0] @ normalize(direction, dim=0)
    assert found == pytest.approx(float(expected), abs=1e-4)


def test_the_contrastive_gradient_is_that_of_the_familys_own_forward(loaded: LoadedModel) -> None:
    answer = tokenise_text(loaded, ANSWER)
    outputs: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor) -> None:
        if not hidden.requires_grad:
            hidden.requires_grad_(True)
        outputs[layer] = hidden

    with watching(loaded.blocks, keep):
        logits = loaded.model(**plain_inputs(loaded, answer, 1)).logits[0, -len(answer) - 1 : -1].float()
    likely = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).mean()
    own = torch.autograd.grad(likely, [outputs[layer] for layer in range(len(loaded.blocks))])
    found = steering_gradient(loaded, sequence(loaded, 1))
    for layer, gradient in enumerate(own):
        expected = across(gradient[0], outputs[layer][0].detach()).sum(0)
        assert torch.allclose(found[layer], expected, atol=1e-5)


def test_options_of_a_question_are_as_likely_as_in_the_familys_own_forward(loaded: LoadedModel) -> None:
    options = tuple(tokenise_text(loaded, text) for text in ("one", "two of them", "none"))
    batch = [
        Choice(tokenise_prompt(loaded, asked(*seeds, words=words)), options) for seeds, words in CONVERSATIONS
    ]
    with torch.no_grad():
        found = option_scores(loaded, batch)
    for (seeds, words), scores in zip(CONVERSATIONS, found, strict=True):
        own = [plain_log_probabilities(loaded, option, *seeds, words=words).mean() for option in options]
        assert scores == pytest.approx([float(score) for score in own], abs=1e-5)


def test_an_example_with_an_image_comes_before_a_question_with_another(loaded: LoadedModel) -> None:
    shown, put = (Pair(1, tuple(asked(seed)), "yes it is", "no it is not") for seed in (1, 2))
    continued, place = tokenise_demonstration(loaded, shown, "an example", put)
    example, ids = tokenise_text(loaded, "an example"), continued.prompt
    assert ids[place.start : place.stop] == example
    assert len(pieces(ids[: place.start])) > 1 < len(pieces(ids[place.stop :]))
    # The words are the whole conversation's, and the images those of its two turns.
    head, tail = plain_inputs(loaded, (), 1), plain_inputs(loaded, (), 2)
    words = torch.tensor([[loaded.image_token if is_piece(token) else token for token in ids]])
    answer = continued.preferred.ids[len(ids) :]
    own = {"input_ids": torch.cat([words, torch.tensor([answer])], dim=1)}
    for name in head.keys() - {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}:
        own[name] = torch.cat([head[name], tail[name]])
    types = (own["input_ids"] == loaded.image_token).long()
    own |= {name: types for name in ("mm_token_type_ids", "token_type_ids") if name in head}
    with torch.no_grad():
        logits = loaded.model(**own).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        between = answers_contrast(loaded, continued, place, per_token=True)
        contrast = float(between.objective(between.inputs[None]))
    expected = logits.gather(1, torch.tensor(answer)[:, None]).mean()
    sides = mean_log_probabilities(loaded, [continued.preferred, continued.dispreferred], {})
    assert sides[0] == pytest.approx(float(expected), abs=1e-5)
    assert contrast == pytest.approx(sides[0] - sides[1], abs=1e-4)


@pytest.mark.parametrize("kind", ["all", "text", "image"])
@pytest.mark.parametrize("family", ["llava", *FAMILIES])
def test_answers_steered_by_kind_of_token_are_those_of_a_hook_that_counts_tokens(
    family: str, kind: Tokens, tiny_vlm: Loader
) -> None:
    loaded = tiny_vlm(family)
    calm = random_vectors("calm", loaded, [1, 2])
    prompts = [tokenise_prompt(loaded, asked(*seeds, words=words)) for seeds, words in CONVERSATIONS]
    answered = generate_answers(loaded, prompts, calm.deltas, 6, kind)
    unsteered = generate_answers(loaded, prompts, {}, 6)
    assert answered[:3] != unsteered[:3]
    assert (answered[3] == unsteered[3]) == (kind == "image")
    for (seeds, words), found in zip(CONVERSATIONS, answered, strict=True):
        prompt, images = as_the_model_has_it(loaded, *seeds, words=words)
        job = greedy_job("job", prompt, 6, term(calm, 1.0, tokens=kind), images=images)
        job = replace(job, sampling=replace(job.sampling, ignore_eos=False))
        expected = [each for each in naive_tokens(loaded, job) if each != loaded.tokenizer.eos_token_id]
        assert found.ids[found.start :] == tuple(expected)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_options_and_answers_are_as_likely_as_under_a_hook_that_counts_tokens(
    loaded: LoadedModel, kind: Tokens
) -> None:
    calm, answer = random_vectors("calm", loaded, [1, 2]), tokenise_text(loaded, ANSWER)
    rows = [sequence(loaded, *seeds, words=words) for seeds, words in CONVERSATIONS]
    found = mean_log_probabilities(loaded, rows, calm.deltas, kind)
    choices = [Choice(row.ids[: row.start], (answer,)) for row in rows]
    with torch.no_grad(), steered_everywhere(loaded, calm.deltas, kind):
        options = [score for (score,) in option_scores(loaded, choices)]
    for place, (seeds, words) in enumerate(CONVERSATIONS):
        prompt, images = as_the_model_has_it(loaded, *seeds, words=words)
        job = greedy_job("job", prompt, 1, term(calm, 1.0, tokens=kind), images=images)
        with naively_steered(loaded.blocks, job):
            own = float(plain_log_probabilities(loaded, answer, *seeds, words=words).mean())
        assert (found[place], options[place]) == pytest.approx((own, own), abs=1e-4)


def test_the_unit_of_a_dose_for_images_is_the_norm_of_their_pieces(loaded: LoadedModel) -> None:
    rows, shown = [sequence(loaded, seed) for seed in (1, 2)], dict[int, list[Tensor]]()
    for seed, row in zip((1, 2), rows, strict=True):

        def show(layer: int, hidden: Tensor, seen: list[int] = pieces(row.ids)) -> None:
            shown.setdefault(layer, []).append(hidden[0, seen].norm(dim=-1))

        with torch.no_grad(), watching(loaded.blocks, show):
            loaded.model(**plain_inputs(loaded, (), seed))
    expected = torch.stack([torch.cat(norms).median() for norms in shown.values()])
    assert torch.allclose(median_norms(loaded, rows, "image"), expected, atol=1e-4)


def joined(loaded: LoadedModel, *seeds: int) -> tuple[tuple[int, ...], ImageInputs, JoinedPrompt]:
    prompt, images = as_the_model_has_it(loaded, *seeds)
    assert images is not None
    with opened(loaded) as door, torch.no_grad():
        return prompt, images, door.join(prompt, images)


def last_activations(loaded: LoadedModel, handed: JoinedPrompt) -> list[Tensor]:
    """Return every block's output at the last token, for what the decoder is handed."""
    shown: dict[int, Tensor] = {}
    with opened(loaded) as door, torch.no_grad(), watching(loaded.blocks, shown.__setitem__):
        whole = handed.piece(0, len(handed.embeddings))
        with door.handing(whole):
            loaded.model.get_decoder()(inputs_embeds=whole["inputs_embeds"], use_cache=False)
    return [shown[layer][0, -1] for layer in range(len(loaded.blocks))]


def test_a_piece_that_is_taken_out_keeps_its_place_and_adds_the_mean_piece_inside(
    loaded: LoadedModel,
) -> None:
    asking = sequence(loaded, 1, answer="")
    asking = replace(asking, start=len(asking.ids) - 1)
    place, (_, _, own) = pieces(asking.ids)[1], joined(loaded, 1)
    mean = loaded.image_tokens.mean()
    embeddings = own.embeddings.clone()
    embeddings[place] = mean[:32]
    added = [rows.clone() for rows in own.added]
    for block, rows in enumerate(added, 1):
        rows[1] = mean[32 * block : 32 * (block + 1)]
    expected = last_activations(loaded, replace(own, embeddings=embeddings, added=tuple(added)))
    left = replace(asking, ablated=(place,))
    found = mean_activations(loaded, [asking, left], mean_embedding(loaded))
    for layer, hidden in enumerate(expected):
        assert torch.allclose(found[layer, 1], hidden, atol=1e-5)
    assert not torch.allclose(found[-1, 0], found[-1, 1], atol=1e-3)


def test_masked_pieces_are_not_attended_to(loaded: LoadedModel) -> None:
    # 0 and 3 have the same size, so that what follows them has the same positions.
    rows = [sequence(loaded, seed, answer="") for seed in (0, 3)]
    rows = [TokenSequence(row.ids, len(row.ids) - 1, tuple(pieces(row.ids))) for row in rows]
    first, second = mean_activations(loaded, rows, FILLS["mask"](loaded)).unbind(1)
    assert torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("method", ["integrated", "expected", "smooth", "gradient", "ablation"])
def test_words_and_pieces_are_attributed_together(loaded: LoadedModel, method: Any) -> None:
    pair = parted(tokenise_pair(loaded, Pair(1, tuple(asked(1)), "yes it is", "no it is not")))
    absent = standing_in(loaded, pair.prompt, mean_embedding(loaded))
    options = AttributionOptions(method=method, samples=2, most_steps=2048)
    found = attribute_prompt(loaded, pair, absent, options)
    assert len(found.scores) == len(pair.prompt)
    assert all(found.scores[place] for place in pieces(pair.prompt))
    assert found.gap < 0.05 or not options.adds_up


@pytest.mark.parametrize("reading", READINGS)
def test_every_reading_finds_directions_in_pairs_with_images(loaded: LoadedModel, reading: Any) -> None:
    pairs = [Pair(seed, tuple(asked(seed)), "yes it is", "no it is not") for seed in (1, 2, 3)]
    options = GrainsOptions(reading=reading, block=1)
    found = BUILDERS["grains"](loaded, pairs, options, silent, Memo())
    assert bool(found.vectors.isfinite().all())
    assert bool(found.vectors.any(dim=1).all())
    # The other readings score answers, which are words alone.
    assert ("image_share" in found.parameters) == (reading in ("shared", "authors", "context"))


@pytest.mark.parametrize("method", BUILDERS)
def test_every_method_finds_the_same_directions_whatever_was_seen_before(
    loaded: LoadedModel, method: str
) -> None:
    pairs = [Pair(seed, tuple(asked(seed)), "yes it is", "no it is not") for seed in (1, 2)]
    options = GrainsOptions(ablation="mask")
    first, _, again = (
        BUILDERS[method](loaded, found, options, silent, Memo()).vectors
        for found in (pairs, [Pair(9, tuple(asked(9, 4, words="these")), "a", "b")], pairs)
    )
    assert torch.equal(first, again)


def test_a_pieces_score_is_what_taking_it_out_does(loaded: LoadedModel) -> None:
    asking = sequence(loaded, 1)
    baseline, direction = mean_embedding(loaded), torch.randn(32, generator=torch.Generator().manual_seed(0))
    absent = standing_in(loaded, asking.ids[: asking.start], baseline)
    options = AttributionOptions(method="ablation")
    found = attribute_context(loaded, asking, 2, direction, absent, options)
    place = pieces(asking.ids)[1]
    rows = [asking, replace(asking, ablated=(place,))]
    whole, without = mean_activations(loaded, rows, baseline)[2] @ normalize(direction, dim=0)
    assert float(found.scores[place]) == pytest.approx(float(whole - without), abs=1e-4)


def test_words_are_left_as_they_are_by_images_that_were_seen(loaded: LoadedModel) -> None:
    words = sequence(loaded, words="nothing to see")
    before = mean_log_probabilities(loaded, [words], {}), mean_activations(loaded, [words])
    sequence(loaded, 2)
    generate_answers(loaded, [words.ids] * 3, {}, 2)
    assert mean_log_probabilities(loaded, [words], {}) == before[0]
    assert torch.equal(mean_activations(loaded, [words]), before[1])
    assert embed(loaded, words.ids).shape[1] == 32


@pytest.mark.parametrize(
    ("family", "what"), [("qwen3_vl", "positions"), ("gemma3", "masks"), ("qwen3_vl", "inner blocks")]
)
def test_what_does_not_follow_from_the_ids_is_refused(family: str, what: str, tiny_vlm: Loader) -> None:
    loaded = tiny_vlm(family)
    prompt, images, own = joined(loaded, 1)
    begin, _ = images.spans[0]
    if what == "positions":
        assert own.positions is not None
        own = replace(own, positions=own.positions + (torch.arange(len(prompt)) == len(prompt) - 1))
    elif what == "masks":
        # As in a family where the words of a prompt see each other, too.
        own = replace(own, masks={kind: torch.ones_like(mask) for kind, mask in own.masks.items()})
    else:
        assert own.seen is not None
        own = replace(own, seen=own.seen.roll(1))
    assert own.embeddings[begin].any()
    with pytest.raises(InvalidPairs, match=f"its images change {what} in a way"):
        replaced(loaded, prompt, images, own)


def test_one_mask_in_which_words_see_later_ones_is_refused() -> None:
    embeddings = torch.zeros(1, 3, 32)
    causal = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    assert taken({"inputs_embeds": embeddings, "attention_mask": causal}).masks == {}
    with pytest.raises(ModelUnavailable, match="attend to later ones"):
        taken({"inputs_embeds": embeddings, "attention_mask": torch.ones_like(causal)})


def test_images_of_other_shapes_are_other_pieces(tiny_vlm: Loader) -> None:
    loaded = tiny_vlm("qwen3_vl")
    counts = [len(pieces(tokenise_prompt(loaded, asked(seed)))) for seed in range(3)]
    assert any(first != second for first, second in pairwise(counts))
