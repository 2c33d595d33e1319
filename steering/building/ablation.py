"""Which tokens are taken out of a sequence, and what stands in their place.

Rows here are embeddings; where a family's inner blocks add rows to the pieces of images, those follow, so
that they are taken out, moved and attributed with the piece that they belong to. A word has zeros there.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steering.building.layout import widened
from steering.building.pairs import TokenSequence
from steering.image_tokens import is_piece, pieces
from steering.loading import LoadedModel

ROWS_AT_A_TIME = 8192


def ablate(sequence: TokenSequence, positions: Sequence[int]) -> TokenSequence:
    """Return the sequence with the positions marked for replacement by the baseline embedding."""
    return replace(sequence, ablated=tuple(sorted(positions)))


def strongest(scores: Tensor, candidates: Sequence[int], count: int) -> list[int]:
    """Return up to `count` candidate positions with the highest scores above zero, highest first."""
    ranked = sorted(candidates, key=lambda position: (-float(scores[position]), position))
    return [position for position in ranked[:count] if float(scores[position]) > 0]


def embed(loaded: LoadedModel, ids: Sequence[int]) -> Tensor:
    """Return the input embeddings [length, hidden_size] as the first block receives them.

    With pieces of images, of a family whose inner blocks add rows to them: wider by those.
    """
    table = loaded.model.get_input_embeddings()
    seen = pieces(ids)
    with torch.no_grad():
        words = [0 if is_piece(token) else token for token in ids]
        embeddings: Tensor = table(torch.tensor(words, device=loaded.device))
        if seen:
            features = loaded.image_tokens.of([ids[place] for place in seen])
            embeddings = widened(embeddings, features.shape[-1])
            embeddings[seen] = features.to(embeddings)
    return embeddings


def standing_in(loaded: LoadedModel, ids: Sequence[int], baseline: Tensor) -> Tensor:
    """Return what says nothing in each token's place, as wide as `embed`.

    baseline [hidden_size] for a word, the mean of all pieces for a piece of an image: also of the rows that
    inner blocks add, since they too tell of the piece. It keeps its position, and sees what it saw.
    """
    found = baseline.expand(len(ids), -1)
    seen = pieces(ids)
    if seen:
        piece = loaded.image_tokens.mean().to(found)
        found = widened(found, len(piece)).clone()
        found[seen] = piece
    return found


def embed_ablated(loaded: LoadedModel, sequence: TokenSequence, baseline: Tensor | None) -> Tensor:
    """Return the embeddings with the baseline [hidden_size] at the ablated positions.

    A piece of an image gives way to the mean of all pieces, see standing_in.
    None: they keep their own, and nothing attends to them; see steering.building.activations.
    """
    embeddings = embed(loaded, sequence.ids)
    if not sequence.ablated or baseline is None:
        return embeddings
    places = list(sequence.ablated)
    fills = standing_in(loaded, [sequence.ids[place] for place in places], baseline)
    embeddings = embeddings.clone()
    embeddings[places] = widened(fills, embeddings.shape[-1]).to(embeddings)
    return embeddings


def mean_embedding(loaded: LoadedModel) -> Tensor:
    """Return the mean of all token embeddings: inside the cloud, where zero and PAD are far off."""
    total = torch.zeros(loaded.identity.hidden_size, dtype=torch.float64, device=loaded.device)
    for start in range(0, loaded.vocabulary_size, ROWS_AT_A_TIME):
        ids = range(start, min(start + ROWS_AT_A_TIME, loaded.vocabulary_size))
        total += embed(loaded, ids).double().sum(0)
    return (total / loaded.vocabulary_size).float()


def zero_embedding(loaded: LoadedModel) -> Tensor:
    return torch.zeros(loaded.identity.hidden_size, device=loaded.device)


def pad_embedding(loaded: LoadedModel) -> Tensor:
    """Return the embedding of the padding token, or of the end token where there is none."""
    tokenizer = loaded.tokenizer
    token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return embed(loaded, [token])[0].float()


BASELINES: dict[str, Callable[[LoadedModel], Tensor]] = {
    "mean": mean_embedding,
    "zero": zero_embedding,
    "pad": pad_embedding,
}


def masked(_loaded: LoadedModel) -> None:
    """Nothing stands in for a token that is taken out: nothing attends to it."""


# What stands in for a token that is taken out; None: it is masked.
FILLS: dict[str, Callable[[LoadedModel], Tensor | None]] = {**BASELINES, "mask": masked}
