"""Choose next tokens: penalties, bias, temperature, truncation, and a random stream per request."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.protocol import SamplingParams
from steering.errors import GenerationFailed

# Candidates looked at first under top_p; the full vocabulary is sorted only when they do not suffice.
LIKELY = 256
# Below this a temperature would vanish in float32; it is greedy long before.
LOWEST_TEMPERATURE = 1e-6


class Sampler:
    """One request's way of choosing tokens.

    Each sampled token uses one number of the request's own random stream, so that neither neighbours nor
    the device change what a seed gives.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocabulary_size: int) -> None:
        self._params = params
        self._random = random.Random(params.seed)
        self._prompt = sorted(set(prompt)) if params.repetition_penalty != 1.0 else []
        self._counts: dict[int, int] = {}
        self._vocabulary_size = vocabulary_size

    @property
    def plain(self) -> bool:
        """Whether the choice is simply the likeliest token."""
        return self._params.temperature == 0.0 and not self._adjusts

    @property
    def _adjusts(self) -> bool:
        params = self._params
        return bool(
            params.logit_bias
            or params.repetition_penalty != 1.0
            or params.presence_penalty
            or params.frequency_penalty
        )

    def record(self, token: int) -> None:
        """Count a chosen token for the penalties."""
        self._counts[token] = self._counts.get(token, 0) + 1

    def choose(self, logits: Tensor) -> Tensor:
        """Return the next token, int64 scalar; logits float32 [vocabulary]."""
        if self._adjusts:
            logits = self._adjusted(logits.clone())
        if self._params.temperature == 0.0:
            return logits.argmax()
        tempered = (logits - logits.max()) / max(self._params.temperature, LOWEST_TEMPERATURE)
        return draw(tempered, self._params, self._random.random())

    def _adjusted(self, logits: Tensor) -> Tensor:
        self._penalise(logits)
        if self._params.logit_bias:
            tokens = torch.tensor(list(self._params.logit_bias), device=logits.device)
            logits[tokens] += torch.tensor(list(self._params.logit_bias.values()), device=logits.device)
        return logits

    def _penalise(self, logits: Tensor) -> None:
        """Repetition counts the prompt too and divides or multiplies; presence and frequency subtract."""
        penalty = self._params.repetition_penalty
        if penalty != 1.0:
            seen = torch.tensor(sorted({*self._prompt, *self._counts}), device=logits.device)
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        if self._counts:
            tokens = torch.tensor(list(self._counts), device=logits.device)
            counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype, device=logits.device)
            logits[tokens] -= self._params.presence_penalty + self._params.frequency_penalty * counts


def draw(logits: Tensor, params: SamplingParams, chance: float) -> Tensor:
    """Return a token drawn by inverting the truncated distribution at `chance` in [0, 1)."""
    probabilities = logits.softmax(-1)
    tokens: Tensor | None = None
    if 0 < params.top_k < logits.numel():
        probabilities, tokens = probabilities.topk(params.top_k)
    if params.top_p < 1.0:
        if tokens is None:
            probabilities, tokens = likeliest(probabilities, params.top_p)
        before = probabilities.cumsum(-1) - probabilities
        # top_p counts the mass that is left after top_k, as it does where the two are chained.
        probabilities = probabilities.where(before < params.top_p * probabilities.sum(), 0.0)
    if params.min_p > 0.0:
        probabilities = probabilities.where(probabilities >= params.min_p * probabilities.max(), 0.0)
    place = invert(probabilities, chance)
    return place if tokens is None else tokens[place]


def likeliest(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return probabilities and tokens, likeliest first, that hold at least top_p of the mass of one."""
    if probabilities.numel() > LIKELY:
        found, tokens = probabilities.topk(LIKELY)
        if bool(found.sum() >= top_p):
            # The mass beyond is kept as one last entry, so that top_p stays relative to the whole.
            return with_rest(found, tokens)
    return probabilities.sort(descending=True)


def with_rest(found: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    rest = (1.0 - found.sum()).clamp(min=0.0).reshape(1)
    return torch.cat([found, rest]), torch.cat([tokens, tokens[-1:]])


def invert(probabilities: Tensor, chance: float) -> Tensor:
    """Return the first place where the cumulative mass exceeds chance * total; mass zero is never chosen."""
    cumulative = probabilities.double().cumsum(-1)
    place = torch.searchsorted(cumulative, cumulative[-1:] * chance, right=True)
    return place.clamp(max=probabilities.numel() - 1)[0]


def choose_tokens(rows: Sequence[Tensor], samplers: Sequence[Sampler]) -> list[int | GenerationFailed]:
    """Return each row's next token, or why that row has none; rows float32 [vocabulary]."""
    if not rows:
        return []
    logits = torch.stack(list(rows))
    likeliest_values, chosen = logits.max(-1)
    failures: dict[int, GenerationFailed] = {}
    for row, sampler in enumerate(samplers):
        if not sampler.plain:
            try:
                chosen[row] = sampler.choose(logits[row])
            except Exception as error:
                failures[row] = GenerationFailed(f"sampling failed ({type(error).__name__})")
    for row, finite in enumerate(torch.isfinite(likeliest_values).tolist()):
        if not finite:
            failures[row] = GenerationFailed("the model's output is not finite; lower the steering strength")
    return [failures.get(row, token) for row, token in enumerate(chosen.tolist())]


def top_logprobs(logits: Tensor, token: int, count: int) -> list[tuple[int, float]]:
    """Return (token, log-probability) of the chosen token and then of the `count` likeliest ones."""
    logprobs = logits.log_softmax(-1)
    values, tokens = logprobs.topk(min(count, logits.numel()))
    return [(token, float(logprobs[token])), *zip(tokens.tolist(), values.tolist(), strict=True)]
