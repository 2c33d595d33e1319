"""What all answers say alike: usage, log-probabilities, and the proof of steering."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired

from typing_extensions import TypedDict

from server.engine.protocol import TokenLogprob
from server.run import Run
from steering.types import Positions, SteeringPlan, Tokens

LEAST_LOGPROB = -9999.0  # OpenAI's word for "very unlikely"; JSON has no infinity


class PromptDetails(TypedDict):
    """cached_tokens: of the prompt, those that an earlier request's cache held."""

    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    prompt_tokens_details: NotRequired[PromptDetails]
    completion_tokens: int
    total_tokens: int


class SteeredTerm(TypedDict):
    """The proof of one term.

    choice: which one it is of, in a sweep. steered_tokens: the token positions that it moved.
    """

    choice: NotRequired[int]
    profile: str
    version: int
    digest: str
    strength: float
    layers: list[int]
    positions: Positions
    tokens: Tokens
    steered_tokens: int


def usage(run: Run, completion_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    """Return the counts; a prompt with several choices counts once, and its cache as the first found it."""
    details = {"prompt_tokens_details": {"cached_tokens": cached_tokens}} if cached_tokens else {}
    return {
        **details,
        "prompt_tokens": run.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": run.prompt_tokens + completion_tokens,
    }


def proof(run: Run, steered_tokens: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """Return the `steering` key that proves a steered answer; nothing for an unsteered one.

    steered_tokens: of each choice that the answer holds, the positions that each term moved. Choices that
    are steered alike share their terms; those of a sweep each have their own, with the choice's index.
    """
    if run.sweeps:
        own = [
            {"choice": index, **each}
            for index, steered in sorted(steered_tokens.items())
            for each in terms(run.plan_of(index), steered)
        ]
        return {"steering": own} if own else {}
    steered = [sum(tokens) for tokens in zip(*steered_tokens.values(), strict=True)]
    shared = terms(run.plan_of(0), steered)
    return {"steering": shared} if shared else {}


def terms(plan: SteeringPlan, steered_tokens: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "profile": term.vectors.name,
            "version": term.vectors.version,
            "digest": term.vectors.digest,
            "strength": term.strength,
            "layers": list(term.layers),
            "positions": term.positions,
            "tokens": term.tokens,
            "steered_tokens": steered,
        }
        for term, steered in zip(plan.terms, steered_tokens, strict=True)
    ]


def token_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": max(token.logprob, LEAST_LOGPROB),
        "bytes": list(token.bytes),
    }
