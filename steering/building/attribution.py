"""Contrastive gradient attribution: how much each token speaks for the preferred answer.

Source: GrAInS, arXiv 2507.18043, section 3; integrated gradients, arXiv 1703.01365; expected gradients,
arXiv 1906.10670; SmoothGrad, arXiv 1706.03825. What is scored, by which objective:
- `attribute_prompt`, the paper's text: the prompt's tokens, by log p(preferred) - log p(dispreferred);
- `attribute_answer`, the authors' code: an answer's tokens, by the answer's own log-probability;
- `attribute_demonstration`, ours: the tokens of an answer that stands in the conversation as an example, by
  how much likelier it makes another pair's preferred answer than its dispreferred one;
- `attribute_direction`, ours: an answer's tokens, by how far they move a block's output along a direction;
- `attribute_context`, ours: the prompt's tokens, by how far they move the answer's activations along it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steering.building.ablation import embed
from steering.building.layout import widened
from steering.building.objectives import Objective, Question, answers_contrast, projection, question
from steering.building.pairs import TokenisedPair, TokenSequence
from steering.building.paths import NODES, Path
from steering.loading import LoadedModel

# The completeness gap that an attribution must reach, and the gradients after which it may end without.
TOLERANCE, STEPS, MOST_STEPS = 0.05, 16, 512
# Tokens in one forward pass: what bounds the memory of gradients.
BATCH_TOKENS = 1024
SMOOTH_NOISE = 0.1

Method = Literal["integrated", "expected", "smooth", "gradient", "ablation"]


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Each token's share of the change of the objective from the baseline to the input.

    scores: float32 [length]; change: that difference; gap: how far the scores' sum misses it, relative to it;
    steps: gradients that were taken.
    """

    scores: Tensor
    change: float
    gap: float
    steps: int


@dataclass(frozen=True, slots=True)
class AttributionOptions:
    """How gradients become scores.

    method: `integrated` along the straight path from the baseline; `expected`, integrated from several
    baselines drawn from the embedding table; `smooth`, the gradient averaged over noisy inputs; `gradient`,
    at the input, both multiplied by input minus baseline; `ablation`, the objective's fall when the baseline
    stands in for that token alone.
    steps: gradients to begin with. tolerance: the completeness gap to reach by halving the rough parts of
    the path; infinite: one Gauss-Legendre rule of `steps`. most_steps: where the halving ends.
    samples: of baselines. noise: its deviation, a share of the inputs' root mean square.
    batch_tokens: tokens in one forward pass.
    """

    method: Method = "integrated"
    steps: int = STEPS
    tolerance: float = TOLERANCE
    most_steps: int = MOST_STEPS
    samples: int = 4
    noise: float = SMOOTH_NOISE
    batch_tokens: int = BATCH_TOKENS

    @property
    def adds_up(self) -> bool:
        """Whether scores must sum to the objective's change: a gap then tells of steps that are too few."""
        return self.method in ("integrated", "expected")


def attribute_answer(
    loaded: LoadedModel,
    sequence: TokenSequence,
    baseline: Tensor,
    options: AttributionOptions = AttributionOptions(),
    last_token: bool = False,
) -> Attribution:
    """Return the scores of the answer's tokens, [answer length], for log p(answer | prompt).

    The first answer token's own term is left out: nothing in the answer comes before it, so that an answer of
    one token scores 0. last_token: only the last token's log-probability is the objective.
    """
    end = len(sequence.ids)
    if end == sequence.start + 1:
        return Attribution(torch.zeros(1), 0.0, 0.0, 0)
    targets = range(end - 1 if last_token else sequence.start + 1, end)
    return attribute(
        loaded, question(loaded, sequence.ids, range(sequence.start, end), targets), baseline, options
    )


def attribute_sequence(
    loaded: LoadedModel,
    sequence: TokenSequence,
    baseline: Tensor,
    options: AttributionOptions = AttributionOptions(),
) -> Attribution:
    """Return the scores of prompt and answer, [length], for the log-probability of the last token alone.

    What the authors' code scores.
    """
    end = len(sequence.ids)
    return attribute(
        loaded, question(loaded, sequence.ids, range(end), range(end - 1, end)), baseline, options
    )


def attribute_prompt(
    loaded: LoadedModel,
    pair: TokenisedPair,
    baseline: Tensor,
    options: AttributionOptions = AttributionOptions(),
    last_token: bool = False,
) -> Attribution:
    """Return the scores of the prompt's tokens, [prompt length], for the difference of log-probabilities."""
    moving = range(len(pair.prompt))
    return attribute(loaded, answers_contrast(loaded, pair, moving, last_token), baseline, options)


def attribute_demonstration(
    loaded: LoadedModel,
    continued: TokenisedPair,
    demonstration: range,
    baseline: Tensor,
    options: AttributionOptions = AttributionOptions(),
) -> Attribution:
    """Return the scores of the demonstration's tokens, by the log-probability per token that they lend.

    continued: a pair whose prompt holds the demonstration: an earlier turn of the assistant.
    """
    asked = answers_contrast(loaded, continued, demonstration, per_token=True)
    return attribute(loaded, asked, baseline, options)


def attribute_direction(
    loaded: LoadedModel,
    sequence: TokenSequence,
    block: int,
    direction: Tensor,
    baseline: Tensor,
    options: AttributionOptions = AttributionOptions(),
) -> Attribution:
    """Return the scores of the answer's tokens, [answer length], by how far they move it along the direction.

    The objective is the mean over the answer of the block's output, projected on direction [hidden_size].
    """
    moving = range(sequence.start, len(sequence.ids))
    return attribute(loaded, projection(loaded, sequence, moving, block, direction), baseline, options)


