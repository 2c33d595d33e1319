"""A request's steering as it travels to vLLM's workers, inside `SamplingParams.extra_args`.

A term names its vectors by their digest: a worker that does not hold them fails, and steers by no others.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from safetensors.torch import load, save

from steering.types import SteeringPlan, SteeringTerm, SteeringVectors

KEY = "grainserve"


def loadable(term: SteeringTerm) -> SteeringVectors:
    """Return what of a term's profile a worker must hold: a subset of layers is vectors of its own."""
    if term.layers == term.vectors.layers:
        return term.vectors
    deltas = {layer: term.vectors.deltas[layer] for layer in term.layers}
    name = ",".join(map(str, sorted(deltas)))
    return replace(term.vectors, deltas=deltas, digest=f"{term.vectors.digest}:{name}")


def packed_request(
    plan: SteeringPlan, prompt_length: int, images: Sequence[tuple[int, int]] = ()
) -> dict[str, Any]:
    """Return extra_args for a request under a plan; images: spans of the prompt, (begin, end)."""
    terms = [
        {
            "digest": loadable(term).digest,
            "strength": term.strength,
            "positions": term.positions,
            "tokens": term.tokens,
        }
        for term in plan.terms
    ]
    told = {"terms": terms, "prompt_length": prompt_length, "images": [list(span) for span in images]}
    return {KEY: told | {"generated": generated_key(plan)}}


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker knows of a steered request, its vectors looked up."""

    plan: SteeringPlan
    prompt_length: int
    images: tuple[tuple[int, int], ...]


def unpacked_request(told: Mapping[str, Any], known: Mapping[str, SteeringVectors]) -> Told:
    """Return the request's plan; raises KeyError where vectors are not known."""
    terms = []
    for term in told["terms"]:
        vectors = known[term["digest"]]
        terms.append(
            SteeringTerm(vectors, term["strength"], vectors.layers, term["positions"], term["tokens"])
        )
    images = tuple((begin, end) for begin, end in told["images"])
    return Told(SteeringPlan(tuple(terms)), told["prompt_length"], images)


def packed_vectors(vectors: SteeringVectors) -> bytes:
    """Return a profile's deltas as safetensors, one float32 [hidden_size] a layer."""
    return save({str(layer): delta.float().clone() for layer, delta in vectors.deltas.items()})


def unpacked_vectors(digest: str, packed: bytes, layers: Sequence[int]) -> SteeringVectors:
    """Return the deltas of those layers that a worker owns."""
    deltas = {int(name): delta for name, delta in load(packed).items()}
    return SteeringVectors(digest, 0, digest, {layer: deltas[layer] for layer in layers if layer in deltas})


def prompt_salt(plan: SteeringPlan) -> str | None:
    """Return what keys the prefix cache of prompts that this plan moves; None: it leaves them alone."""
    return hashed([term for term in plan.terms if term.strength and term.positions != "generated"])


def generated_key(plan: SteeringPlan) -> str | None:
    """Return what keys the cache of generated tokens, None where they are moved as a prompt's words are.

    An answer is the next turn's prompt. Where generated tokens are steered otherwise than the same words of
    a prompt would be, what the cache holds of them serves nobody else.
    """
    moving = [term for term in plan.terms if term.strength]
    lopsided = any(term.positions != "all" and term.tokens != "image" for term in moving)
    return hashed(moving, positions=True) if lopsided else None


def hashed(terms: Sequence[SteeringTerm], positions: bool = False) -> str | None:
    if not terms:
        return None
    said = sorted(
        [loadable(term).digest, term.strength.hex(), term.tokens, term.positions if positions else ""]
        for term in terms
    )
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
