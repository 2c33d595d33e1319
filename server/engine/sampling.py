"""Choose next tokens: penalties, bias, temperature, truncation, and a random stream per request."""

import hashlib
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.protocol import SamplingParams
from steering.errors import GenerationFailed, SteeringError

# Candidates looked at first under top_p; the full vocabulary is sorted only when they do not suffice.
LIKELY = 256
# Noise of 24 bits lies between -2.9 and 17.4: a token farther than this below the likeliest cannot win.
FARTHEST = 20.5
# SplitMix64's constants, as int64.
GOLDEN, MIX_FIRST, MIX_SECOND = (
    constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
# Below this a temperature would vanish in float32; it is greedy long before.
LOWEST_TEMPERATURE = 1e-6


class Sampler:
    """One request's way of choosing tokens.

    The noise of each step and token follows from the seed alone, so that neighbours, the device and being
    put back into the queue change what a seed gives only where two tokens are nearly tied.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocabulary_size: int) -> None:
        self._params = params
        self._seed = secrets.token_hex(8) if params.seed is None else params.seed
        self._step = 0
        self._prompt = sorted(set(prompt)) if params.repetition_penalty != 1.0 else []
        self._counts: dict[int, int] = {}
        self._vocabulary_size = vocabulary_size
        self._matcher = params.grammar.matcher() if params.grammar else None

    @property
    def plain(self) -> bool:
        """Whether the choice is simply the likeliest token."""
        return self._params.temperature == 0.0 and not self._adjusts and self._matcher is None

    @property
    def complete(self) -> bool:
        """Whether what was chosen satisfies its grammar and nothing may follow."""
        return self._matcher is not None and self._matcher.complete

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
        """Count a chosen token for the penalties, and take it through the grammar."""
        if self._matcher is not None:
            self._matcher.take(token)
        self._counts[token] = self._counts.get(token, 0) + 1

    def choose(self, logits: Tensor) -> Tensor:
        """Return the next token, int64 scalar; logits float32 [vocabulary]."""
        if self._adjusts:
            logits = self._adjusted(logits.clone())
        if self._matcher is not None:
            logits = logits.masked_fill(~self._matcher.allowed().to(logits.device), -torch.inf)
        if self._params.temperature == 0.0:
            return logits.argmax()
        tempered = (logits - logits.max()) / max(self._params.temperature, LOWEST_TEMPERATURE)
        self._step += 1
        return draw(tempered, self._params, noise_key(self._seed, self._step))

    def _adjusted(self, logits: Tensor) -> Tensor:
        if self._params.logit_bias:
            tokens = torch.tensor(list(self._params.logit_bias), device=logits.device)
            logits[tokens] += torch.tensor(list(self._params.logit_bias.values()), device=logits.device)
        self._penalise(logits)  # what was biased, as vLLM does
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


def draw(logits: Tensor, params: SamplingParams, key: int) -> Tensor:
    """Return a token of the truncated distribution: the largest of its logits plus Gumbel noise.

    logits float32 [vocabulary], divided by the temperature, the largest at zero. A logit that another
    batch size or device rounds otherwise changes the token only where two are nearly tied.
    """
    probabilities, tokens, mass = candidates(logits, params)
    kept = torch.ones_like(probabilities, dtype=torch.bool)
    if params.top_p < 1.0:
        kept &= probabilities.cumsum(-1) - probabilities < params.top_p * mass
    if params.min_p > 0.0:
        kept &= probabilities >= params.min_p * probabilities.max()
    noisy = logits[tokens].double() + gumbel_noise(key, tokens)
    return tokens[noisy.masked_fill(~kept, -torch.inf).argmax()]


def candidates(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return the probabilities and ids of the tokens that can be drawn, and their mass.

    Likeliest first if truncation needs it. top_p counts the mass that top_k left, as it does where the
    two are chained.
    """
    probabilities = logits.softmax(-1)
    if 0 < params.top_k < logits.numel():
        found, tokens = probabilities.topk(params.top_k)
        return found, tokens, found.sum()
    if params.top_p < 1.0:
        found, tokens = probabilities.topk(min(LIKELY, logits.numel()))
        if bool(found.sum() < params.top_p):
            found, tokens = probabilities.sort(descending=True)
        return found, tokens, 1.0
    tokens = (logits > -FARTHEST).nonzero().squeeze(-1)
    return probabilities[tokens], tokens, 1.0


def gumbel_noise(key: int, tokens: Tensor) -> Tensor:
    """Return standard Gumbel noise, float64, a pure function of the key and each token.

    Source: SplitMix64 (Steele, Lea and Flood, 2014) for the bits, of which 24 are used.
    """
    bits = tokens * GOLDEN + key
    for shift, factor in ((30, MIX_FIRST), (27, MIX_SECOND)):
        bits = (bits ^ shifted(bits, shift)) * factor
    bits = bits ^ shifted(bits, 31)
    uniform = (shifted(bits, 40).double() + 0.5) / 2**24
    return -torch.log(-torch.log(uniform))


def shifted(bits: Tensor, places: int) -> Tensor:
    """Return an unsigned right shift of int64."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def noise_key(seed: int | str, step: int) -> int:
    """Return 64 bits, signed, for one step of a request's random stream."""
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def choose_tokens(rows: Sequence[Tensor], samplers: Sequence[Sampler]) -> list[int | SteeringError]:
    """Return each row's next token, or why that row has none; rows float32 [vocabulary]."""
    if not rows:
        return []
    logits = torch.stack(list(rows))
    likeliest_values, chosen = logits.max(-1)
    failures: dict[int, SteeringError] = {}
    for row, sampler in enumerate(samplers):
        if not sampler.plain:
            try:
                chosen[row] = sampler.choose(logits[row])
            except SteeringError as error:
                failures[row] = error
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
