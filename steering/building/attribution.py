"""Contrastive integrated gradients: how much each token speaks for the preferred answer.

Source: GrAInS, arXiv 2507.18043, section 3; integrated gradients, arXiv 1703.01365. Two readings of
what is scored:
- `shared`, the paper's text: the prompt's tokens, by log p(preferred) - log p(dispreferred) given it;
- `response`, the authors' code: each answer's tokens, by that answer's own log-probability. Where the code
  looks at the last token's log-probability only, we sum over the answer.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steering.building.ablation import embed
from steering.building.pairs import TokenisedPair, TokenSequence
from steering.loading import LoadedModel

STEPS_AT_A_TIME = 16

# Maps inputs [steps, length, hidden_size] to scores [steps], differentiably.
Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Each token's share of the change of the objective from the baseline to the input.

    scores: float32 [length]; change: that difference; gap: how far the scores' sum misses it, relative to it.
    """

    scores: Tensor
    change: float
    gap: float


def integrated_gradients(objective: Objective, inputs: Tensor, baseline: Tensor, steps: int) -> Attribution:
    """Return the attribution of inputs [length, hidden_size] along the straight path from the baseline.

    baseline broadcasts against inputs. The integral is a Gauss-Legendre quadrature of `steps` points.
    """
    start = baseline.float().expand_as(inputs)
    difference = inputs.float() - start
    gradient = torch.zeros_like(difference)
    for positions, weights in quadrature(steps):
        points = start + torch.as_tensor(positions, device=inputs.device)[:, None, None] * difference
        gradients = gradients_at(objective, points.to(inputs.dtype))
        gradient += torch.einsum("s,slh->lh", torch.as_tensor(weights, device=inputs.device), gradients)
    scores = (gradient * difference).sum(-1)
    with torch.no_grad():
        ends = objective(torch.stack([start, inputs.float()]).to(inputs.dtype)).float()
    change = float(ends[1] - ends[0])
    return Attribution(scores.cpu(), change, abs(float(scores.sum()) - change) / max(abs(change), 1e-6))


def quadrature(steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the Gauss-Legendre positions in 0..1 and weights, in portions that run as one batch."""
    positions, weights = np.polynomial.legendre.leggauss(steps)
    portions = -(-steps // STEPS_AT_A_TIME)
    places = np.array_split(((positions + 1) / 2).astype(np.float32), portions)
    return list(zip(places, np.array_split((weights / 2).astype(np.float32), portions), strict=True))


def gradients_at(objective: Objective, points: Tensor) -> Tensor:
    with torch.enable_grad():
        points.requires_grad_(True)
        return torch.autograd.grad(objective(points).sum(), points)[0].float()


def attribute_answer(
    loaded: LoadedModel, sequence: TokenSequence, baseline: Tensor, steps: int
) -> Attribution:
    """Return the scores of the answer's tokens, [answer length], for log p(answer | prompt)."""
    inputs = embed(loaded, sequence.ids[sequence.start :])
    return integrated_gradients(answer_objective(loaded, sequence), inputs, baseline, steps)


def attribute_prompt(loaded: LoadedModel, pair: TokenisedPair, baseline: Tensor, steps: int) -> Attribution:
    """Return the scores of the prompt's tokens, [prompt length], for the difference of log-probabilities."""
    preferred = continuation_objective(loaded, pair.preferred)
    dispreferred = continuation_objective(loaded, pair.dispreferred)

    def contrast(points: Tensor) -> Tensor:
        return preferred(points) - dispreferred(points)

    return integrated_gradients(contrast, embed(loaded, pair.prompt), baseline, steps)


def answer_objective(loaded: LoadedModel, sequence: TokenSequence) -> Objective:
    """Return log p(answer | prompt) as a function of the answer's embeddings.

    The prompt never changes, so it runs once and its keys and values are reused. The first answer token
    is left out: nothing in the answer comes before it, so its term is a constant.
    """
    answer = torch.tensor(sequence.ids[sequence.start :], device=loaded.device)
    prompt = torch.tensor([sequence.ids[: sequence.start]], device=loaded.device)
    with torch.no_grad():
        cache = loaded.model.get_decoder()(input_ids=prompt, use_cache=True).past_key_values

    def objective(points: Tensor) -> Tensor:
        past = copy.deepcopy(cache)
        past.batch_repeat_interleave(len(points))
        logits = loaded.model(inputs_embeds=points, past_key_values=past, use_cache=True).logits
        return log_probability(logits[:, :-1], answer[1:])

    return objective


def continuation_objective(loaded: LoadedModel, sequence: TokenSequence) -> Objective:
    """Return log p(answer | prompt) as a function of the prompt's embeddings."""
    answer = embed(loaded, sequence.ids[sequence.start :])
    targets = torch.tensor(sequence.ids[sequence.start :], device=loaded.device)

    def objective(points: Tensor) -> Tensor:
        inputs = torch.cat([points, answer.expand(len(points), -1, -1)], dim=1)
        logits = loaded.model(inputs_embeds=inputs, use_cache=False, logits_to_keep=len(targets) + 1).logits
        return log_probability(logits[:, :-1], targets)

    return objective


def log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the targets' [length] summed log-probability [steps]; logits [steps, length, vocabulary]."""
    predicted = torch.log_softmax(logits.float(), dim=-1)
    return predicted.gather(2, targets.expand(len(logits), -1)[..., None]).sum((1, 2))


def ablatable(loaded: LoadedModel, ids: Sequence[int]) -> list[int]:
    """Return the prompt positions that may be taken out: no special token, and never the last one."""
    special = set(loaded.tokenizer.all_special_ids)
    return [place for place, token in enumerate(ids[:-1]) if token not in special]
