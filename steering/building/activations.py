"""The residual stream at the outputs of all blocks, averaged over the tokens that are read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steering.building.ablation import embed_ablated
from steering.building.layout import Layout, side_by_side
from steering.building.pairs import TokenSequence
from steering.building.progress import Progress, silent, tracked
from steering.image_tokens import pieces
from steering.loading import LoadedModel
from steering.types import Tokens

BATCH_SIZE = 8


def mean_activations(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    baseline: Tensor | None = None,
    progress: Progress = silent,
    stage: str = "activations",
) -> Tensor:
    """Return each sequence's mean activation from its start on, float32 [layers, sequences, hidden_size].

    Blocks' outputs, before the final norm also for the last block. A sequence whose start is its last
    token gives the last token's activation. Averages are taken inside the forward pass, so that memory
    holds one block's activations of one batch. baseline: what stands in for ablated tokens; None: nothing
    attends to them, and they are not read.
    """
    # Sequences of like length share a batch, so that little of it is padding.
    order = sorted(range(len(sequences)), key=lambda place: len(sequences[place].ids))
    batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
    pooled = [
        batch_means(loaded, [sequences[place] for place in batch], baseline)
        for batch in tracked(batches, stage, progress)
    ]
    return torch.cat(pooled, dim=1)[:, torch.tensor(order).argsort()]


def batch_means(loaded: LoadedModel, batch: Sequence[TokenSequence], baseline: Tensor | None) -> Tensor:
    means: dict[int, Tensor] = {}
    read = read_mask(loaded, batch).float() * (1 - hidden_mask(loaded, batch, baseline).float())
    weights = read / read.sum(1, keepdim=True).clamp(min=1)

    def average(layer: int, hidden: Tensor) -> None:
        means[layer] = torch.einsum("bl,blh->bh", weights, hidden.float()).cpu()

    run_watched(loaded, batch, baseline, average)
    return torch.stack([means[layer] for layer in range(len(loaded.blocks))])


def median_norms(loaded: LoadedModel, sequences: Sequence[TokenSequence], tokens: Tokens = "all") -> Tensor:
    """Return each block's median norm over the tokens that are read, float32 [layers]: the unit of a dose.

    tokens: those that the dose moves; of pieces of images alone it is their own norm, which is another.
    """
    norms: dict[int, list[Tensor]] = {layer: [] for layer in range(len(loaded.blocks))}
    for i in range(0, len(sequences), BATCH_SIZE):
        batch = sequences[i : i + BATCH_SIZE]
        read = piece_mask(loaded, batch) if tokens == "image" else read_mask(loaded, batch)

        def measure(layer: int, hidden: Tensor, read: Tensor = read) -> None:
            norms[layer].append(torch.linalg.vector_norm(hidden[read].float(), dim=-1).cpu())

        run_watched(loaded, batch, None, measure)
    return torch.stack([torch.cat(found).median() for found in norms.values()])


def read_mask(loaded: LoadedModel, batch: Sequence[TokenSequence]) -> Tensor:
    """Return which tokens are read, bool [batch, longest]: those from each sequence's start to its end."""
    places = torch.arange(max(len(sequence.ids) for sequence in batch), device=loaded.device)
    starts = torch.tensor([sequence.start for sequence in batch], device=loaded.device)
    return (places >= starts[:, None]) & (places < lengths(loaded, batch)[:, None])


def piece_mask(loaded: LoadedModel, batch: Sequence[TokenSequence]) -> Tensor:
    """Return which tokens are pieces of images, bool [batch, longest]."""
    found = torch.zeros_like(read_mask(loaded, batch))
    for row, sequence in enumerate(batch):
        found[row, pieces(sequence.ids)] = True
    return found


def hidden_mask(loaded: LoadedModel, batch: Sequence[TokenSequence], baseline: Tensor | None) -> Tensor:
    """Return the ablated tokens that nothing stands in for, bool [batch, longest]."""
    hidden = torch.zeros_like(read_mask(loaded, batch))
    if baseline is None:
        for row, sequence in enumerate(batch):
            hidden[row, list(sequence.ablated)] = True
    return hidden


def lengths(loaded: LoadedModel, batch: Sequence[TokenSequence]) -> Tensor:
    return torch.tensor([len(sequence.ids) for sequence in batch], device=loaded.device)


def run_watched(
    loaded: LoadedModel,
    batch: Sequence[TokenSequence],
    baseline: Tensor | None,
    watcher: Callable[[int, Tensor], None],
) -> None:
    """Run the batch, padded on the right, and show each block's output to the watcher."""
    embeddings = [embed_ablated(loaded, sequence, baseline) for sequence in batch]
    inputs = nn.utils.rnn.pad_sequence(side_by_side(embeddings), batch_first=True)
    places = torch.arange(inputs.shape[1], device=loaded.device)
    attention = (places < lengths(loaded, batch)[:, None]) & ~hidden_mask(loaded, batch, baseline)
    layout = Layout(loaded, [sequence.ids for sequence in batch], attention)
    with torch.no_grad(), watching(loaded.blocks, watcher), layout.passing():
        loaded.model.get_decoder()(inputs_embeds=inputs, attention_mask=attention.long(), use_cache=False)


class BlockReached(Exception):
    """Ends a forward pass with a block's output, since what comes after it is not asked for."""

    def __init__(self, output: Tensor) -> None:
        super().__init__("the block has run")
        self.output = output


def block_output(loaded: LoadedModel, block: int, **inputs: Any) -> Tensor:
    """Return the block's output [batch, length, hidden_size]; the blocks after it do not run."""

    def end(_layer: int, hidden: Tensor) -> None:
        raise BlockReached(hidden)

    with watching([loaded.blocks[block]], end):
        try:
            loaded.model.get_decoder()(**inputs)
        except BlockReached as reached:
            return reached.output
    raise AssertionError(f"block {block} did not run")


@contextmanager
def watching(blocks: Sequence[nn.Module], watcher: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Show every block's output [batch, length, hidden_size] to watcher(layer, hidden)."""

    def hook(layer: int) -> Any:
        def show(_module: nn.Module, _inputs: Any, output: Any) -> None:
            watcher(layer, output[0] if isinstance(output, tuple) else output)

        return show

    handles = []
    try:
        for layer, block in enumerate(blocks):
            handles.append(block.register_forward_hook(hook(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()
