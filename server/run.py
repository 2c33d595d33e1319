"""A request on its way: its jobs, one a choice, and how far each choice has come."""

from collections.abc import Callable
from dataclasses import dataclass, field

from server.engine.protocol import FinishReason, GenerationJob, PositionLogprobs, TokenEvent
from server.tool_calls import PlainReader, Reader
from steering.types import SteeringPlan


@dataclass(frozen=True, slots=True)
class Run:
    """The jobs of one request, and what every part of its answer repeats.

    prompt_tokens: each prompt counted once, whatever its choices. reader: makes what parts a choice's words
    from its calls. include_usage: a stream ends with the
    usage; continuous_usage: every part of it says the usage so far.
    """

    id: str
    created: int
    model: str
    fingerprint: str
    jobs: tuple[GenerationJob, ...]
    prompt_tokens: int
    reader: Callable[[], Reader] = PlainReader
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False

    @property
    def sweeps(self) -> bool:
        """Whether the choices are steered differently."""
        return any(job.plan is not self.jobs[0].plan for job in self.jobs)

    def plan_of(self, index: int) -> SteeringPlan:
        return self.jobs[index].plan


@dataclass(slots=True)
class Choice:
    """One choice as far as it has come."""

    text: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    completion_tokens: int = 0
    steered_tokens: tuple[int, ...] = ()
    finish: FinishReason | None = None

    def add(self, event: TokenEvent) -> None:
        self.text.append(event.text)
        self.logprobs.extend(event.logprobs)
        self.prompt_logprobs = event.prompt_logprobs or self.prompt_logprobs
        self.completion_tokens = event.completion_tokens
        self.steered_tokens = event.steered_tokens
        self.finish = event.finish
