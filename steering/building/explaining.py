"""Why a pair's answers are as likely as they are: every token of the pair with its score."""

from collections.abc import Sequence
from dataclasses import dataclass

from steering.building.ablation import BASELINES, standing_in, strongest
from steering.building.attribution import (
    Attribution,
    ablatable,
    attribute_answer,
    attribute_prompt,
)
from steering.building.grains_options import GrainsOptions
from steering.building.highlighting import ScoredTokens
from steering.building.pairs import TokenisedPair
from steering.building.token_texts import token_texts
from steering.loading import LoadedModel

OBJECTIVES = {
    "prompt": "log p(preferred | prompt) - log p(dispreferred | prompt)",
    "preferred": "log p(preferred | prompt), without its first token",
    "dispreferred": "log p(dispreferred | prompt), without its first token",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """A part's tokens with the ones that a build would take out.

    Scores and change in nats: change is the objective's, from the baseline to the part, which the scores
    add up to but for the gap, a share of it. steps: gradients that were taken.
    """

    objective: str
    scored: ScoredTokens
    change: float
    gap: float
    steps: int


def explain_pair(loaded: LoadedModel, pair: TokenisedPair, options: GrainsOptions) -> tuple[Explanation, ...]:
    """Return the prompt by the contrast of its answers, and either answer by its own log-probability."""
    baseline = BASELINES[options.baseline](loaded)
    absent = standing_in(loaded, pair.prompt, baseline)
    prompt = attribute_prompt(loaded, pair, absent, options.attribution)
    parts = [explanation(loaded, "prompt", pair.prompt, prompt, ablatable(loaded, pair.prompt), options)]
    for side, sequence in (("preferred", pair.preferred), ("dispreferred", pair.dispreferred)):
        answer = sequence.ids[sequence.start :]
        found = attribute_answer(loaded, sequence, baseline, options.attribution)
        parts.append(explanation(loaded, side, answer, found, range(len(answer)), options))
    return tuple(parts)


def explanation(
    loaded: LoadedModel,
    part: str,
    ids: Sequence[int],
    found: Attribution,
    candidates: Sequence[int],
    options: GrainsOptions,
) -> Explanation:
    ablated = frozenset(strongest(found.scores, candidates, options.tokens))
    scored = ScoredTokens(part, token_texts(loaded, ids), tuple(found.scores.tolist()), ablated)
    return Explanation(OBJECTIVES[part], scored, found.change, found.gap, found.steps)
