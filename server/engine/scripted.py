"""The fake engine that ships: it answers from a script, byte by byte, without a model.

By default it repeats the last user message, with the steering in front: `cheerful*0.8: hello`. It obeys
max_tokens, stop strings, stop tokens and cancellation, counts steered tokens as a model's engine does,
and can be made slow, full, broken or dead.
"""

import asyncio
import codecs
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

from prometheus_client import CollectorRegistry

from server.engine.byte_tokenizer import END, START, byte_tokenizer
from server.engine.protocol import (
    EngineHealth,
    EngineState,
    GenerationJob,
    ModelCard,
    PositionLogprobs,
    TokenEvent,
    TokenLogprob,
)
from steering.errors import COME_BACK, EngineOverloaded, EngineUnavailable, GenerationFailed
from steering.types import ModelIdentity, SteeringPlan, SteeringTerm

Script = Callable[[GenerationJob], str]

IDENTITY = ModelIdentity(
    id="scripted", architecture="ScriptedForCausalLM", layers=4, hidden_size=8, fingerprint="5c" * 32
)
LOGPROB = -0.5


def echo(job: GenerationJob) -> str:
    """Return the last user message, behind the steering that was asked for."""
    conversation = bytes(token for token in job.prompt if token < 256).decode(errors="replace")
    question = conversation.rpartition("user\n")[2].removesuffix("\nassistant\n")
    said = "+".join(f"{term.vectors.name}*{term.strength:g}" for term in job.plan.terms)
    return f"{said}: {question}" if said else question


class ScriptedEngine:
    """See server.engine.protocol.Engine.

    script: job -> answer. delay: seconds a token takes. capacity: jobs at once, more are refused.
    fail_on: an answer fails where this text would begin. cached_tokens: of every prompt.
    jobs, cancelled: what was asked for, and the ids that were closed before their end.
    """

    registry: CollectorRegistry | None = None

    def __init__(
        self,
        script: Script = echo,
        *,
        delay: float = 0.0,
        capacity: int = 64,
        fail_on: str | None = None,
        identity: ModelIdentity = IDENTITY,
        context_length: int = 4096,
        cached_tokens: int = 0,
    ) -> None:
        self.card = ModelCard(identity, byte_tokenizer(), context_length, 258, "none", "none")
        self.jobs: list[GenerationJob] = []
        self.cancelled: list[str] = []
        self.capacity = capacity
        self._script = script
        self._delay = delay
        self._fail_on = fail_on
        self._cached_tokens = cached_tokens
        self._state: EngineState = "starting"
        self._reason: str | None = None
        self._running: set[str] = set()

    async def start(self) -> None:
        self._state = "ready"

    async def close(self) -> None:
        self._state = "draining"

    def die(self, reason: str) -> None:
        """Fail every running job and refuse all others, as an engine whose thread crashed."""
        self._state, self._reason = "dead", reason

    def health(self) -> EngineHealth:
        return EngineHealth(self._state, self._reason, running=len(self._running))

    def stream(self, job: GenerationJob) -> AsyncGenerator[TokenEvent, None]:
        self._check_alive()
        if len(self._running) >= self.capacity:
            raise EngineOverloaded(f"{self.capacity} requests are running; try again in a second")
        self.jobs.append(job)
        self._running.add(job.id)
        return ScriptedStream(self._events(job), lambda finished: self._leave(job, finished))

    def _leave(self, job: GenerationJob, finished: bool) -> None:
        self._running.discard(job.id)
        if not finished:
            self.cancelled.append(job.id)

    def _check_alive(self) -> None:
        if self._state != "ready":
            reason = f": {self._reason}" if self._reason else ""
            again = None if self._state == "dead" else COME_BACK
            raise EngineUnavailable(f"the engine is {self._state}{reason}", again)

    async def _events(self, job: GenerationJob) -> AsyncGenerator[TokenEvent, None]:
        if not job.sampling.max_tokens:
            yield unanswered(job)
            return
        answer = Answer(job)
        for token in answer_tokens(self._script(job), job):
            await asyncio.sleep(self._delay)
            self._check_alive()
            event = answer.add(token)
            if self._fail_on is not None and self._fail_on in answer.text:
                raise GenerationFailed(f"the script fails at {self._fail_on!r}")
            yield replace(event, cached_tokens=self._cached_tokens)
            if event.finish is not None:
                return


