"""Iteration-level batching: each step runs a piece of prefill and one token for every running request."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from server.engine.forward import ForwardPass, Piece
from server.engine.protocol import TokenEvent
from server.engine.running import RunningRequest
from server.engine.sampling import choose_tokens
from server.engine.slots import SlotCache
from steering.errors import GenerationFailed, SteeringError
from steering.hooks import BlockSteering
from steering.loading import LoadedModel
from steering.plan import MOST_TERMS, DeltaBank, hold, let_go
from steering.vision import DecoderDoor

logger = logging.getLogger(__name__)

# Failed passes in a row, with none that worked between, after which the model is tried with nothing of any
# request; if that fails too, the engine is broken.
MOST_FAILURES = 8
# Tokens of cache that an arriving request must find free beyond its own, so that it is not put back at once.
HEADROOM = 64
# How many times longer a piece of prefill may be while nobody waits for a next token.
ALONE = 4
# How many times shorter a piece of a prompt with images is while others decode. Such prompts are long and
# take passes of their own, in every second step only, so that the others' pauses at most double on average.
WITH_IMAGES = 4
# Tokens of a piece whose log-probabilities are asked for: each takes a row of the vocabulary's size.
TOLD = 256

Emit = Callable[[RunningRequest, TokenEvent | SteeringError], None]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much runs at once, in requests and tokens.

    slots: requests. prefill: prompt tokens a step while others decode, padding included. cache: tokens
    over all slots, at least `context`. context: tokens of one request, prompt and completion together.
    """

    slots: int
    prefill: int
    cache: int
    context: int


