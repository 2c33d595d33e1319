"""Words and images as one sequence: what a vision-language model hands its decoder, taken at that door."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from steering.errors import ModelUnavailable
from steering.loading import LoadedModel

# What a decoder is handed beside these, in tensors, is not understood here and would be lost.
KNOWN = frozenset(
    {"inputs_embeds", "position_ids", "attention_mask", "visual_pos_masks", "deepstack_visual_embeds"}
)


@dataclass(frozen=True, slots=True, eq=False)
class ImageInputs:
    """A prompt's images as its model takes them.

    tensors: what the processor made beside the token ids. spans: where the tokens of image pieces stand
    in the prompt, as (begin, end). text, pictures: what both were made of, for engines that make them anew.
    """

    tensors: Mapping[str, Tensor]
    spans: tuple[tuple[int, int], ...]
    text: str = ""
    pictures: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class JoinedPrompt:
    """A prompt of words and images as the decoder sees it.

    embeddings [length, hidden_size]. positions: int64 [axes, length], None: 0, 1, 2, ... masks: the family's
    own [1, 1, length, length], by kind of layer, where some tokens attend to later ones; mutual: the runs of
    such tokens, as (begin, end). seen: bool [length], the tokens to which the first blocks add a row each of
    `added` [seen tokens, hidden_size]; None: no such family. offset: how far the positions of what follows
    lie from its place in the sequence.
    """

    embeddings: Tensor
    positions: Tensor | None
    masks: Mapping[str, Tensor]
    mutual: tuple[tuple[int, int], ...]
    seen: Tensor | None
    added: tuple[Tensor, ...]
    offset: int

    def cut(self, start: int, end: int) -> int:
        """Return where a piece from `start` that should end at `end` may end: never inside a mutual run."""
        for first, last in self.mutual:
            if first < end < last:
                return first if first > start else last
        return end

    def piece(self, start: int, end: int) -> dict[str, Any]:
        """Return what the decoder is handed for the tokens from start to end."""
        handed: dict[str, Any] = {"inputs_embeds": self.embeddings[None, start:end]}
        if self.masks:
            handed["attention_mask"] = {kind: mask[..., start:end, :end] for kind, mask in self.masks.items()}
        if self.positions is not None:
            handed["position_ids"] = self.positions[:, None, start:end]
        if self.seen is not None:
            before, here = int(self.seen[:start].sum()), int(self.seen[start:end].sum())
            handed["visual_pos_masks"] = self.seen[None, start:end] if here else None
            rows = [added[before : before + here] for added in self.added]
            handed["deepstack_visual_embeds"] = rows if here else None
        return handed


class Taken(Exception):
    """Not an error: the decoder's inputs, on their way out of the model's own code."""

    def __init__(self, handed: dict[str, Any]) -> None:
        super().__init__()
        self.handed = handed


class DecoderDoor:
    """Takes, or replaces, what the calling thread's forward pass hands the decoder.

    The vision tower and the merging of its features are the family's own code; what comes out of them
    can be computed in one thread, and prefilled in pieces by another.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._here = threading.local()

    def join(self, prompt: tuple[int, ...], images: ImageInputs) -> JoinedPrompt:
        """Run the model up to its decoder; raises ModelUnavailable where that is not understood."""
        device, dtype = self._loaded.device, self._loaded.model.dtype
        tensors = {name: fitted(tensor, device, dtype) for name, tensor in images.tensors.items()}
        ids = torch.tensor([prompt], device=device)
        self._here.taking = True
        try:
            self._loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **tensors)
        except Taken as taken:
            return joined(taken.handed)
        finally:
            self._here.taking = False
        raise ModelUnavailable(f"{type(self._loaded.model).__name__} did not call its decoder")

    @contextmanager
    def handing(self, replaced: Mapping[str, Any] | None) -> Iterator[None]:
        """Replace what the decoder is handed by the forward passes inside the block; None: nothing."""
        self._here.replaced = replaced
        try:
            yield
        finally:
            self._here.replaced = None

    def hook(self, _module: nn.Module, inputs: Any, handed: dict[str, Any]) -> Any:
        if getattr(self._here, "taking", False):
            raise Taken(handed)
        replaced = getattr(self._here, "replaced", None)
        return (inputs, {**handed, **replaced}) if replaced else None


@contextmanager
def opened(loaded: LoadedModel) -> Iterator[DecoderDoor]:
    """Install the door on the model's decoder; it is removed on leaving."""
    door = DecoderDoor(loaded)
    decoder = cast(Any, loaded.model).get_decoder()
    handle = decoder.register_forward_pre_hook(door.hook, with_kwargs=True)
    try:
        yield door
    finally:
        handle.remove()


def fitted(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def joined(handed: Mapping[str, Any]) -> JoinedPrompt:
    unknown = [name for name, value in handed.items() if name not in KNOWN and holds_tensors(value)]
    if unknown or handed.get("inputs_embeds") is None:
        raise ModelUnavailable(
            f"this model hands its decoder {', '.join(unknown) or 'no embeddings'}, "
            "which grainserve cannot batch"
        )
    embeddings, seen = handed["inputs_embeds"][0], handed.get("visual_pos_masks")
    positions = handed.get("position_ids")
    positions = positions[:, 0] if positions is not None and positions.dim() == 3 else None
    masks, mutual = own_masks(handed.get("attention_mask"))
    return JoinedPrompt(
        embeddings=embeddings,
        positions=positions,
        masks=masks,
        mutual=mutual,
        seen=None if seen is None else seen[0],
        added=tuple(handed.get("deepstack_visual_embeds") or ()),
        offset=0 if positions is None else int(positions.max()) + 1 - len(embeddings),
    )


def holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(holds_tensors, value)))


def own_masks(masks: Any) -> tuple[Mapping[str, Tensor], tuple[tuple[int, int], ...]]:
    """Return the family's masks and their mutual runs, if any; causal masks are the engine's to make.

    Raises ModelUnavailable for one mask for all layers, as of families whose whole prompt sees itself.
    """
    if not isinstance(masks, dict):
        if isinstance(masks, Tensor) and masks.dim() == 4 and mutual_runs(masks[0, 0]):
            raise ModelUnavailable(
                "this model hands its decoder one mask in which tokens attend to later ones, "
                "which grainserve cannot batch"
            )
        return {}, ()
    made = {kind: mask for kind, mask in masks.items() if isinstance(mask, Tensor) and mask.dim() == 4}
    mutual = merged(sorted(run for mask in made.values() for run in mutual_runs(mask[0, 0])))
    return (made, mutual) if mutual else ({}, ())


def mutual_runs(mask: Tensor) -> list[tuple[int, int]]:
    """Return, for each token that sees later ones, itself and the end of what it sees."""
    allowed = mask if mask.dtype == torch.bool else mask == 0
    places = torch.arange(allowed.shape[1], device=allowed.device)
    reach = (allowed * places).amax(dim=1).tolist()
    return [(query, last + 1) for query, last in enumerate(reach) if last > query]


def merged(runs: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for first, last in runs:
        if found and first < found[-1][1]:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return tuple(found)


def token_spans(prompt: tuple[int, ...], token: int) -> tuple[tuple[int, int], ...]:
    """Return the runs of a token in the prompt, as (begin, end)."""
    places = [place for place, each in enumerate(prompt) if each == token]
    begins = [place for place in places if place == 0 or prompt[place - 1] != token]
    ends = [place + 1 for place in places if place + 1 == len(prompt) or prompt[place + 1] != token]
    return tuple(zip(begins, ends, strict=True))