class ScriptedStream(AsyncGenerator[TokenEvent, None]):
    """A job's events; closing it frees the job's place, even if nobody ever asked for an event.

    A plain async generator that was never started does nothing when it is closed.
    """

    def __init__(self, events: AsyncGenerator[TokenEvent, None], leave: Callable[[bool], None]) -> None:
        self._events = events
        self._leave: Callable[[bool], None] | None = leave

    async def asend(self, value: None) -> TokenEvent:
        try:
            event = await self._events.asend(value)
        except BaseException as error:
            self._end(finished=isinstance(error, StopAsyncIteration | GenerationFailed))
            raise
        if event.finish is not None:
            self._end(finished=True)
        return event

    async def athrow(self, *error: Any) -> TokenEvent:
        self._end(finished=False)
        return await self._events.athrow(*error)

    async def aclose(self) -> None:
        self._end(finished=False)
        await self._events.aclose()

    def _end(self, finished: bool) -> None:
        if self._leave is not None:
            self._leave(finished)
            self._leave = None


class Answer:
    """One job's answer as far as it has come."""

    def __init__(self, job: GenerationJob) -> None:
        self.text = ""
        self._job = job
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._tokens = 0
        self._told = 0

    def add(self, token: int) -> TokenEvent:
        """Append a token and return what became certain by it."""
        self._tokens += 1
        sampling = self._job.sampling
        if token >= 256 or token in sampling.stop_token_ids:
            return self._event(token, len(self.text), "stop")
        self.text += self._decode(bytes([token]))
        begin = first_stop(self.text, sampling.stop)
        if begin is not None:
            return self._event(token, begin, "stop")
        if self._tokens >= sampling.max_tokens:
            self.text += self._decode(b"", True)
            return self._event(token, len(self.text), "length")
        return self._event(token, len(self.text) - held_back(self.text, sampling.stop), None)

    def _event(self, token: int, certain: int, finish: Any) -> TokenEvent:
        text, self._told = self.text[self._told : certain], max(certain, self._told)
        return TokenEvent(
            text,
            self._tokens,
            scripted_logprobs(token, self._job.sampling.logprobs),
            prompt_logprobs(self._job) if self._tokens == 1 else (),
            steered_tokens(self._job.plan, len(self._job.prompt), self._tokens),
            finish=finish,
        )


def answer_tokens(text: str, job: GenerationJob) -> list[int]:
    """Return the answer's tokens, END last; where the end is ignored, the answer begins again and again."""
    tokens = list(text.encode())
    if not job.sampling.ignore_eos:
        return [*tokens, 257]
    again = cycle(tokens or [0x20])
    return [next(again) for _ in range(job.sampling.max_tokens)]


def first_stop(text: str, stops: tuple[str, ...]) -> int | None:
    found = [begin for stop in stops if (begin := text.find(stop)) >= 0]
    return min(found, default=None)


def held_back(text: str, stops: tuple[str, ...]) -> int:
    """Return how many last characters may yet become a stop string."""
    lengths = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(lengths, default=0)


def scripted_logprobs(token: int, alternatives: int | None) -> tuple[PositionLogprobs, ...]:
    if alternatives is None:
        return ()
    top = (token_logprob((token + step) % 256, LOGPROB - step) for step in range(alternatives))
    return (PositionLogprobs(token_logprob(token, LOGPROB), tuple(top)),)


def prompt_logprobs(job: GenerationJob) -> tuple[PositionLogprobs, ...]:
    wanted = job.sampling.prompt_logprobs
    return tuple(each for token in job.prompt[1:] for each in scripted_logprobs(token, wanted))


def unanswered(job: GenerationJob) -> TokenEvent:
    """Return all that there is of a job that asks for no token: its prompt's log-probabilities."""
    return TokenEvent(
        "", 0, (), prompt_logprobs(job), steered_tokens(job.plan, len(job.prompt), 1), finish="length"
    )


def token_logprob(token: int, logprob: float) -> TokenLogprob:
    spelled = {256: START, 257: END}.get(token, "").encode() or bytes([token])
    return TokenLogprob(spelled.decode("utf-8", "replace"), spelled, logprob)


def steered_tokens(plan: SteeringPlan, prompt: int, generated: int) -> tuple[int, ...]:
    """Return how many positions each term has moved; a model never reads the last token that it chose."""
    return tuple(moved(term, prompt, generated - 1) for term in plan.terms)


def moved(term: SteeringTerm, prompt: int, read: int) -> int:
    if term.strength == 0.0:
        return 0
    return {"prompt": prompt, "generated": read, "all": prompt + read}[term.positions]
