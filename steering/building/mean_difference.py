"""The mean difference of activations between preferred and dispreferred answers.

Source: contrastive activation addition, arXiv 2312.06681, with the mean over the answer's tokens.
"""

from collections.abc import Sequence

from torch import Tensor

from steering.building.activations import mean_activations
from steering.building.pairs import TokenisedPair
from steering.building.progress import Progress, silent
from steering.loading import LoadedModel


def mean_difference(
    loaded: LoadedModel, pairs: Sequence[TokenisedPair], progress: Progress = silent
) -> Tensor:
    """Return mean h(preferred) - mean h(dispreferred) at every block, float32 [layers, hidden_size]."""
    sequences = [pair.preferred for pair in pairs] + [pair.dispreferred for pair in pairs]
    activations = mean_activations(loaded, sequences, progress=progress)
    preferred, dispreferred = activations.split(len(pairs), dim=1)
    return (preferred - dispreferred).mean(1)
