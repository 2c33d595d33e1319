"""From what an engine generated to OpenAI's legacy completions; the parts of a stream have the same shape."""

import codecs
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from server.answers import LEAST_LOGPROB, SteeredTerm, Usage, proof, usage
from server.engine.protocol import FinishReason, PositionLogprobs, TokenLogprob
from server.engine.text import REPLACEMENT
from server.generation import Events
from server.prompt_tokens import Echo
from server.run import Choice
from server.translate_completion import CompletionRun

Row = tuple[str, float | None, dict[str, float] | None, int]


class Logprobs(TypedDict):
    """Four lists as long as there are tokens; an echoed prompt's first token has no probability.

    top_logprobs: the chosen token is always among them. text_offset: where the token begins in the text, in
    characters; a stream's are those in the text of all its parts.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class Completion(TypedDict):
    """An answer, or one part of a stream; usage is null where a stream tells it later."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
    steering: NotRequired[list[SteeredTerm]]


async def chunked(run: CompletionRun, events: Events) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the answer's parts, and the usage if it was asked for."""
    tokens = [0] * len(run.jobs)
    tellers = [Teller(run, index) for index in range(len(run.jobs))]
    async with aclosing(events):
        async for index, event in events:
            tokens[index] = event.completion_tokens
            text, told = tellers[index].tell(event.text, event.prompt_logprobs, event.logprobs)
            if text or told or event.finish:
                extra = proof(run, {index: event.steered_tokens}) if event.finish else {}
                yield part(run, [choice_of(index, text, told, event.finish)], sum(tokens), extra)
    if run.include_usage:
        yield part(run, [], sum(tokens), {"usage": usage(run, sum(tokens))})


def completion(run: CompletionRun, choices: Sequence[Choice]) -> dict[str, Any]:
    told = [
        Teller(run, index).tell("".join(choice.text), choice.prompt_logprobs, choice.logprobs)
        for index, choice in enumerate(choices)
    ]
    return {
        **head(run),
        "choices": [
            choice_of(index, *each, choice.finish)
            for index, (each, choice) in enumerate(zip(told, choices, strict=True))
        ],
        "usage": usage(run, sum(choice.completion_tokens for choice in choices)),
        **proof(run, {index: choice.steered_tokens for index, choice in enumerate(choices)}),
    }


def head(run: CompletionRun) -> dict[str, Any]:
    return {
        "id": run.id,
        "object": "text_completion",
        "created": run.created,
        "model": run.model,
        "system_fingerprint": run.fingerprint,
    }


def part(
    run: CompletionRun, choices: list[CompletionChoice], completion_tokens: int, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one part of a stream; with usage asked for, each carries it, null where the last tells it."""
    so_far = usage(run, completion_tokens) if run.continuous_usage else None
    told = {"usage": so_far} if run.include_usage or run.continuous_usage else {}
    return {**head(run), "choices": choices, **told, **extra}


def choice_of(index: int, text: str, told: Logprobs | None, finish: FinishReason | None) -> CompletionChoice:
    return {"index": index, "text": text, "logprobs": told, "finish_reason": finish}


class Teller:
    """Tells one choice from first to last: its prompt where that is echoed, then what was generated."""

    def __init__(self, run: CompletionRun, index: int) -> None:
        self._echo = run.echoes[index]
        self._wanted = run.jobs[index].sampling.logprobs is not None
        self._begin = len(self._echo.text) if self._echo else 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def tell(
        self, text: str, prompt: Sequence[PositionLogprobs], generated: Sequence[PositionLogprobs]
    ) -> tuple[str, Logprobs | None]:
        """Return the text and, where they are wanted, the log-probabilities that come next."""
        echo, self._echo = self._echo, None
        rows = (
            [*(prompt_rows(echo, prompt) if echo else ()), *map(self._row, generated)] if self._wanted else []
        )
        return (echo.text + text if echo else text), table(rows) if rows else None

    def _row(self, position: PositionLogprobs) -> Row:
        begin = self._begin
        self._begin += len(self._decode(position.chosen.bytes))
        return row(position, begin)


def prompt_rows(echo: Echo, positions: Sequence[PositionLogprobs]) -> Iterator[Row]:
    """Yield the rows of a prompt's tokens; nothing predicted the first."""
    first, *others = echo.begins
    yield spelled(*echo.first), None, None, first
    for position, begin in zip(positions, others, strict=True):
        yield row(position, begin)


def row(position: PositionLogprobs, begin: int) -> Row:
    """Return the row of one token; of two spelled alike the likelier one stands among the likeliest."""
    likely: dict[str, float] = {}
    for token in (*position.top, position.chosen):
        likely.setdefault(name_of(token), logprob_of(token))
    return name_of(position.chosen), logprob_of(position.chosen), likely, begin


def table(rows: Sequence[Row]) -> Logprobs:
    tokens, logprobs, likely, begins = (list(column) for column in zip(*rows, strict=True))
    return {
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": likely,
        "text_offset": begins,
    }


def name_of(token: TokenLogprob) -> str:
    return spelled(token.token, token.bytes)


def logprob_of(token: TokenLogprob) -> float:
    return max(token.logprob, LEAST_LOGPROB)


def spelled(text: str, raw: bytes) -> str:
    r"""Return a token's text; part of a character as OpenAI spells it: `bytes:\xe6\x97`."""
    if REPLACEMENT not in text or raw == text.encode():
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