def attribute_context(
    loaded: LoadedModel,
    sequence: TokenSequence,
    block: int,
    direction: Tensor,
    baseline: Tensor,
    options: AttributionOptions = AttributionOptions(),
) -> Attribution:
    """Return the scores of the prompt's tokens, [prompt length], by how far they move the answer so.

    The objective is that of attribute_direction; pieces of images are among the tokens.
    """
    moving = range(sequence.start)
    return attribute(loaded, projection(loaded, sequence, moving, block, direction), baseline, options)


def attribute(
    loaded: LoadedModel, asked: Question, baseline: Tensor, options: AttributionOptions
) -> Attribution:
    """Return the scores of the question's inputs; baseline [hidden_size] or [length, hidden_size]."""
    baseline = widened(baseline, asked.inputs.shape[-1])
    at_a_time = max(1, options.batch_tokens // asked.tokens)
    if options.method == "expected":
        drawn = sampled_baselines(loaded, asked.inputs, options.samples)
        found = [
            integrated_gradients(asked.objective, asked.inputs, each, options, at_a_time) for each in drawn
        ]
        return averaged(found)
    if options.method == "integrated":
        return integrated_gradients(asked.objective, asked.inputs, baseline, options, at_a_time)
    if options.method == "ablation":
        return single_ablations(asked.objective, asked.inputs, baseline, at_a_time)
    return local_gradients(asked.objective, asked.inputs, baseline, options, at_a_time)


def integrated_gradients(
    objective: Objective,
    inputs: Tensor,
    baseline: Tensor,
    options: AttributionOptions = AttributionOptions(),
    at_a_time: int = STEPS,
) -> Attribution:
    """Return the attribution of inputs [length, hidden_size] along the straight path from the baseline.

    baseline broadcasts against inputs. A part of the path whose scores miss the objective's change over it is
    halved until all that is missed, without regard to sign, is within the tolerance of the whole change.
    """
    path = Path(objective, inputs, baseline, at_a_time)
    if math.isinf(options.tolerance):
        parts, steps = path.parts([(0.0, 1.0)], options.steps), options.steps
    else:
        count = -(-options.steps // NODES)
        parts, steps = path.parts([(n / count, (n + 1) / count) for n in range(count)], NODES), count * NODES
    change = parts[-1].last - parts[0].first
    allowed = options.tolerance * abs(change)
    while sum(abs(part.missed) for part in parts) > allowed and steps < options.most_steps:
        rough = [part for part in parts if abs(part.missed) > allowed / len(parts)]
        halves = path.parts([half for part in rough for half in part.halves], NODES)
        parts = [part for part in parts if part not in rough] + halves
        steps += len(halves) * NODES
    return accounted(torch.stack([part.scores for part in parts]).sum(0), change, steps)


def local_gradients(
    objective: Objective, inputs: Tensor, baseline: Tensor, options: AttributionOptions, at_a_time: int
) -> Attribution:
    """Return (input - baseline) times the gradient, at the input or averaged over noisy copies of it."""
    path = Path(objective, inputs, baseline, at_a_time)
    copies, deviation = 1, 0.0
    if options.method == "smooth":
        copies, deviation = options.steps, options.noise * float(inputs.float().pow(2).mean().sqrt())
    scores = path.scores_around_input(copies, deviation).mean(0)
    first, last = path.values([0.0, 1.0])
    return accounted(scores, last - first, copies)


def single_ablations(objective: Objective, inputs: Tensor, baseline: Tensor, at_a_time: int) -> Attribution:
    """Return by how much the objective falls when the baseline stands in for each token alone.

    What integrated gradients would give on a path that moves only this token. They need not add up: the gap
    is what tokens do together. steps: forward passes of one sequence.
    """
    absent = baseline.to(inputs).expand_as(inputs)
    alone = torch.eye(len(inputs), dtype=torch.bool, device=inputs.device)[:, :, None]
    with torch.no_grad():
        whole, none = objective(torch.stack([inputs, absent])).float().cpu()
        left = [
            objective(torch.where(chosen, absent, inputs)).float().cpu() for chosen in alone.split(at_a_time)
        ]
    return accounted(whole - torch.cat(left), float(whole - none), len(inputs))


def averaged(found: Sequence[Attribution]) -> Attribution:
    scores = torch.stack([each.scores for each in found]).mean(0)
    change = sum(each.change for each in found) / len(found)
    return accounted(scores, change, sum(each.steps for each in found))


def accounted(scores: Tensor, change: float, steps: int) -> Attribution:
    return Attribution(
        scores.cpu(), change, abs(float(scores.sum()) - change) / max(abs(change), 1e-6), steps
    )


def sampled_baselines(loaded: LoadedModel, inputs: Tensor, samples: int) -> list[Tensor]:
    """Return baselines like inputs of words drawn from the vocabulary, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(loaded.vocabulary_size, (samples, len(inputs)), generator=generator)
    return [widened(embed(loaded, ids.tolist()).float(), inputs.shape[-1]) for ids in drawn]


def ablatable(loaded: LoadedModel, ids: Sequence[int]) -> list[int]:
    """Return the positions that may be taken out: no special token, and neither the first nor the last one.

    The first one is where attention rests that has nowhere to go; the last one is what is read.
    """
    special = set(loaded.tokenizer.all_special_ids)
    return [place for place in range(1, len(ids) - 1) if ids[place] not in special]
