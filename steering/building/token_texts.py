"""Token ids as the pieces of text that a reader sees."""

from collections.abc import Sequence
from itertools import groupby

from steering.building.highlighting import PIECE
from steering.image_tokens import is_piece
from steering.loading import LoadedModel

HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def token_texts(loaded: LoadedModel, ids: Sequence[int]) -> tuple[str, ...]:
    """Return each token's part of the text, special tokens too; they join to the text.

    A character that several tokens spell comes with the last of them, and the others are empty. A piece of
    an image is a square.
    """
    texts: list[str] = []
    for seen, group in groupby(ids, is_piece):
        run = list(group)
        texts += [PIECE] * len(run) if seen else word_texts(loaded, run)
    return tuple(texts)


def word_texts(loaded: LoadedModel, ids: Sequence[int]) -> list[str]:
    texts, told = [], 0
    for end in range(1, len(ids) + 1):
        text = loaded.tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False)
        whole = text if end == len(ids) else text.rstrip(HALF_A_CHARACTER)
        texts.append(whole[told:])
        told = max(told, len(whole))
    return texts
