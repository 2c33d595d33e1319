"""The default engine: one inference thread over a transformers model, with an asyncio front."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Protocol

import torch

from server.engine.batcher import Batcher, BatchLimits
from server.engine.layout import fuse_norms, store_column_major
from server.engine.masks import mask_kinds
from server.engine.memory import cache_tokens
from server.engine.protocol import (
    EngineHealth,
    EngineState,
    GenerationJob,
    ModelCard,
    SamplingParams,
    TokenEvent,
)
from server.engine.running import RunningRequest
from server.engine.seeing import Seeing
from server.engine.tickets import Result, Results, Ticket, put_all
from steering.errors import EngineOverloaded, EngineUnavailable, SteeringError, quotable
from steering.hooks import steered
from steering.loading import LoadedModel, ending, load_model
from steering.picturing import pictured_of, try_images
from steering.vision import opened

logger = logging.getLogger(__name__)

# Prompt tokens a step while others decode: on two cores 128 take about twice as long as eight decode.
PREFILL_ON_CPU, PREFILL_ON_GPU = 128, 2048
RETRY_AFTER = 2
WARM_UP = GenerationJob("warm-up", (0,) * 8, SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True))


class TransformersEngine:
    """Serves jobs on one model; see server.engine.protocol.Engine.

    The asyncio side only appends to two inboxes under a lock; the inference thread does all the rest and
    hands each step's results back in one call per event loop.
    """

    registry = None  # the server counts what there is to know

    def __init__(self, loaded: LoadedModel, limits: BatchLimits, max_waiting: int) -> None:
        self.card = card_of(loaded, limits.context)
        self._loaded = loaded
        self._limits = limits
        self._max_waiting = max_waiting
        self._eos = end_tokens(loaded)
        self._wake = threading.Condition()
        self._arrived: deque[Ticket] = deque()
        self._abandoned: deque[Ticket] = deque()
        self._open: set[Ticket] = set()
        self._tickets: dict[RunningRequest, Ticket] = {}
        self._outbox: list[tuple[Ticket, Result]] = []
        self._state: EngineState = "starting"
        self._reason: str | None = None
        self._running = 0
        self._seeing: Seeing
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)

    async def start(self) -> None:
        """Start the inference thread and send one small job through it, so that nobody meets cold weights."""
        self._state = "ready"
        self._thread.start()
        async for _ in self.stream(WARM_UP):
            pass

    async def close(self) -> None:
        """Stop the inference thread after its current step; unfinished jobs end with EngineUnavailable."""
        with self._wake:
            if self._state == "ready":
                self._state = "draining"
            self._wake.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    def health(self) -> EngineHealth:
        running, unfinished = self._running, len(self._open)
        return EngineHealth(self._state, self._reason, running, max(0, unfinished - running))

    def stream(self, job: GenerationJob) -> AsyncGenerator[TokenEvent, None]:
        request = RunningRequest(job, self._loaded.tokenizer, self._loaded.vocabulary_size, self._eos)
        ticket = Ticket(request, asyncio.get_running_loop())
        with self._wake:
            self._refuse_excess()
            self._open.add(ticket)
            self._arrived.append(ticket)
            self._wake.notify()
        return Results(ticket.results, lambda: self.abandon(ticket))

    def _refuse_excess(self) -> None:
        if self._state != "ready":
            why = f": {self._reason}" if self._reason else ""
            raise EngineUnavailable(f"the engine is {self._state}{why}", self._retry_after())
        if len(self._open) >= self._limits.slots + self._max_waiting:
            raise EngineOverloaded(
                f"{self._max_waiting} requests are waiting already; try again later", retry_after=RETRY_AFTER
            )

    def _retry_after(self) -> int | None:
        return None if self._state == "dead" else RETRY_AFTER

    def abandon(self, ticket: Ticket) -> None:
        """Have the inference thread forget the job before its next step."""
        with self._wake:
            self._open.discard(ticket)
            self._abandoned.append(ticket)
            self._wake.notify()

    def _serve(self) -> None:
        """The inference thread: until told to stop, take what arrived, step, hand out the results."""
        try:
            with (
                torch.inference_mode(),
                steered(self._loaded.blocks) as steering,
                opened(self._loaded) as door,
                Seeing(door, self._limits.slots, self._notify) as self._seeing,
            ):
                batcher = Batcher(self._loaded, steering, door, self._limits, self._emit)
                while self._wait_for_work(batcher):
                    batcher.step()
                    self._running = batcher.running
                    self._deliver()
        except Exception as error:
            logger.exception("the inference thread died")
            self._state, self._reason = "dead", quotable(f"{type(error).__name__}: {error}")
        finally:
            self._dismiss()

    def _wait_for_work(self, batcher: Batcher) -> bool:
        """Take what arrived and what was abandoned; sleep while there is nothing; False: stop."""
        with self._wake:
            while self._state == "ready":
                self._take_in(batcher)
                if self._outbox or not batcher.idle:
                    return True
                self._running = 0
                self._wake.wait()
        return False

    def _take_in(self, batcher: Batcher) -> None:
        while self._arrived:
            ticket = self._arrived.popleft()
            self._tickets[ticket.request] = ticket
            if ticket.request.job.images is None:
                batcher.add(ticket.request)
            else:
                self._seeing.add(ticket.request)
        for request, error in self._seeing.finished():
            if error is None:
                batcher.add(request)
            else:
                self._emit(request, error)
        while self._abandoned:
            ticket = self._abandoned.popleft()
            batcher.drop(ticket.request)
            self._seeing.leave(ticket.request)
            self._tickets.pop(ticket.request, None)

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _emit(self, request: RunningRequest, result: Result) -> None:
        ticket = self._tickets[request]
        if isinstance(result, SteeringError) or result.finish:
            del self._tickets[request]
            self._seeing.leave(request)
            self._open.discard(ticket)
        self._outbox.append((ticket, result))

    def _deliver(self) -> None:
        outbox, self._outbox = self._outbox, []
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Result]]] = {}
        for ticket, result in outbox:
            by_loop.setdefault(ticket.loop, []).append((ticket, result))
        for loop, results in by_loop.items():
            try:
                loop.call_soon_threadsafe(put_all, results)
            except RuntimeError:
                # The event loop was closed under its requests: nobody is left to read.
                logger.debug("results dropped: the event loop is closed")

    def _dismiss(self) -> None:
        """End every job that is left."""
        with self._wake:
            if self._state != "dead":
                self._state = "draining"
            left = [*self._tickets.values(), *self._arrived]
            self._tickets.clear()
            self._arrived.clear()
            self._open.clear()
            self._running = 0
        why = f"the engine stopped: {self._reason}" if self._reason else "the server is shutting down"
        again = self._retry_after()
        self._outbox.extend((ticket, EngineUnavailable(why, again)) for ticket in left)
        self._deliver()


def end_tokens(loaded: LoadedModel) -> frozenset[int]:
    """Return the tokens that end an answer, by the generation settings and the tokenizer."""
    return ending(getattr(loaded.model.generation_config, "eos_token_id", None), loaded.tokenizer)


def card_of(loaded: LoadedModel, context: int) -> ModelCard:
    return ModelCard(
        identity=loaded.identity,
        tokenizer=loaded.tokenizer,
        context_length=context,
        vocabulary_size=loaded.vocabulary_size,
        device=str(loaded.device),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        pictured=pictured_of(loaded) if loaded.processor is not None else None,
        end_tokens=tuple(sorted(end_tokens(loaded))),
    )


class EngineSettings(Protocol):
    """What of the server's settings the engine reads; see server.config."""

    @property
    def model(self) -> str | None: ...

    @property
    def cache_dir(self) -> Path: ...

    @property
    def dtype(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def threads(self) -> int | None: ...

    @property
    def max_batch_size(self) -> int: ...

    @property
    def max_waiting(self) -> int: ...

    @property
    def max_context(self) -> int | None: ...

    @property
    def prefill_chunk(self) -> int | None: ...

    @property
    def kv_cache_gb(self) -> float | None: ...


def create_engine(settings: EngineSettings) -> TransformersEngine:
    """Load the model and return an engine for it, not yet started; raises ModelUnavailable."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    loaded = load_model(settings.model, settings.cache_dir, settings.dtype, settings.device)
    mask_kinds(loaded.model.config.get_text_config())  # what cannot be batched is refused here
    if loaded.processor is not None:
        try_images(loaded)
    if loaded.device.type == "cpu" and loaded.model.dtype == torch.float32:
        store_column_major(loaded.model)
        fuse_norms(loaded.model)
    room = cache_tokens(loaded, settings.kv_cache_gb)
    context = min(settings.max_context or loaded.context_length, loaded.context_length, room)
    default_prefill = PREFILL_ON_GPU if loaded.device.type == "cuda" else PREFILL_ON_CPU
    limits = BatchLimits(
        slots=settings.max_batch_size,
        prefill=settings.prefill_chunk or default_prefill,
        cache=room,
        context=context,
    )
    return TransformersEngine(loaded, limits, settings.max_waiting)
