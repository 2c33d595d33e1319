"""Greedy answers and log-probabilities, with or without steering at every token or at those of a kind."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from steering.building.ablation import embed
from steering.building.layout import UNDER_WAY, Layout, bounds, side_by_side
from steering.building.pairs import TokenSequence
from steering.hooks import steered
from steering.image_tokens import FIRST, pieces
from steering.loading import LoadedModel
from steering.types import LayerSteering, SteeringBatch, Tokens

# layer -> what the kernel adds there, float32 [hidden_size]; empty: unsteered.
Deltas = Mapping[int, Tensor]

PROMPTS_AT_A_TIME = 64
SEQUENCES_AT_A_TIME = 8


def scaled(deltas: Deltas, strength: float) -> dict[int, Tensor]:
    return {layer: strength * delta for layer, delta in deltas.items()}


@contextmanager
def steered_everywhere(loaded: LoadedModel, deltas: Deltas, tokens: Tokens = "all") -> Iterator[None]:
    """Steer every token, or every word or piece of an image, of every forward pass inside the block.

    Tokens are told apart in passes of a steering.building.layout.Layout.
    """
    # One row for all tokens: it broadcasts.
    layers = {
        layer: LayerSteering(tokens=None, owner=None, delta=delta.float().to(loaded.device)[None])
        for layer, delta in deltas.items()
    }
    here = dict(layers) if tokens == "all" else {}
    with (
        steered(loaded.blocks) as steering,
        steering.applying(SteeringBatch(here, ())),
        told_apart(loaded, tokens, layers, here),
    ):
        yield


@contextmanager
def told_apart(
    loaded: LoadedModel, tokens: Tokens, layers: Mapping[int, LayerSteering], here: dict[int, LayerSteering]
) -> Iterator[None]:
    """Keep in `here` what is steered by the pass under way: its tokens of the kind alone, if it has some."""

    def choose(_decoder: nn.Module, _inputs: Any, handed: dict[str, Any]) -> None:
        start, end, rows = bounds(handed)
        seen = UNDER_WAY.get().seen(start, end).expand(rows, -1).flatten()
        chosen = (seen if tokens == "image" else ~seen).nonzero()[:, 0]
        here.clear()
        if len(chosen):
            here.update({layer: replace(steering, tokens=chosen) for layer, steering in layers.items()})

    if tokens == "all":
        yield
        return
    handle = cast(Any, loaded.model).get_decoder().register_forward_pre_hook(choose, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def generate_answers(
    loaded: LoadedModel,
    prompts: Sequence[tuple[int, ...]],
    deltas: Deltas,
    max_tokens: int,
    tokens: Tokens = "all",
) -> list[TokenSequence]:
    """Return each prompt with its greedy answer, the end token left out; start: the answer's first token."""
    answered = []
    for i in range(0, len(prompts), PROMPTS_AT_A_TIME):
        answered += generate_batch(loaded, prompts[i : i + PROMPTS_AT_A_TIME], deltas, max_tokens, tokens)
    return answered


def generate_batch(
    loaded: LoadedModel,
    prompts: Sequence[tuple[int, ...]],
    deltas: Deltas,
    max_tokens: int,
    tokens: Tokens,
) -> list[TokenSequence]:
    width = max(map(len, prompts))
    pad = padding_token(loaded)
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    attention = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    layout = Layout(loaded, prompts, attention, left=True, features=features(loaded, ids))
    with torch.no_grad(), steered_everywhere(loaded, deltas, tokens), layout.passing():
        outputs = loaded.model.generate(
            input_ids=as_words(loaded, ids),
            attention_mask=attention.to(loaded.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=pad,
        )
    ends = end_tokens(loaded)
    answers = [cut(answer, ends) for answer in outputs[:, width:].tolist()]
    return [
        TokenSequence(prompt + answer, len(prompt)) for prompt, answer in zip(prompts, answers, strict=True)
    ]


def as_words(loaded: LoadedModel, ids: Tensor) -> Tensor:
    """Return ids with the model's own token, if it has an embedding, for each piece of an image."""
    own = loaded.image_token or 0
    return ids.where(ids < FIRST, own if own < loaded.vocabulary_size else 0).to(loaded.device)


def features(loaded: LoadedModel, ids: Tensor) -> Tensor | None:
    """Return what the decoder is handed for ids [rows, length] with images; None: there are none."""
    rows = ids.tolist()
    if not any(map(pieces, rows)):
        return None
    return torch.stack(side_by_side([embed(loaded, row) for row in rows]))


def padding_token(loaded: LoadedModel) -> int:
    for token in (loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def end_tokens(loaded: LoadedModel) -> set[int]:
    configured = loaded.model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return {int(token) for token in (*ends, loaded.tokenizer.eos_token_id) if token is not None}


def cut(answer: list[int], ends: set[int]) -> tuple[int, ...]:
    """Return the answer up to the first end token."""
    length = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return tuple(answer[:length])


def mean_log_probabilities(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], deltas: Deltas, tokens: Tokens = "all"
) -> list[float]:
    """Return each sequence's mean natural-log probability per token from its start on; 0 for no tokens."""
    means: list[float] = []
    with torch.no_grad(), steered_everywhere(loaded, deltas, tokens):
        for i in range(0, len(sequences), SEQUENCES_AT_A_TIME):
            means += batch_log_probabilities(loaded, sequences[i : i + SEQUENCES_AT_A_TIME])
    return means


def batch_log_probabilities(loaded: LoadedModel, batch: Sequence[TokenSequence]) -> list[float]:
    rows = [torch.tensor(sequence.ids, device=loaded.device) for sequence in batch]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    places = torch.arange(ids.shape[1], device=loaded.device)
    ends = torch.tensor([len(row) for row in rows], device=loaded.device)[:, None]
    starts = torch.tensor([sequence.start for sequence in batch], device=loaded.device)[:, None]
    first = int(starts.min())
    attention = (places < ends).long()
    layout = Layout(loaded, [each.ids for each in batch], attention, features=features(loaded, ids))
    with layout.passing():
        logits = loaded.model(
            input_ids=as_words(loaded, ids),
            attention_mask=attention,
            use_cache=False,
            logits_to_keep=ids.shape[1] - first + 1,
        ).logits
    # The logits of a position predict the token after it.
    predicted = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    # Pieces of images are never predicted, but may stand beside what is.
    words = ids.where(ids < FIRST, 0)
    chosen = predicted.gather(2, words[:, first:, None])[..., 0]
    read = ((places >= starts) & (places < ends))[:, first:].float()
    return ((chosen * read).sum(1) / read.sum(1).clamp(min=1)).tolist()
