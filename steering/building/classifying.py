"""A metric by the model's own judgement: its logits for yes and no after a question about an answer."""

from collections.abc import Sequence

import torch

from steering.building.choosing import Choice, option_scores
from steering.building.pairs import tokenise_prompt, tokenise_text
from steering.loading import LoadedModel

ANSWERS_AT_A_TIME = 8


def log_odds(loaded: LoadedModel, answers: Sequence[str], question: str, yes: str, no: str) -> list[float]:
    """Return log p(yes) - log p(no) for each answer, nats, with the model unsteered.

    The model reads the answer and the question as one message of the user; yes and no are whole texts.
    """
    options = (tokenise_text(loaded, yes), tokenise_text(loaded, no))
    choices = [Choice(tokenise_prompt(loaded, [asked(answer, question)]), options) for answer in answers]
    odds: list[float] = []
    with torch.no_grad():
        for i in range(0, len(choices), ANSWERS_AT_A_TIME):
            scores = option_scores(loaded, choices[i : i + ANSWERS_AT_A_TIME])
            odds += [y * len(options[0]) - n * len(options[1]) for y, n in scores]
    return odds


def asked(answer: str, question: str) -> dict[str, str]:
    return {"role": "user", "content": f"{answer}\n\n{question}"}
