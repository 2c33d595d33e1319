"""Answers judged by a language model behind an OpenAI-compatible chat endpoint: 1 to 10 for each."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
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
TIMEOUT_SECONDS = 120.0


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


def refuse_silent(judge: Judge) -> None:
    """Raise JudgeUnavailable before minutes of work if the judge does not answer."""
    with judging_client(judge) as client:
        rate(client, judge, "Say hello.", "Hello!")


def judging_client(judge: Judge) -> httpx.Client:
    headers = {"Authorization": f"Bearer {judge.api_key}"} if judge.api_key else {}
    return httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS)


def rate(client: httpx.Client, judge: Judge, prompt: str, answer: str) -> float | None:
    """Return the judge's rating of the answer; JudgeUnavailable where there is no reply."""
    parts = {"{prompt}": prompt, "{answer}": answer}
    content = re.sub(r"\{prompt\}|\{answer\}", lambda found: parts[found[0]], judge.template)
    body = {"model": judge.model, "messages": [{"role": "user", "content": content}], "temperature": 0}
    try:
        reply = client.post(f"{judge.url.rstrip('/')}/chat/completions", json=body)
        reply.raise_for_status()
        return read_rating(reply.json()["choices"][0]["message"]["content"])
    except httpx.HTTPStatusError as error:
        reason = f"it says {error.response.status_code}: {error.response.text[:200]}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = f"it cannot be reached: {error or type(error).__name__}"
    except (ValueError, KeyError, IndexError, TypeError) as error:
        reason = f"its reply is not a chat completion ({type(error).__name__}: {error})"
    raise JudgeUnavailable(f"the judge at {judge.url} does not judge: {reason}; see --judge-url")


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
