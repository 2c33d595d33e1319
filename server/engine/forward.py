"""One forward pass of the model over pieces of running requests, steered and cached."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from server.engine.masks import MaskMaker
from server.engine.running import RunningRequest
from server.engine.slots import SlotCache, Window, decode_positions
from steering.hooks import BlockSteering
from steering.loading import LoadedModel
from steering.plan import BatchRow, DeltaBank, steering_batch
from steering.types import SteeringBatch
from steering.vision import DecoderDoor


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The next `count` tokens of the request in `slot`."""

    slot: int
    request: RunningRequest
    count: int


class ForwardPass:
    """Runs pieces on the model: one token each of slots 0..n-1, whole fresh prompts, or one longer piece.

    A prompt with images goes alone: the model embeds its tokens as words, and the door puts what the images
    made of them in their place. So does one whose tokens' log-probabilities are asked for.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        steering: BlockSteering,
        door: DecoderDoor,
        cache: SlotCache,
        bank: DeltaBank,
    ) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._steering = steering
        self._door = door
        self._cache = cache
        self._bank = bank
        self._masks = MaskMaker(loaded.model.config.get_text_config())
        self._decoding: tuple[list[RunningRequest], SteeringBatch] | None = None

    def __call__(self, pieces: Sequence[Piece]) -> Tensor:
        """Return the logits after each piece's last token, float32 [pieces, vocabulary]."""
        window = window_of(pieces)
        decoding = is_decode(window)
        self._cache.window = window
        self._cache.positions = decode_positions(window.starts, self._device) if decoding else None
        tokens, positions = padded_tokens(pieces, self._device)
        batch = self._decode_steering(pieces) if decoding else self._steering_of(pieces)
        seen = joined_piece(pieces)
        telling = len(pieces) == 1 and pieces[0].request.wants_prompt_logprobs
        with self._steering.applying(batch), self._door.handing(seen):
            output = self._model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=self._masks.masks(window, self._device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=0 if telling else 1,
            )
        if telling:
            pieces[0].request.note_prompt(output.logits[0].float())
        for piece, steered in zip(pieces, batch.steered_tokens, strict=True):
            piece.request.advance(piece.count, steered)
        return output.logits[:, -1].float()

    def works(self) -> bool:
        """Whether the model runs at all, on one token with no cache and no steering."""
        try:
            self._model(
                input_ids=torch.zeros((1, 1), dtype=torch.int64, device=self._device), use_cache=False
            )
        except Exception:
            return False
        return True

    def _decode_steering(self, pieces: Sequence[Piece]) -> SteeringBatch:
        """Return the steering of a decode step, the last step's as long as the same requests decode.

        A prompt's last token can be a piece of its own; it looks like a decode, but is steered as prompt.
        """
        requests = [piece.request for piece in pieces]
        if any(request.computed < request.prompt_length for request in requests):
            return self._steering_of(pieces)
        if self._decoding is None or self._decoding[0] != requests:
            self._decoding = requests, self._steering_of(pieces)
        return self._decoding[1]

    def _steering_of(self, pieces: Sequence[Piece]) -> SteeringBatch:
        length = max(piece.count for piece in pieces)
        rows = [
            BatchRow(
                held=piece.request.held,
                first=(index + 1) * length - piece.count,
                start=piece.request.computed,
                count=piece.count,
                prompt_length=piece.request.prompt_length,
                images=piece.request.image_spans,
            )
            for index, piece in enumerate(pieces)
        ]
        return steering_batch(rows, len(pieces) * length, self._bank)


def joined_piece(pieces: Sequence[Piece]) -> dict[str, Any] | None:
    """Return what the decoder is handed for a piece of a prompt with images; None: words alone."""
    request, count = pieces[0].request, pieces[0].count
    if request.joined is None or not request.sees_images or len(pieces) > 1:
        return None
    return request.joined.piece(request.computed, request.computed + count)


def window_of(pieces: Sequence[Piece]) -> Window:
    return Window(
        slots=tuple(piece.slot for piece in pieces),
        starts=tuple(piece.request.computed for piece in pieces),
        counts=tuple(piece.count for piece in pieces),
    )


def is_decode(window: Window) -> bool:
    return (
        window.slots == tuple(range(len(window.slots)))
        and all(count == 1 for count in window.counts)
        and all(window.starts)
    )


def padded_tokens(pieces: Sequence[Piece], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and positions, int64 [pieces, length]; shorter pieces are padded on the left."""
    length = max(piece.count for piece in pieces)
    tokens, positions = [], []
    for piece in pieces:
        start, end = piece.request.computed, piece.request.computed + piece.count
        padding = [0] * (length - piece.count)
        offset = piece.request.position_offset
        tokens.append(padding + piece.request.tokens[start:end])
        positions.append(padding + list(range(start + offset, end + offset)))
    return torch.tensor(tokens, device=device), torch.tensor(positions, device=device)
