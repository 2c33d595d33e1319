"""Objectives of attribution as differentiable functions of some tokens' embeddings."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from steering.building.ablation import embed
from steering.building.activations import block_output
from steering.building.layout import Layout, side_by_side
from steering.building.pairs import TokenisedPair, TokenSequence
from steering.loading import LoadedModel

# Maps inputs [steps, length, hidden_size] to scores [steps], differentiably.
Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """An objective, the rows of `embed` that it is asked about, and the tokens of one pass."""

    objective: Objective
    inputs: Tensor
    tokens: int


def question(
    loaded: LoadedModel, ids: Sequence[int], moving: range, targets: range, per_token: bool = False
) -> Question:
    """Return the log-probability of the target tokens as a function of the moving tokens' embeddings.

    What comes before never changes, so it runs once and its keys and values are reused. targets: positions
    in ids, to its end, the first one beyond moving.start.
    """
    cache = prefix_cache(loaded, ids[: moving.start])
    after = embed(loaded, ids[moving.stop :]) if moving.stop < len(ids) else None
    wanted = torch.tensor(ids[targets.start :], device=loaded.device)
    scale = 1 / len(wanted) if per_token else 1.0
    # A position's logits predict the token after it.
    predicting = torch.arange(targets.start, len(ids), device=loaded.device) - 1 - moving.start
    layout = Layout(loaded, [ids])

    def objective(points: Tensor) -> Tensor:
        past = repeated(cache, len(points))
        with layout.passing():
            logits = loaded.model(
                inputs_embeds=followed(points, after),
                past_key_values=past,
                use_cache=past is not None,
                logits_to_keep=predicting,
            ).logits
        return scale * log_probability(logits, wanted)

    return Question(objective, embed(loaded, ids[moving.start : moving.stop]), len(ids) - moving.start)


def answers_contrast(
    loaded: LoadedModel,
    pair: TokenisedPair,
    moving: range,
    last_token: bool = False,
    per_token: bool = False,
) -> Question:
    """Return the preferred answer's log-probability minus the other's, or their last tokens' alone."""
    towards, away = (
        question(
            loaded,
            side.ids,
            moving,
            range(len(side.ids) - 1 if last_token else side.start, len(side.ids)),
            per_token,
        )
        for side in (pair.preferred, pair.dispreferred)
    )
    return contrast(towards, away)


def contrast(towards: Question, away: Question) -> Question:
    """Return the difference of two questions about the same embeddings."""

    def objective(points: Tensor) -> Tensor:
        return towards.objective(points) - away.objective(points)

    return Question(objective, towards.inputs, max(towards.tokens, away.tokens))


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the targets' [length] summed log-probability [steps]; logits [steps, length, vocabulary]."""
    losses = cross_entropy(logits.float().flatten(0, 1), targets.repeat(len(logits)), reduction="none")
    return -losses.view(len(logits), -1).sum(1)


def projection(
    loaded: LoadedModel, sequence: TokenSequence, moving: range, block: int, direction: Tensor
) -> Question:
    """Return the mean over the answer of the block's output, projected on direction [hidden_size].

    As a function of the moving tokens' embeddings: the answer's, or the prompt's before it.
    """
    unit = normalize(direction.float().to(loaded.device), dim=0)
    cache = prefix_cache(loaded, sequence.ids[: moving.start])
    after = embed(loaded, sequence.ids[moving.stop :]) if moving.stop < len(sequence.ids) else None
    layout = Layout(loaded, [sequence.ids])

    def objective(points: Tensor) -> Tensor:
        past = repeated(cache, len(points))
        inputs = followed(points, after)
        with layout.passing():
            output = block_output(
                loaded, block, inputs_embeds=inputs, past_key_values=past, use_cache=past is not None
            )
        return (output[:, sequence.start - moving.start :].float() @ unit).mean(1)

    moved = embed(loaded, sequence.ids[moving.start : moving.stop])
    return Question(objective, moved, len(sequence.ids) - moving.start)


def prefix_cache(loaded: LoadedModel, ids: Sequence[int]) -> Any:
    """Return the keys and values of tokens that never change, None where there are none."""
    if not ids:
        return None
    with torch.no_grad(), Layout(loaded, [ids]).passing():
        return loaded.model.get_decoder()(
            inputs_embeds=embed(loaded, ids)[None], use_cache=True
        ).past_key_values


def followed(points: Tensor, after: Tensor | None) -> Tensor:
    """Return points [steps, length, width] with the rows that come after them, which never change."""
    if after is None:
        return points
    return torch.cat(side_by_side([points, after.expand(len(points), -1, -1)]), dim=1)


def repeated(cache: Any, count: int) -> Any:
    """Return a copy of the cache for so many rows, since a forward pass writes into it."""
    past = copy.deepcopy(cache)
    if past is not None:
        past.batch_repeat_interleave(count)
    return past
