"""Answers judged by a language model behind an OpenAI-compatible chat endpoint: 1 to 10 for each."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import Any

import httpx

from steering.building.evaluation import Evaluation, paired_interval
from steering.building.progress import Progress, tracked
from steering.building.reporting import interval, rounded
from steering.errors import InvalidRequest, JudgeUnavailable

# "7", "7.5", "Rating: 7/10." and "**7**", but no sentence: "from 1 to 10, a 7" has three numbers.
RATING = re.compile(r"\W*(?:(?:rating|score)\W*)?(\d+(?:\.\d+)?)(?:\s*/\s*10)?\W*", re.IGNORECASE)
LOWEST, HIGHEST = 1.0, 10.0
AT_A_TIME = 8
# For a whole reply, however slowly its bytes come.
TIMEOUT_SECONDS = 120.0
MOST_REPLY_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Judge:
    """url: where /chat/completions lies below; template: holds {answer}, and {prompt} if it matters."""

    url: str
    model: str
    template: str
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """One rating per answer, None where the judge's reply was no number from 1 to 10."""

    ratings: tuple[float | None, ...]

    @property
    def read(self) -> list[float]:
        return [rating for rating in self.ratings if rating is not None]


def read_template(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error
    if "{answer}" not in text:
        raise InvalidRequest(f"{path} does not say where the answer goes: it needs {{answer}}")
    return text


def judge_strengths(
    judge: Judge, prompts: Sequence[str], evaluation: Evaluation, progress: Progress
) -> dict[float, Judgement]:
    """Return the judgement of the answers at every strength, 0 among them."""
    outcomes = sorted({0.0: evaluation.unsteered, **evaluation.by_strength}.items())
    found = {}
    with judging_client(judge) as client, ThreadPoolExecutor(AT_A_TIME) as pool:
        for strength, outcome in tracked(outcomes, "judging", progress):
            asked = list(zip(prompts, outcome.answers, strict=True))
            ratings = pool.map(lambda pair: rate(client, judge, *pair), asked)
            found[strength] = Judgement(tuple(ratings))
    return found


def rates(judge: Judge) -> bool:
    """Return whether the judge rates a greeting; raises JudgeUnavailable if it does not answer at all."""
    with judging_client(judge) as client:
        return rate(client, judge, "Say hello.", "Hello!") is not None


def judging_client(judge: Judge) -> httpx.Client:
    if judge.api_key and not judge.api_key.isascii():
        raise InvalidRequest("--judge-api-key holds a character that no HTTP header can carry")
    headers = {"Authorization": f"Bearer {judge.api_key}"} if judge.api_key else {}
    return httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS)


def rate(client: httpx.Client, judge: Judge, prompt: str, answer: str) -> float | None:
    """Return the judge's rating of the answer; JudgeUnavailable where there is no reply."""
    parts = {"{prompt}": prompt, "{answer}": answer}
    content = re.sub(r"\{prompt\}|\{answer\}", lambda found: parts[found[0]], judge.template)
    body = {"model": judge.model, "messages": [{"role": "user", "content": content}], "temperature": 0}
    try:
        status, reply = ask(client, f"{judge.url.rstrip('/')}/chat/completions", body)
        if status == httpx.codes.OK:
            return read_rating(json.loads(reply)["choices"][0]["message"]["content"])
        reason = f"it says {status}: {printable(reply.decode(errors='replace'))[:200]}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = f"it cannot be reached: {str(error) or type(error).__name__}"
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        reason = f"its reply is not a chat completion ({type(error).__name__}: {printable(str(error))[:200]})"
    raise JudgeUnavailable(f"the judge at {without_password(judge.url)} does not judge: {reason}")


def ask(client: httpx.Client, url: str, body: dict[str, Any]) -> tuple[int, bytes]:
    """Return status and body of the reply; one that is endless, in bytes or in time, is an httpx error."""
    deadline = monotonic() + TIMEOUT_SECONDS
    read = bytearray()
    with client.stream("POST", url, json=body, headers={"Accept-Encoding": "identity"}) as reply:
        for piece in reply.iter_raw():
            read += piece
            if len(read) > MOST_REPLY_BYTES:
                raise httpx.ReadError(f"its reply is longer than {MOST_REPLY_BYTES} bytes")
            if monotonic() > deadline:
                raise httpx.ReadTimeout(f"its reply took longer than {TIMEOUT_SECONDS:g} s")
    return reply.status_code, bytes(read)


def printable(text: str) -> str:
    """Return the text without characters that a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)


def read_rating(reply: str | None) -> float | None:
    found = RATING.fullmatch(reply or "")
    rating = float(found[1]) if found else 0.0
    return rating if LOWEST <= rating <= HIGHEST else None


def judgement_rows(judgements: dict[float, Judgement], seed: int) -> list[dict[str, Any]]:
    """Return per strength: answers judged, replies that were no rating, mean, and effect with interval.

    The effect pairs each answer with the unsteered one; items without both ratings are left out of it.
    """
    return [
        {
            "strength": strength,
            "judged": len(judgement.ratings),
            "unreadable": len(judgement.ratings) - len(judgement.read),
            "rating": rounded(fmean(judgement.read)) if judgement.read else None,
            **rating_effect(judgement, judgements[0.0], seed),
        }
        for strength, judgement in judgements.items()
    ]


def rating_effect(judgement: Judgement, unsteered: Judgement, seed: int) -> dict[str, Any]:
    both = zip(judgement.ratings, unsteered.ratings, strict=True)
    paired = [(rating, before) for rating, before in both if rating is not None and before is not None]
    if judgement is unsteered or not paired:
        return {}
    ratings, before = zip(*paired, strict=True)
    return {"effect": interval(paired_interval(ratings, before, seed)), "paired": len(paired)}
