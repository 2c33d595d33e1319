"""What a model does under some deltas: how much of the behaviour, how fluently."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

from steering.building.damage import Damage, DamageMeasure
from steering.building.generation import Deltas, generate_answers, mean_log_probabilities
from steering.building.metrics import Metric, read_words
from steering.building.pairs import TokenisedPair, TokenSequence
from steering.loading import LoadedModel
from steering.types import Tokens

# An answer that says so many words in a row twice repeats itself.
REPEATED_WORDS = 4


@dataclass(frozen=True, slots=True)
class Fluency:
    """Per answer: its mean log-probability per token under the unsteered model, and its distinct-2 share."""

    log_probabilities: tuple[float, ...]
    distinct: tuple[float, ...]

    @property
    def log_probability(self) -> float:
        return fmean(self.log_probabilities)

    @property
    def distinct_2(self) -> float:
        return fmean(self.distinct)


@dataclass(frozen=True, slots=True)
class Choices:
    """For each pair, whether its preferred answer is the likelier: as a whole, and per token."""

    whole: tuple[bool, ...]
    per_token: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One score per item, the answers that the deltas led to, and what they cost.

    damage: None where it was not measured; choices: None where the items are not pairs.
    """

    scores: tuple[float, ...]
    answers: tuple[str, ...]
    fluency: Fluency | None
    damage: Damage | None = None
    choices: Choices | None = None

    @property
    def score(self) -> float:
        return fmean(self.scores)

    @property
    def repetition(self) -> float:
        """The share of answers that repeat themselves."""
        return fmean(map(repeats_itself, self.answers))


# measure(deltas, fluently): fluently asks for the fluency, and the damage if it is measured, too.
Measure = Callable[[Deltas, bool], Outcome]


def measure_by_metric(
    loaded: LoadedModel,
    prompts: Sequence[tuple[int, ...]],
    metric: Metric,
    max_tokens: int,
    tokens: Tokens = "all",
) -> Measure:
    """Return a measure that generates greedily and scores each answer by the metric, in its direction.

    tokens: those that the deltas move.
    """

    def measure(deltas: Deltas, fluently: bool) -> Outcome:
        answered = generate_answers(loaded, prompts, deltas, max_tokens, tokens)
        texts = answer_texts(loaded, answered)
        scores = tuple(metric.direction * score for score in metric.score(loaded, texts))
        return Outcome(scores, texts, measure_fluency(loaded, answered, texts) if fluently else None)

    return measure


def measure_by_margin(
    loaded: LoadedModel, pairs: Sequence[TokenisedPair], max_tokens: int, tokens: Tokens = "all"
) -> Measure:
    """Return a measure of the margin log p(preferred) - log p(dispreferred), each per token.

    tokens: those that the deltas move.
    """

    def measure(deltas: Deltas, fluently: bool) -> Outcome:
        preferred = mean_log_probabilities(loaded, [pair.preferred for pair in pairs], deltas, tokens)
        dispreferred = mean_log_probabilities(loaded, [pair.dispreferred for pair in pairs], deltas, tokens)
        margins = tuple(p - d for p, d in zip(preferred, dispreferred, strict=True))
        choices = choose(pairs, preferred, dispreferred)
        if not fluently:
            return Outcome(margins, (), None, None, choices)
        answered = generate_answers(loaded, [pair.prompt for pair in pairs], deltas, max_tokens, tokens)
        texts = answer_texts(loaded, answered)
        return Outcome(margins, texts, measure_fluency(loaded, answered, texts), None, choices)

    return measure


def with_damage(measure: Measure, damage: DamageMeasure) -> Measure:
    """Return the measure with the damage added wherever the fluency is asked for."""

    def measured(deltas: Deltas, fluently: bool) -> Outcome:
        outcome = measure(deltas, fluently)
        return replace(outcome, damage=damage(deltas)) if fluently else outcome

    return measured


def choose(
    pairs: Sequence[TokenisedPair], preferred: Sequence[float], dispreferred: Sequence[float]
) -> Choices:
    """Return the choices that follow from the answers' mean log-probabilities per token."""
    means = list(zip(preferred, dispreferred, strict=True))
    lengths = [(answer_length(pair.preferred), answer_length(pair.dispreferred)) for pair in pairs]
    whole = tuple(p * m > d * n for (p, d), (m, n) in zip(means, lengths, strict=True))
    return Choices(whole, tuple(p > d for p, d in means))


def answer_length(sequence: TokenSequence) -> int:
    return len(sequence.ids) - sequence.start


def measure_fluency(loaded: LoadedModel, answered: Sequence[TokenSequence], texts: Sequence[str]) -> Fluency:
    unsteered = mean_log_probabilities(loaded, answered, {})
    return Fluency(tuple(unsteered), tuple(map(distinct_bigrams, texts)))


def answer_texts(loaded: LoadedModel, answered: Sequence[TokenSequence]) -> tuple[str, ...]:
    answers = [sequence.ids[sequence.start :] for sequence in answered]
    return tuple(loaded.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers)


def distinct_bigrams(text: str) -> float:
    """Return the share of word pairs that are not repeats, 1 for a text without pairs."""
    words = [word.casefold() for word in read_words(text)]
    bigrams = list(pairwise(words))
    return len(set(bigrams)) / len(bigrams) if bigrams else 1.0


def repeats_itself(text: str) -> bool:
    words = [word.casefold() for word in read_words(text)]
    runs = [tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)]
    return len(set(runs)) < len(runs)
