"""An answer as its tokens come: the text that is certain, and where it ends."""

from typing import Any

from server.engine.protocol import FinishReason, GenerationJob
from server.engine.text import Detokenizer, StopMatcher

# Tokens of a prompt that the text of what continues it is read after.
BEFORE = 8


class Writing:
    """Turns a job's tokens into text; every engine's answers end by the same rules.

    final: the tokens that end it, which have no text.
    """

    def __init__(self, job: GenerationJob, tokenizer: Any, end_tokens: frozenset[int]) -> None:
        self.final = final_tokens(job, end_tokens)
        self._most = job.sampling.max_tokens
        self._text = Detokenizer(tokenizer, job.prompt[-BEFORE:] if job.continues else (), job.spelled)
        self._stops = StopMatcher(job.sampling.stop)
        self._count = 0

    def push(self, token: int, complete: bool = False) -> tuple[str, FinishReason | None]:
        """Return what the token makes certain; complete: it satisfies its grammar, nothing may follow."""
        self._count += 1
        if token in self.final:
            return self._ended("", "stop")
        text, stopped = self._stops.push(self._text.push(token))
        if stopped:
            return text, "stop"
        if complete:
            return self._ended(text, "stop")
        if self._count >= self._most:
            return self._ended(text, "length")
        return text, None

    def _ended(self, text: str, finish: FinishReason) -> tuple[str, FinishReason]:
        rest, stopped = self._stops.push(self._text.flush())
        text += rest + self._stops.flush()
        return text, "stop" if stopped else finish


def final_tokens(job: GenerationJob, end_tokens: frozenset[int]) -> frozenset[int]:
    return frozenset(job.sampling.stop_token_ids) | (frozenset() if job.sampling.ignore_eos else end_tokens)