class Batcher:
    """Runs requests on the model; one thread calls it.

    Slots stay in order: those that decode are 0..decoding-1, those that still prefill come after, so
    that a decode step reads its part of the cache as a view.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        steering: BlockSteering,
        door: DecoderDoor,
        limits: BatchLimits,
        emit: Emit,
    ) -> None:
        self._limits = limits
        self._emit = emit
        self._cache = SlotCache(len(loaded.blocks), limits.slots, limits.context, limits.cache)
        self._bank = DeltaBank(limits.slots * MOST_TERMS, loaded.identity.hidden_size, loaded.device)
        self._forward = ForwardPass(loaded, steering, door, self._cache, self._bank)
        self._waiting: deque[RunningRequest] = deque()
        self._slots: list[RunningRequest] = []
        self._decoding = 0
        self._long_is_next = True
        self._saw_images = False
        self._failures = 0

    @property
    def running(self) -> int:
        return len(self._slots)

    @property
    def idle(self) -> bool:
        return not self._slots and not self._waiting

    def add(self, request: RunningRequest) -> None:
        self._waiting.append(request)

    def drop(self, request: RunningRequest) -> None:
        """Forget a request, wherever it is; its slot is free at once."""
        if request in self._slots:
            self._leave(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        if self.idle:
            self._cache.clear()

    def step(self) -> None:
        """Admit what fits, prefill one piece, decode one token for everyone else."""
        self._admit()
        self._make_room()
        if self._decoding < len(self._slots):
            pieces = self._next_prefill()
            self._saw_images = any(piece.request.sees_images for piece in pieces)
            if pieces:
                self._run(pieces)
        if self._decoding:
            self._run([Piece(slot, request, 1) for slot, request in enumerate(self._slots[: self._decoding])])
        if self.idle:
            self._cache.clear()

    def _admit(self) -> None:
        while self._waiting and len(self._slots) < self._limits.slots and self._fits(self._waiting[0]):
            request = self._waiting.popleft()
            request.held = hold(request.job.plan, self._bank)
            self._slots.append(request)

    def _fits(self, arriving: RunningRequest) -> bool:
        longest = max(len(request.tokens) for request in [*self._slots, arriving])
        length = min(longest + HEADROOM, self._limits.context)
        return not self._slots or self._cache.fits(len(self._slots) + 1, length)

    def _make_room(self) -> None:
        """Reserve cache for the coming step; where it is short, the youngest go back to the queue."""
        if not self._slots:
            return
        while not self._cache.fits(len(self._slots), self._longest()):
            youngest = max(self._slots, key=lambda request: request.number)
            self._leave(youngest)
            youngest.restart()
            self._waiting.appendleft(youngest)
        self._cache.reserve(len(self._slots), self._longest())

    def _longest(self) -> int:
        # One more than the tokens there are: a request that finishes its prefill decodes in the same step.
        return min(self._limits.context, 1 + max(len(request.tokens) for request in self._slots))

    def _next_prefill(self) -> list[Piece]:
        """Return the next piece: of a long prompt, or several short ones whole; in turn where both wait.

        Empty if all that wait have images and let this step be, or follow those that do.
        """
        limit = self._limits.prefill * (1 if self._decoding else ALONE)
        waiting = range(self._decoding, len(self._slots))
        prefilling = [slot for slot in waiting if not self._rests(slot) and not self._follows(slot)]
        order = sorted(prefilling, key=lambda slot: self._slots[slot].number)
        long = [slot for slot in order if self._alone(self._slots[slot], limit)]
        short = [slot for slot in order if slot not in long]
        if long and (self._long_is_next or not short):
            self._long_is_next = False
            request = self._slots[long[0]]
            return [Piece(long[0], request, request.next_piece(self._alone_limit(request, limit)))]
        self._long_is_next = True
        return self._together(short, limit)

    def _rests(self, slot: int) -> bool:
        """Whether a prompt with images leaves this step to those that decode."""
        return self._saw_images and self._decoding > 0 and self._slots[slot].sees_images

    def _follows(self, slot: int) -> bool:
        """Whether an older request is doing the same prefill, whose end will serve this one too."""
        request = self._slots[slot]
        return any(
            other.number < request.number and request.shares_prefill(other)
            for other in self._slots[self._decoding :]
        )

    def _alone(self, request: RunningRequest, limit: int) -> bool:
        special = request.sees_images or request.wants_prompt_logprobs
        return request.computed > 0 or request.pending > limit or special

    def _alone_limit(self, request: RunningRequest, limit: int) -> int:
        if request.wants_prompt_logprobs:
            return min(limit, TOLD)
        return max(1, limit // WITH_IMAGES) if self._decoding and request.sees_images else limit

    def _together(self, slots: Sequence[int], limit: int) -> list[Piece]:
        """Return as many whole prompts as fit into one pass, padding counted."""
        pieces: list[Piece] = []
        width = 0
        for slot in slots:
            request = self._slots[slot]
            width = max(width, request.pending)
            if width * (len(pieces) + 1) > limit:
                break
            pieces.append(Piece(slot, request, request.pending))
        return pieces

    def _run(self, pieces: Sequence[Piece]) -> None:
        """Run the pieces and take every finished one's next token."""
        results = self._logits(pieces)
        for piece, result in results:
            if isinstance(result, Exception):
                self._fail(piece.request, result)
        done = [
            (request, row)
            for piece, row in results
            if isinstance(row, Tensor) and not piece.request.pending
            for request in (piece.request, *self._followers(piece))
        ]
        tokens = choose_tokens([row for _, row in done], [request.sampler for request, _ in done])
        for (request, row), token in zip(done, tokens, strict=True):
            self._take(request, row, token)

    def _followers(self, finished: Piece) -> list[RunningRequest]:
        """Return the requests that share the prefill that a piece finished, now as far as its own."""
        leader = finished.request
        waiting = range(self._decoding, len(self._slots))
        followers = [
            slot
            for slot in waiting
            if self._slots[slot] is not leader and self._slots[slot].shares_prefill(leader)
        ]
        for slot in followers:
            self._cache.move(finished.slot, slot, leader.computed)
            self._slots[slot].follow(leader)
        return [self._slots[slot] for slot in followers]

    def _logits(self, pieces: Sequence[Piece]) -> list[tuple[Piece, Tensor | Exception]]:
        """Return each piece's logits; when a pass fails, its pieces run alone to find the culprit."""
        try:
            rows = self._forward(pieces)
        except Exception as error:
            if len(pieces) > 1:
                return [found for piece in pieces for found in self._logits([piece])]
            return [(pieces[0], self._failed(error))]
        self._failures = 0
        return list(zip(pieces, rows, strict=True))

    def _failed(self, error: Exception) -> Exception:
        logger.error("a forward pass failed", exc_info=error)
        self._failures += 1
        if self._failures >= MOST_FAILURES and not self._forward.works():
            raise RuntimeError(
                f"{MOST_FAILURES} forward passes in a row failed; the last: {error}"
            ) from error
        return GenerationFailed(f"the model failed on this request ({type(error).__name__})")

    def _take(self, request: RunningRequest, logits: Tensor, token: int | SteeringError) -> None:
        try:
            if isinstance(token, SteeringError):
                raise token
            event = request.accept(token, logits)
        except Exception as error:
            self._fail(request, error)
            return
        if event.finish:
            self._leave(request)
        else:
            self._promote(request)
        self._emit(request, event)

    def _fail(self, request: RunningRequest, error: Exception) -> None:
        if not isinstance(error, SteeringError):
            logger.error("a request failed", exc_info=error)
            error = GenerationFailed(f"this request's own work failed ({type(error).__name__})")
        self._leave(request)
        self._emit(request, error)

    def _promote(self, request: RunningRequest) -> None:
        """Put a request that has finished its prefill at the end of those that decode."""
        slot = self._slots.index(request)
        if slot < self._decoding:
            return
        target = self._decoding
        if slot != target:
            other = self._slots[target]
            self._cache.swap(slot, target, max(request.computed, other.computed))
            self._slots[slot], self._slots[target] = other, request
        self._decoding += 1

    def _leave(self, request: RunningRequest) -> None:
        """Free the request's slot and close the gap."""
        slot = self._slots.index(request)
        self._cache.wipe(slot, len(request.tokens))
        if slot < self._decoding:
            self._decoding -= 1
            self._relocate(self._decoding, slot)
            slot = self._decoding
        self._relocate(len(self._slots) - 1, slot)
        self._slots.pop()
        let_go(request.held, self._bank)

    def _relocate(self, source: int, target: int) -> None:
        if source != target:
            moved = self._slots[source]
            self._cache.move(source, target, moved.computed)
            self._cache.wipe(source, len(moved.tokens))
            self._slots[target] = moved
