"""What steering costs where its behaviour is not asked for: loss on neutral text, and general knowledge."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

import torch

from steering.building.choosing import Choice, TokenIds, option_scores
from steering.building.generation import Deltas, mean_log_probabilities, steered_everywhere
from steering.building.pairs import TokenSequence, tokenise_prompt, tokenise_text
from steering.building.questions import NeutralAnswer, NeutralText, Question
from steering.errors import InvalidRequest
from steering.loading import LoadedModel
from steering.types import Tokens

QUESTIONS_AT_A_TIME = 10


@dataclass(frozen=True, slots=True)
class Damage:
    """What a model does with neutral text under some deltas.

    losses: each passage's sum of negative log-likelihoods, nats; tokens: how many they are sums of;
    correct: by question.
    """

    losses: tuple[float, ...]
    tokens: tuple[int, ...]
    correct: tuple[bool, ...]

    @property
    def loss(self) -> float:
        """The mean negative log-likelihood per token, nats."""
        return sum(self.losses) / sum(self.tokens)

    @property
    def accuracy(self) -> float:
        return fmean(self.correct)


@dataclass(frozen=True, slots=True)
class AccuracyChange:
    """A difference of two shares of right answers, and its standard error."""

    share: float
    error: float


def accuracy_change(steered: Damage, unsteered: Damage) -> AccuracyChange:
    """Return the change of accuracy over the same questions, each paired with itself.

    Questions that are answered alike cancel: with `lost` and `gained` of n the change is (gained - lost) / n
    and its error about sqrt(gained + lost) / n, smaller than that of two separate samples. With 100 questions
    a fall of 2 points is still within two errors of none.
    """
    changes = [s - u for s, u in zip(steered.correct, unsteered.correct, strict=True)]
    share = fmean(changes)
    return AccuracyChange(share, sqrt(fmean((change - share) ** 2 for change in changes) / len(changes)))


DamageMeasure = Callable[[Deltas], Damage]


def measure_damage(loaded: LoadedModel, neutral: NeutralText, tokens: Tokens = "all") -> DamageMeasure:
    """Return a measure of loss and accuracy with every token steered, or every one of a kind.

    A passage stands alone, cut to the model's context; its first token is given, not predicted.
    """
    passages = [TokenSequence(tokenise_start(loaded, passage), 1) for passage in neutral.passages]
    passages += [tokenise_answer(loaded, answer) for answer in neutral.answers]
    counts = tuple(len(passage.ids) - passage.start for passage in passages)
    questions = [tokenise_question(loaded, question) for question in neutral.questions]

    def measure(deltas: Deltas) -> Damage:
        means = mean_log_probabilities(loaded, passages, deltas, tokens)
        losses = tuple(-mean * count for mean, count in zip(means, counts, strict=True))
        return Damage(losses, counts, answered_right(loaded, questions, deltas, tokens))

    return measure


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question as tokens; answer: the right option's place."""

    choice: Choice
    answer: int


def tokenise_start(loaded: LoadedModel, text: str) -> TokenIds:
    """Return the tokens of a text that nothing precedes, cut to the model's context."""
    return tuple(loaded.tokenizer(text)["input_ids"][: loaded.context_length])


def tokenise_answer(loaded: LoadedModel, answer: NeutralAnswer) -> TokenSequence:
    prompt = tokenise_prompt(loaded, answer.messages)
    return TokenSequence(prompt + tokenise_text(loaded, answer.text), len(prompt))


def tokenise_question(loaded: LoadedModel, question: Question) -> AskedQuestion:
    """Return "Question: ...\\nAnswer:" and the options as tokens; InvalidRequest for one that is too long.

    A question with images is a user's message, and the options are answers.
    """
    if question.images:
        asked = {"role": "user", "content": question.text, "images": question.images}
        prompt, space = tokenise_prompt(loaded, [asked]), ""
    else:
        prompt, space = tuple(loaded.tokenizer(f"Question: {question.text}\nAnswer:")["input_ids"]), " "
    choice = Choice(prompt, tuple(tokenise_text(loaded, space + option) for option in question.options))
    if len(prompt) + choice.longest > loaded.context_length:
        raise InvalidRequest(
            f"the question {question.text[:60]!r}... is {len(prompt) + choice.longest} tokens long with its "
            f"longest option; the model reads {loaded.context_length}"
        )
    return AskedQuestion(choice, question.answer)


def answered_right(
    loaded: LoadedModel, asked: Sequence[AskedQuestion], deltas: Deltas, tokens: Tokens = "all"
) -> tuple[bool, ...]:
    """Return for each question whether its right option is the likeliest.

    An option's score is the mean log-probability per token of its text after the question. No letters
    are offered, so neither an option's length nor a liking for "A" decides.
    """
    # Questions of like length share a batch: a fifth fewer padded tokens.
    choices = [question.choice for question in asked]
    order = sorted(range(len(asked)), key=lambda i: (choices[i].longest, len(choices[i].prompt)))
    right: dict[int, bool] = {}
    with torch.no_grad(), steered_everywhere(loaded, deltas, tokens):
        for i in range(0, len(order), QUESTIONS_AT_A_TIME):
            places = order[i : i + QUESTIONS_AT_A_TIME]
            right |= zip(places, batch_right(loaded, [asked[place] for place in places]), strict=True)
    return tuple(right[place] for place in range(len(asked)))


def batch_right(loaded: LoadedModel, batch: Sequence[AskedQuestion]) -> Iterator[bool]:
    scores = option_scores(loaded, [question.choice for question in batch])
    for own, question in zip(scores, batch, strict=True):
        yield own.index(max(own)) == question.answer
