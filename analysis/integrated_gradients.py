"""Integrated gradients: what a change of the input, as a whole, did to a target.

    attribution_i = (x_i − x'_i) ∫₀¹ ∂F/∂x_i (x' + α (x − x')) dα

(Sundararajan et al., "Axiomatic Attribution for Deep Networks", 2017). Attributions sum to
F(x) − F(x'); by how much the computed ones miss that is the convergence delta.

Gradients of networks jump where the line passes a kink, and a single rule over all of it converges
slowly there. But attributions of a piece of the line have to sum to the change of F over the piece,
so it is known where they miss it: the worst piece is halved, until the sum is met (adaptive
quadrature). Each piece has nodes at its ends (Gauss and Lobatto's rule), which tell that change.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial.legendre import Legendre
from numpy.typing import NDArray
from torch import Tensor

NODES_PER_PIECE = 8
NODES_TOGETHER = 2 * NODES_PER_PIECE
"""Points of the path in one batch: two pieces of it."""


@dataclass(frozen=True)
class IntegrationSettings:
    """How exact integrated gradients have to be."""

    tolerance: float = 0.01
    """Largest convergence delta, as a share of what the attributions have to sum to."""
    max_nodes: int = 1024
    """Points of the path, at most; at least 16 are taken."""


@dataclass(frozen=True, eq=False)
class IntegratedGradients:
    """Attributions of Q targets, whose input has any `shape`."""

    attribution: Tensor
    """(Q, *shape)"""
    difference: Tensor
    """(Q,) F(input) − F(baseline), float64."""
    convergence_delta: Tensor
    """(Q,) sum of the attributions − difference, float64."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """A part of the path, and its share in the integrals of the targets that needed it."""

    start: float
    stop: float
    attribution: dict[int, Tensor]
    """(*shape) by target."""
    missed: Tensor
    """(Q,) sum of the attributions less the change of the target; 0 where it was not asked for."""


class _Path:
    """The straight line from baseline to point, as `integrate` takes it."""

    def __init__(
        self, function: Callable[[Tensor], Tensor], point: Tensor, baseline: Tensor
    ) -> None:
        self._function, self._point, self._baseline = function, point, baseline
        nodes, weights = lobatto(NODES_PER_PIECE)
        self._nodes, self._weights = (torch.from_numpy(x).to(point) for x in (nodes, weights))

    @torch.no_grad()
    def difference(self) -> Tensor:
        """(Q,) F(point) − F(baseline), float64."""
        ends = self._function(torch.stack([self._point] + [self._baseline] * NODES_TOGETHER))
        return ends[:, 0].double() - ends[:, 1].double()

    def halves(self, start: float, stop: float, targets: list[int]) -> list[_Piece]:
        """The integrals of those targets over either half of a piece."""
        change, middle = self._point - self._baseline, (start + stop) / 2
        bounds = ((start, middle), (middle, stop))
        shares = torch.cat([low + (high - low) * self._nodes for low, high in bounds])
        along = self._baseline + shares.reshape(-1, *[1] * change.ndim) * change
        batch = torch.cat([self._point[None], along]).requires_grad_(True)
        outputs = self._function(batch)
        missed = torch.zeros(2, len(outputs), dtype=torch.float64)
        parts: tuple[dict[int, Tensor], dict[int, Tensor]] = ({}, {})
        for target in targets:
            gradients = _gradient(outputs[target], batch)[1:].split(NODES_PER_PIECE)
            values = outputs[target, 1:].detach().double().cpu().split(NODES_PER_PIECE)
            for half, (low, high) in enumerate(bounds):
                mean = torch.tensordot(self._weights, gradients[half], 1)
                parts[half][target] = (high - low) * mean * change
                missed[half, target] = _sum(parts[half][target]) - (
                    values[half][-1] - values[half][0]
                )
        return [_Piece(*bounds[half], parts[half], missed[half]) for half in range(2)]


def integrate(
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    baseline: Tensor,
    settings: IntegrationSettings,
) -> IntegratedGradients:
    """Integrate along the straight line from baseline to point.

    The piece of it in which attributions miss the change of their target most is halved, until
    every target is within the tolerance, or there are no more nodes.

    Args:
        function: (1 + NODES_TOGETHER, *shape) → (Q, 1 + NODES_TOGETHER) targets, no element of
            the batch depending on another, except that a target may be chosen by the first, which
            is always `point`.
        point: (*shape)
        baseline: (*shape)
        settings: tolerance and largest number of nodes.
    """
    path = _Path(function, point, baseline)
    difference = path.difference()
    allowed = settings.tolerance * difference.abs().cpu()
    pieces = path.halves(0.0, 1.0, list(range(len(difference))))
    attribution = torch.stack(
        [pieces[0].attribution[q] + pieces[1].attribution[q] for q in range(len(difference))]
    )
    num_nodes = NODES_TOGETHER
    while True:
        delta = attribution.double().flatten(1).sum(dim=1) - difference
        excess = delta.abs().cpu() - allowed
        unmet = torch.nonzero(excess > 0).flatten().tolist()
        if not unmet or num_nodes + NODES_TOGETHER > settings.max_nodes:
            return IntegratedGradients(attribution, difference, delta)
        worst = _take_worst(pieces, unmet, allowed)
        halves = path.halves(worst.start, worst.stop, unmet)
        for target in unmet:
            first, second = (half.attribution[target] for half in halves)
            attribution[target] += first + second - worst.attribution[target]
        pieces += halves
        num_nodes += NODES_TOGETHER


def _take_worst(pieces: list[_Piece], unmet: list[int], allowed: Tensor) -> _Piece:
    """Take out the piece that misses most of what a target is allowed to miss."""
    for piece in pieces:
        # What has been met is not looked at again, and needs its memory no more.
        for target in piece.attribution.keys() - set(unmet):
            del piece.attribution[target]
    smallest = torch.finfo(allowed.dtype).tiny
    shares = [(p.missed.abs() / allowed.clamp_min(smallest))[unmet].max() for p in pieces]
    return pieces.pop(int(torch.stack(shares).argmax()))


def lobatto(num_nodes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes in [0, 1], both ends among them, and their weights, which sum to 1.

    Exact for polynomials up to the degree 2 n − 3 (Abramowitz and Stegun, "Handbook of Mathematical
    Functions", 1964, 25.4.32).
    """
    legendre = Legendre.basis(num_nodes - 1)
    inner = np.sort(legendre.deriv().roots().real)
    nodes = np.concatenate([[-1.0], inner, [1.0]])
    weights = 1.0 / (num_nodes * (num_nodes - 1) * legendre(nodes) ** 2)
    return (nodes + 1) / 2, weights


def _sum(values: Tensor) -> float:
    return float(values.double().sum())


def _gradient(output: Tensor, batch: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(
        output.sum(), batch, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient
