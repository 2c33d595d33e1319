"""From the fields of a request to how its tokens are chosen."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from server.engine.protocol import ModelCard, SamplingParams
from server.wire.sampling import SamplingFields
from steering.errors import ContextLengthExceeded, InvalidRequest
from steering.types import SteeringPlan

LEAST_TOP_P = 1e-6  # a top_p of 0 asks for the likeliest token, not for none


def sampling_of(
    request: SamplingFields, max_tokens: int, card: ModelCard, logprobs: int | None = None
) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=default(request.temperature, 1.0),
        top_p=max(LEAST_TOP_P, default(request.top_p, 1.0)),
        top_k=max(0, request.top_k or 0),
        min_p=default(request.min_p, 0.0),
        repetition_penalty=default(request.repetition_penalty, 1.0),
        presence_penalty=default(request.presence_penalty, 0.0),
        frequency_penalty=default(request.frequency_penalty, 0.0),
        logit_bias=logit_bias_of(request, card.vocabulary_size),
        seed=request.seed,
        stop=stop_of(request),
        stop_token_ids=stop_token_ids_of(request, card.vocabulary_size),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
    )


def default(value: float | None, absent: float) -> float:
    return absent if value is None else value


def max_tokens_of(
    asked: int | None,
    field: str,
    prompt_tokens: int,
    context_length: int,
    prompt: str = "messages",
    beside: str = "",
) -> int:
    """Return how many tokens may be generated: what was asked for, else the rest of the context.

    asked: 0 leaves all of the context to the prompt. field: where it was asked for; prompt: the field that
    holds the prompt, and beside: what else went into it.
    """
    holding = f"{prompt} and {beside}" if beside else prompt
    room = context_length - prompt_tokens
    if room < (0 if asked == 0 else 1):
        raise ContextLengthExceeded(
            f"there are {prompt_tokens} tokens in the {holding}, but this model's context is "
            f"{context_length} tokens, the completion included; shorten the {holding}",
            prompt,
        )
    if asked is None:
        return room
    if asked > room:
        raise ContextLengthExceeded(
            f"there are {prompt_tokens} tokens in the {holding}, and {field} is {asked}, together "
            f"{prompt_tokens + asked}, but this model's context is {context_length} tokens; "
            f"{field} can be {room} at most here",
            field,
        )
    return asked


def stop_of(request: SamplingFields) -> tuple[str, ...]:
    if request.stop is None:
        return ()
    return (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)


def logit_bias_of(request: SamplingFields, vocabulary_size: int) -> dict[int, float]:
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    for token in bias:
        check_tokens((token,), vocabulary_size, f"logit_bias.{token}")
    return bias


def stop_token_ids_of(request: SamplingFields, vocabulary_size: int) -> tuple[int, ...]:
    tokens = dict.fromkeys(request.stop_token_ids or ())
    check_tokens(tokens, vocabulary_size, "stop_token_ids")
    return tuple(tokens)


def check_tokens(tokens: Iterable[int], vocabulary_size: int, param: str) -> None:
    for token in tokens:
        if not 0 <= token < vocabulary_size:
            raise InvalidRequest(
                f"{str(token)[:40]} is no token of this model; ids go from 0 to {vocabulary_size - 1}", param
            )


def seeded_apart(sampling: SamplingParams, plans: Sequence[SteeringPlan]) -> list[SamplingParams]:
    """Return each choice's sampling: choices of one steering differ by seed, those of a sweep by strength."""
    return [reseeded(sampling, index) if plan is plans[0] else sampling for index, plan in enumerate(plans)]


def reseeded(sampling: SamplingParams, index: int) -> SamplingParams:
    """Return the sampling of one choice: a seed of its own, unlike those next to the caller's."""
    if sampling.seed is None or index == 0:
        return sampling
    digest = hashlib.blake2b(f"{sampling.seed}/{index}".encode(), digest_size=8).digest()
    return replace(sampling, seed=int.from_bytes(digest, "little", signed=True))
