"""Where to move every block's output so that preferred answers become likelier than dispreferred ones.

The gradient, at strength 0, of log p(preferred | prompt) - log p(dispreferred | prompt), each per token, with
respect to a vector that steers every token at a block's output: what the objective of BiPO, arXiv 2406.00045,
would climb first. Renormalisation takes part: what only lengthens an activation moves nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from steering.building.ablation import embed
from steering.building.activations import watching
from steering.building.layout import Layout
from steering.building.pairs import TokenisedPair, TokenSequence
from steering.building.progress import Progress, silent, tracked
from steering.loading import LoadedModel


def contrastive_gradient(
    loaded: LoadedModel, pairs: Sequence[TokenisedPair], progress: Progress = silent
) -> Tensor:
    """Return the mean of the pairs' gradients at every block, float32 [layers, hidden_size]."""
    return contrastive_gradients(loaded, pairs, progress).mean(1)


def contrastive_gradients(
    loaded: LoadedModel, pairs: Sequence[TokenisedPair], progress: Progress = silent
) -> Tensor:
    """Return each pair's gradient at every block, float32 [layers, pairs, hidden_size]."""
    found = [
        steering_gradient(loaded, pair.preferred) - steering_gradient(loaded, pair.dispreferred)
        for pair in tracked(pairs, "gradients", progress)
    ]
    return torch.stack(found, dim=1)


def steering_gradient(loaded: LoadedModel, sequence: TokenSequence) -> Tensor:
    """Return the gradient of the answer's log-probability per token, float32 [layers, hidden_size]."""
    outputs: dict[int, Tensor] = {}
    inputs = embed(loaded, sequence.ids)[None].requires_grad_(True)
    targets = torch.tensor(sequence.ids[sequence.start :], device=loaded.device)
    # The logits before an answer's token predict it.
    predicting = torch.arange(sequence.start - 1, len(sequence.ids) - 1, device=loaded.device)
    layout = Layout(loaded, [sequence.ids])
    with torch.enable_grad(), watching(loaded.blocks, outputs.__setitem__), layout.passing():
        logits = loaded.model(inputs_embeds=inputs, use_cache=False, logits_to_keep=predicting).logits
        objective = -nn.functional.cross_entropy(logits[0].float(), targets)
        gradients = torch.autograd.grad(objective, [outputs[layer] for layer in range(len(loaded.blocks))])
    return torch.stack(
        [
            across(gradient[0].float(), outputs[layer][0].detach().float()).sum(0)
            for layer, gradient in enumerate(gradients)
        ]
    ).cpu()


def across(gradients: Tensor, activations: Tensor) -> Tensor:
    """Return the part of the gradients at right angles to the activations, both [length, hidden_size].

    The derivative of (h + v) |h| / |h + v| by v, at v = 0, takes the part along h away.
    """
    directions = normalize(activations, dim=-1)
    return gradients - (gradients * directions).sum(-1, keepdim=True) * directions
