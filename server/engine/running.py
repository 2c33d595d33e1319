"""One request inside the engine: its tokens, how far its cache reaches, and the text that is certain."""

from collections.abc import Sequence
from itertools import count
from typing import Any

from torch import Tensor

from server.engine.protocol import (
    FinishReason,
    GenerationJob,
    PositionLogprobs,
    TokenEvent,
    TokenLogprob,
)
from server.engine.sampling import Sampler, top_logprobs
from server.engine.text import Detokenizer, StopMatcher
from server.engine.token_bytes import token_bytes
from steering.plan import HeldPlan
from steering.vision import JoinedPrompt

ARRIVALS = count()


class RunningRequest:
    """A job's state from admission to its last token.

    tokens: prompt and completion. computed: how many of them have keys and values in the slot; a
    request that was put back into the queue starts again from zero and loses no token. joined: the prompt
    with its images, once the vision tower has seen them.
    """

    def __init__(self, job: GenerationJob, tokenizer: Any, vocabulary_size: int, eos: frozenset[int]) -> None:
        self.job = job
        self.tokens = list(job.prompt)
        self.computed = 0
        self.number = next(ARRIVALS)
        self.held = HeldPlan(job.plan, ())
        self.joined: JoinedPrompt | None = None
        self.sampler = Sampler(job.sampling, job.prompt, vocabulary_size)
        self.steered = [0] * len(job.plan.terms)
        self._tokenizer = tokenizer
        self._text = Detokenizer(tokenizer)
        self._stops = StopMatcher(job.sampling.stop)
        self._final = frozenset(job.sampling.stop_token_ids) | (
            frozenset() if job.sampling.ignore_eos else eos
        )

    @property
    def prompt_length(self) -> int:
        return len(self.job.prompt)

    @property
    def image_spans(self) -> tuple[tuple[int, int], ...]:
        return self.job.images.spans if self.job.images else ()

    @property
    def position_offset(self) -> int:
        """How far a generated token's position lies from its place: images may take fewer than they have."""
        return self.joined.offset if self.joined else 0

    @property
    def sees_images(self) -> bool:
        """Whether the model has yet to read a prompt with images, which takes passes of its own."""
        return self.joined is not None and self.computed < self.prompt_length

    def next_piece(self, limit: int) -> int:
        """Return how many of the pending tokens the next pass may take."""
        if self.joined is None or not self.sees_images:
            return min(self.pending, limit)
        return self.joined.cut(self.computed, min(self.computed + limit, self.prompt_length)) - self.computed

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def pending(self) -> int:
        """How many tokens the model has not seen yet."""
        return len(self.tokens) - self.computed

    def advance(self, count: int, steered: Sequence[int]) -> None:
        """Note that the model has seen `count` more tokens, `steered` of them moved by each term."""
        for index, moved in enumerate(steered):
            self.steered[index] += moved
        self.computed += count

    def restart(self) -> None:
        """Forget what the cache held; all tokens will pass through the model, and be counted, again."""
        self.computed = 0
        self.steered = [0] * len(self.steered)

    def accept(self, token: int, logits: Tensor) -> TokenEvent:
        """Append a chosen token and return what became certain by it; logits float32 [vocabulary]."""
        self.tokens.append(token)
        self.sampler.record(token)
        if token in self._final:
            return self._event("", logits, "stop")
        text, stopped = self._stops.push(self._text.push(token))
        if stopped:
            return self._event(text, logits, "stop", flush=False)
        if self.completion_tokens >= self.job.sampling.max_tokens:
            return self._event(text, logits, "length")
        return self._event(text, logits, None)

    def _event(
        self, text: str, logits: Tensor, finish: FinishReason | None, flush: bool = True
    ) -> TokenEvent:
        if finish and flush:
            rest, stopped = self._stops.push(self._text.flush())
            text += rest + self._stops.flush()
            finish = "stop" if stopped else finish
        return TokenEvent(
            text=text,
            completion_tokens=self.completion_tokens,
            logprobs=self._logprobs(logits),
            steered_tokens=tuple(self.steered),
            finish=finish,
        )

    def _logprobs(self, logits: Tensor) -> tuple[PositionLogprobs, ...]:
        count = self.job.sampling.logprobs
        if count is None:
            return ()
        chosen, *top = (
            TokenLogprob(*token_bytes(self._tokenizer, token), logprob)
            for token, logprob in top_logprobs(logits, self.tokens[-1], count)
        )
        return (PositionLogprobs(chosen, tuple(top)),)
