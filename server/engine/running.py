"""One request inside the engine: its tokens, how far its cache reaches, and the text that is certain."""

from collections.abc import Sequence
from itertools import count
from typing import Any

from torch import Tensor

from server.engine.protocol import GenerationJob, PositionLogprobs, TokenEvent, TokenLogprob
from server.engine.sampling import Sampler, top_logprobs
from server.engine.token_bytes import token_bytes
from server.engine.writing import Writing
from steering.plan import HeldPlan
from steering.types import SteeringPlan
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
        self._writing = Writing(job, tokenizer, eos)
        self._prompt_logprobs: list[PositionLogprobs] = []
        self._begun = False

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

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the next pass must tell prompt tokens' log-probabilities, which takes all its logits."""
        asked = self.job.sampling.prompt_logprobs is not None and not self._begun
        return asked and self.computed < self.prompt_length

    def shares_prefill(self, other: "RunningRequest") -> bool:
        """Whether this prompt's keys and values, and what is told of it, would be the other's to the bit."""
        return (
            self.job.siblings is not None
            and self.job.siblings == other.job.siblings
            and not self._begun
            and not other._begun
            and self.job.sampling.prompt_logprobs == other.job.sampling.prompt_logprobs
            and prompt_steering(self.job.plan) == prompt_steering(other.job.plan)
        )

    def follow(self, leader: "RunningRequest") -> None:
        """Take over where a request that shares this one's prefill has just finished it."""
        self.computed = leader.computed
        self.steered = list(leader.steered)
        self._prompt_logprobs = leader._prompt_logprobs

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
        self._prompt_logprobs = []

    def note_prompt(self, logits: Tensor) -> None:
        """Note the log-probabilities of the prompt tokens after those that a pass is about to add.

        logits float32 [pass's tokens, vocabulary].
        """
        asked = self.job.sampling.prompt_logprobs
        assert asked is not None
        following = self.tokens[self.computed + 1 : self.computed + 1 + len(logits)]
        following = following[: self.prompt_length - self.computed - 1]
        for token, row in zip(following, logits, strict=False):
            self._prompt_logprobs.append(self._position(row, token, asked))

    def accept(self, token: int, logits: Tensor) -> TokenEvent:
        """Append a chosen token and return what became certain by it; logits float32 [vocabulary].

        Where no token was asked for, the chosen one is none.
        """
        if not self.job.sampling.max_tokens:
            return TokenEvent("", 0, (), tuple(self._prompt_logprobs), tuple(self.steered), finish="length")
        self.tokens.append(token)
        if token not in self._writing.final:
            self.sampler.record(token)
        text, finish = self._writing.push(token, self.sampler.complete)
        told, self._begun = () if self._begun else tuple(self._prompt_logprobs), True
        return TokenEvent(
            text=text,
            completion_tokens=self.completion_tokens,
            logprobs=self._logprobs(logits),
            prompt_logprobs=told,
            steered_tokens=tuple(self.steered),
            finish=finish,
        )

    def _logprobs(self, logits: Tensor) -> tuple[PositionLogprobs, ...]:
        count = self.job.sampling.logprobs
        return () if count is None else (self._position(logits, self.tokens[-1], count),)

    def _position(self, logits: Tensor, token: int, count: int) -> PositionLogprobs:
        chosen, *top = (
            TokenLogprob(*token_bytes(self._tokenizer, each), logprob)
            for each, logprob in top_logprobs(logits, token, count)
        )
        return PositionLogprobs(chosen, tuple(top))


def prompt_steering(plan: SteeringPlan) -> list[tuple[object, ...]]:
    """Return what of a plan moves a prompt's tokens: prompts that are moved alike have the same cache."""
    return [
        (place, term.vectors.digest, term.strength, term.layers, term.tokens)
        for place, term in enumerate(plan.terms)
        if term.strength and term.positions != "generated"
    ]
