"""How likely each of a few texts is to follow a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steering.building.generation import as_words, features, padding_token
from steering.building.layout import Layout
from steering.loading import LoadedModel

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """A prompt and the texts of which one is to follow it, as tokens."""

    prompt: TokenIds
    options: tuple[TokenIds, ...]

    @property
    def longest(self) -> int:
        return max(map(len, self.options))


def option_scores(loaded: LoadedModel, batch: Sequence[Choice]) -> list[list[float]]:
    """Return for each choice its options' mean log-probabilities per token.

    A prompt runs once; its keys and values serve all of its options.
    """
    answers = [torch.tensor(option, device=loaded.device) for choice in batch for option in choice.options]
    targets = nn.utils.rnn.pad_sequence(answers, batch_first=True)
    read = nn.utils.rnn.pad_sequence([torch.ones_like(answer) for answer in answers], batch_first=True)
    predicted = torch.log_softmax(option_logits(loaded, batch, targets, read).float(), dim=-1)
    chosen = predicted.gather(2, targets[..., None])[..., 0]
    means = iter(((chosen * read).sum(1) / read.sum(1)).tolist())
    return [[next(means) for _ in choice.options] for choice in batch]


def option_logits(loaded: LoadedModel, batch: Sequence[Choice], targets: Tensor, read: Tensor) -> Tensor:
    """Return the logits that predict targets [options, longest], [options, longest, vocabulary].

    read: 1 where targets is an option's token, 0 where it is padding.
    """
    ids, attention = left_padded([choice.prompt for choice in batch], loaded)
    places = (attention.cumsum(1) - 1).clamp(min=0)
    prompts = [choice.prompt for choice in batch]
    layout = Layout(loaded, prompts, attention, left=True, features=features(loaded, ids))
    with layout.passing():
        asked = loaded.model(
            input_ids=as_words(loaded, ids),
            attention_mask=attention,
            position_ids=places,
            use_cache=True,
            logits_to_keep=1,
        )
    owners = [place for place, choice in enumerate(batch) for _ in choice.options]
    first, steps = asked.logits[owners], targets.shape[1] - 1
    if not steps:
        return first
    asked.past_key_values.batch_select_indices(torch.tensor(owners, device=loaded.device))
    with Layout(loaded, [prompts[owner] for owner in owners], attention[owners], left=True).passing():
        following = loaded.model(
            input_ids=targets[:, :-1],
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
