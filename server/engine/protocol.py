"""What an engine is: jobs go in, token events come out."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from prometheus_client import CollectorRegistry

from server.engine.grammar import Grammar
from steering.picturing import Pictured
from steering.types import ModelIdentity, SteeringPlan
from steering.vision import ImageInputs

FinishReason = Literal["stop", "length"]
EngineState = Literal["starting", "ready", "draining", "dead"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.
    logprobs: None for none, else how many alternatives to report beside each chosen token; prompt_logprobs:
    the same for the prompt's tokens, and then max_tokens may be 0. grammar: what the whole answer must match.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """One choice to generate: token ids of the rendered prompt, sampling, the steering plan, and images.

    images: None: words alone; else the tensors whose features stand where the prompt's image tokens are.
    siblings: jobs of one such name have the same prompt and images, so that one prefill may serve them all.
    continues: the answer's text goes on where the prompt's ends, rather than beginning anew.
    spelled: special tokens, by id, that have a text in this answer.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    plan: SteeringPlan = field(default_factory=SteeringPlan)
    images: ImageInputs | None = None
    siblings: str | None = None
    continues: bool = False
    spelled: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token and its natural-log probability under the model, before temperature and truncation."""

    token: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The chosen token and the likeliest ones at its position, likeliest first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What became certain since the last event.

    text: whole characters, never part of a stop string; may be empty.
    completion_tokens: tokens generated so far, the stop token included.
    prompt_logprobs: on the first event, if asked for: those of the prompt's tokens from the second one on.
    steered_tokens: so far, for each term of the plan, the token positions that it moved.
    cached_tokens: of the prompt, whose keys and values were there from an earlier request.
    finish: set on the last event only.
    """

    text: str
    completion_tokens: int
    logprobs: tuple[PositionLogprobs, ...] = ()
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    steered_tokens: tuple[int, ...] = ()
    cached_tokens: int = 0
    finish: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """reason says why the engine is not ready; running and waiting count requests."""

    state: EngineState
    reason: str | None = None
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The served model as the server sees it.

    tokenizer: a transformers tokenizer; context_length: prompt and completion together, in tokens.
    pictured: what makes prompts of messages with images, None: the model takes none. end_tokens: those that
    end an answer.
    """

    identity: ModelIdentity
    tokenizer: Any
    context_length: int
    vocabulary_size: int
    device: str
    dtype: str
    pictured: Pictured | None = None
    end_tokens: tuple[int, ...] = ()


class Engine(Protocol):
    """The seam above batching: an engine brings its own scheduler."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def registry(self) -> CollectorRegistry | None:
        """What the engine itself counts, for Prometheus."""

    def health(self) -> EngineHealth: ...

    async def start(self) -> None:
        """Return once jobs are served."""

    async def close(self) -> None:
        """Stop serving and free everything; running jobs end with EngineUnavailable."""

    def stream(self, job: GenerationJob) -> AsyncGenerator[TokenEvent, None]:
        """Admit the job now, or raise EngineOverloaded or EngineUnavailable; return its events.

        The generator ends after the event with `finish`; closing it earlier, even before the first
        event was read, cancels the job within one step. A job that fails raises GenerationFailed from
        the generator.
        """
        ...
