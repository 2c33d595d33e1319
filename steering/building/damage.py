"""What steering costs where its behaviour is not asked for: loss on neutral text, and general knowledge."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

import torch
from torch import Tensor, nn

from steering.building.generation import Deltas, mean_log_probabilities, padding_token, steered_everywhere
from steering.building.pairs import TokenSequence, tokenise_text
from steering.building.questions import NeutralText, Question
from steering.errors import InvalidRequest
from steering.loading import LoadedModel

QUESTIONS_AT_A_TIME = 10

TokenIds = tuple[int, ...]


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


def measure_damage(loaded: LoadedModel, neutral: NeutralText) -> DamageMeasure:
    """Return a measure of loss and accuracy with every token steered.

    A passage stands alone, cut to the model's context; its first token is given, not predicted.
    """
    passages = [TokenSequence(tokenise_start(loaded, passage), 1) for passage in neutral.passages]
    tokens = tuple(len(passage.ids) - 1 for passage in passages)
    choices = [tokenise_question(loaded, question) for question in neutral.questions]

    def measure(deltas: Deltas) -> Damage:
        means = mean_log_probabilities(loaded, passages, deltas)
        losses = tuple(-mean * count for mean, count in zip(means, tokens, strict=True))
        return Damage(losses, tokens, answered_right(loaded, choices, deltas))

    return measure


@dataclass(frozen=True, slots=True)
class Choice:
    """A question as tokens; answer: the right option's place."""

    prompt: TokenIds
    options: tuple[TokenIds, ...]
    answer: int

    @property
    def longest(self) -> int:
        return max(map(len, self.options))


def tokenise_start(loaded: LoadedModel, text: str) -> TokenIds:
    """Return the tokens of a text that nothing precedes, cut to the model's context."""
    return tuple(loaded.tokenizer(text)["input_ids"][: loaded.context_length])


def tokenise_question(loaded: LoadedModel, question: Question) -> Choice:
    """Return "Question: ...\\nAnswer:" and the options as tokens; InvalidRequest for one that is too long."""
    prompt = tuple(loaded.tokenizer(f"Question: {question.text}\nAnswer:")["input_ids"])
    choice = Choice(
        prompt, tuple(tokenise_text(loaded, f" {option}") for option in question.options), question.answer
    )
    if len(prompt) + choice.longest > loaded.context_length:
        raise InvalidRequest(
            f"the question {question.text[:60]!r}... is {len(prompt) + choice.longest} tokens long with its "
            f"longest option; the model reads {loaded.context_length}"
        )
    return choice


def answered_right(loaded: LoadedModel, choices: Sequence[Choice], deltas: Deltas) -> tuple[bool, ...]:
    """Return for each question whether its right option is the likeliest.

    An option's score is the mean log-probability per token of its text after the question. No letters
    are offered, so neither an option's length nor a liking for "A" decides.
    """
    # Questions of like length share a batch: a fifth fewer padded tokens.
    order = sorted(range(len(choices)), key=lambda i: (choices[i].longest, len(choices[i].prompt)))
    right: dict[int, bool] = {}
    with torch.no_grad(), steered_everywhere(loaded, deltas):
        for i in range(0, len(order), QUESTIONS_AT_A_TIME):
            places = order[i : i + QUESTIONS_AT_A_TIME]
            right |= zip(places, batch_right(loaded, [choices[place] for place in places]), strict=True)
    return tuple(right[place] for place in range(len(choices)))


def batch_right(loaded: LoadedModel, batch: Sequence[Choice]) -> Iterator[bool]:
    scores = iter(option_scores(loaded, batch))
    for choice in batch:
        own = [next(scores) for _ in choice.options]
        yield own.index(max(own)) == choice.answer


def option_scores(loaded: LoadedModel, batch: Sequence[Choice]) -> list[float]:
    """Return every option's mean log-probability per token, question by question.

    A prompt runs once; its keys and values serve all of its options.
    """
    answers = [torch.tensor(option, device=loaded.device) for choice in batch for option in choice.options]
    targets = nn.utils.rnn.pad_sequence(answers, batch_first=True)
    read = nn.utils.rnn.pad_sequence([torch.ones_like(answer) for answer in answers], batch_first=True)
    predicted = torch.log_softmax(option_logits(loaded, batch, targets, read).float(), dim=-1)
    chosen = predicted.gather(2, targets[..., None])[..., 0]
    return ((chosen * read).sum(1) / read.sum(1)).tolist()


def option_logits(loaded: LoadedModel, batch: Sequence[Choice], targets: Tensor, read: Tensor) -> Tensor:
    """Return the logits that predict targets [options, longest], [options, longest, vocabulary].

    read: 1 where targets is an option's token, 0 where it is padding.
    """
    ids, attention = left_padded([choice.prompt for choice in batch], loaded)
    places = (attention.cumsum(1) - 1).clamp(min=0)
    asked = loaded.model(ids, attention_mask=attention, position_ids=places, use_cache=True, logits_to_keep=1)
    owners = [place for place, choice in enumerate(batch) for _ in choice.options]
    first, steps = asked.logits[owners], targets.shape[1] - 1
    if not steps:
        return first
    asked.past_key_values.batch_select_indices(torch.tensor(owners, device=loaded.device))
    following = loaded.model(
        targets[:, :-1],
        attention_mask=torch.cat([attention[owners], read[:, :-1]], dim=1),
        position_ids=places[owners, -1:] + 1 + torch.arange(steps, device=loaded.device),
        past_key_values=asked.past_key_values,
    )
    return torch.cat([first, following.logits], dim=1)


def left_padded(rows: Sequence[TokenIds], loaded: LoadedModel) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, int64 [rows, longest]."""
    width, pad = max(map(len, rows)), padding_token(loaded)
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    attention = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=loaded.device), torch.tensor(attention, device=loaded.device)
