"""The values that steering is made of; all frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Positions = Literal["all", "prompt", "generated"]
Tokens = Literal["all", "text", "image"]


@dataclass(frozen=True, slots=True, eq=False)
class SteeringVectors:
    """One profile's vectors, ready to be added.

    deltas: layer -> float32 [hidden_size], scaled so that strength 1.0 is the calibrated dose.
    digest: SHA-256 of the stored tensors; two vectors with one digest are the same.
    """

    name: str
    version: int
    digest: str
    deltas: Mapping[int, Tensor]
    positions: Positions = "all"
    tokens: Tokens = "all"

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.deltas))


@dataclass(frozen=True, slots=True, eq=False)
class SteeringTerm:
    """One profile at one strength, on some layers, positions, and kinds of tokens."""

    vectors: SteeringVectors
    strength: float
    layers: tuple[int, ...]
    positions: Positions
    tokens: Tokens = "all"


@dataclass(frozen=True, slots=True, eq=False)
class SteeringPlan:
    """All the steering of one request; no terms: unsteered."""

    terms: tuple[SteeringTerm, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class LayerSteering:
    """What one block adds in one forward pass.

    tokens: int64 [n], flat positions in [batch * length]; None: all of them, in order.
    owner:  int64 [n], each token's row in delta; None: token i has row i.
    delta:  float32 [owners, hidden_size].
    """

    tokens: Tensor | None
    owner: Tensor | None
    delta: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SteeringBatch:
    """The steering of one forward pass: by layer, and how many tokens each term of each row moves."""

    layers: Mapping[int, LayerSteering]
    steered_tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What a model is, as far as steering vectors care: vectors built for one identity fit no other.

    fingerprint: SHA-256 over configuration, tokenizer, chat template and a sample of the weights.
    """

    id: str
    architecture: str
    layers: int
    hidden_size: int
    fingerprint: str
