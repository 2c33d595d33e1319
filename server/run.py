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

    events: list[TokenEvent] = field(default_factory=list)

    def add(self, event: TokenEvent) -> None:
        self.events.append(event)

    @property
    def text(self) -> list[str]:
        return [event.text for event in self.events]

    @property
    def logprobs(self) -> list[PositionLogprobs]:
        return [position for event in self.events for position in event.logprobs]

    @property
    def prompt_logprobs(self) -> tuple[PositionLogprobs, ...]:
        return self.events[0].prompt_logprobs if self.events else ()

    @property
    def completion_tokens(self) -> int:
        return self.events[-1].completion_tokens if self.events else 0

    @property
    def cached_tokens(self) -> int:
        return self.events[0].cached_tokens if self.events else 0

    @property
    def steered_tokens(self) -> tuple[int, ...]:
        return self.events[-1].steered_tokens if self.events else ()

    @property
    def finish(self) -> FinishReason | None:
        return self.events[-1].finish if self.events else None
