"""The straight path from a baseline to the input, and what an objective and its gradient do along it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Gauss-Legendre points of one part of a path that is halved where it is rough.
NODES = 4

Span = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A stretch of the path: the tokens' scores [length] on it, and the objective at its two ends."""

    span: Span
    scores: Tensor
    first: float
    last: float

    @property
    def missed(self) -> float:
        """How far the scores are from accounting for the objective's change."""
        return float(self.scores.sum()) - (self.last - self.first)

    @property
    def halves(self) -> tuple[Span, Span]:
        middle = sum(self.span) / 2
        return (self.span[0], middle), (middle, self.span[1])


class Path:
    """The path from the baseline to inputs [length, hidden_size]; `at_a_time` of its points run together."""

    def __init__(
        self, objective: Callable[[Tensor], Tensor], inputs: Tensor, baseline: Tensor, at_a_time: int
    ) -> None:
        self._objective = objective
        self._dtype = inputs.dtype
        self._start = baseline.float().to(inputs.device).expand_as(inputs)
        self._difference = inputs.float() - self._start
        self._at_a_time = at_a_time

    def parts(self, spans: Sequence[Span], nodes: int) -> list[Part]:
        """Return the spans' parts, each integrated by a Gauss-Legendre rule of so many nodes."""
        rule, weights = np.polynomial.legendre.leggauss(nodes)
        places = [begin + (end - begin) * (x + 1) / 2 for begin, end in spans for x in rule]
        scores = self._scores(self._points(places)).view(len(spans), nodes, -1)
        shares = torch.as_tensor(weights / 2, dtype=torch.float32)
        edges = self.values([edge for span in spans for edge in span])
        return [
            Part(span, (span[1] - span[0]) * (shares @ found), first, last)
            for span, found, first, last in zip(spans, scores, edges[::2], edges[1::2], strict=True)
        ]

    def values(self, places: Sequence[float]) -> list[float]:
        """Return the objective at places between 0, the baseline, and 1, the input."""
        distinct = sorted(set(places))
        with torch.no_grad():
            found = [
                self._objective(points).float() for points in self._points(distinct).split(self._at_a_time)
            ]
        known = dict(zip(distinct, torch.cat(found).tolist(), strict=True))
        return [known[place] for place in places]

    def scores_around_input(self, copies: int, deviation: float) -> Tensor:
        """Return the gradient times the difference, [copies, length], at noisy copies of the input."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((copies, *self._difference.shape), generator=generator) * deviation
        return self._scores(self._points([1.0] * copies) + noise.to(self._difference.device, self._dtype))

    def _points(self, places: Sequence[float]) -> Tensor:
        alphas = torch.tensor(places, dtype=torch.float32, device=self._difference.device)
        return (self._start + alphas[:, None, None] * self._difference).to(self._dtype)

    def _scores(self, points: Tensor) -> Tensor:
        """Return the gradient times the difference at each point, float32 [points, length]."""
        found = [self._gradient(batch) * self._difference for batch in points.split(self._at_a_time)]
        return torch.cat([each.sum(-1) for each in found]).cpu()

    def _gradient(self, points: Tensor) -> Tensor:
        with torch.enable_grad():
            points = points.detach().requires_grad_(True)
            return torch.autograd.grad(self._objective(points).sum(), points)[0].float()
