"""Integrated gradients: what a change of the input, as a whole, did to a target.

    attribution_i = (x_i − x'_i) ∫₀¹ ∂F/∂x_i (x' + α (x − x')) dα

(Sundararajan et al., "Axiomatic Attribution for Deep Networks", 2017). Attributions sum to
F(x) − F(x'); by how much the computed ones miss that is the convergence delta.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NODES_TOGETHER = 16
"""Points of the path in one batch."""


@dataclass(frozen=True)
class IntegrationSettings:
    """How exact integrated gradients have to be."""

    tolerance: float = 0.01
    """Largest convergence delta, as a share of what the attributions have to sum to."""
    max_nodes: int = 256
    """Points of the path, at most; a multiple of 16."""


@dataclass(frozen=True, eq=False)
class IntegratedGradients:
    """Attributions of Q targets, whose input has any `shape`."""

    attribution: Tensor
    """(Q, *shape)"""
    difference: Tensor
    """(Q,) F(input) − F(baseline), float64."""
    convergence_delta: Tensor
    """(Q,) sum of the attributions − difference, float64."""


def integrate(
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    baseline: Tensor,
    settings: IntegrationSettings,
) -> IntegratedGradients:
    """Integrate along the straight line from baseline to point, by Gauss and Legendre's rule.

    The number of nodes is doubled until every target is within the tolerance.

    Args:
        function: (1 + NODES_TOGETHER, *shape) → (Q, 1 + NODES_TOGETHER) targets, no element of
            the batch depending on another, except that a target may be chosen by the first, which
            is always `point`.
        point: (*shape)
        baseline: (*shape)
        settings: tolerance and largest number of nodes.
    """
    difference = _difference(function, point, baseline)
    num_nodes = NODES_TOGETHER
    while True:
        attribution = _quadrature(function, point, baseline, num_nodes)
        delta = attribution.double().flatten(1).sum(dim=1) - difference
        is_exact = bool((delta.abs() <= settings.tolerance * difference.abs()).all())
        if is_exact or 2 * num_nodes > settings.max_nodes:
            return IntegratedGradients(attribution, difference, delta)
        num_nodes *= 2


@torch.no_grad()
def _difference(function: Callable[[Tensor], Tensor], point: Tensor, baseline: Tensor) -> Tensor:
    ends = function(torch.stack([point] + [baseline] * NODES_TOGETHER)).double()
    return ends[:, 0] - ends[:, 1]


def _quadrature(
    function: Callable[[Tensor], Tensor], point: Tensor, baseline: Tensor, num_nodes: int
) -> Tensor:
    """(Q, *shape)"""
    nodes, weights = (
        torch.from_numpy(array).to(point).split(NODES_TOGETHER)
        for array in np.polynomial.legendre.leggauss(num_nodes)
    )
    change = point - baseline
    parts = []
    for position, weight in zip(nodes, weights, strict=True):
        # Legendre's rule is for [−1, 1].
        share = ((position + 1) / 2).reshape(-1, *[1] * point.ndim)
        batch = torch.cat([point[None], baseline + share * change]).requires_grad_(True)
        gradients = [_gradient(output, batch)[1:] for output in function(batch)]
        parts.append(torch.stack([torch.tensordot(weight / 2, g, 1) for g in gradients]))
    return torch.stack(parts).sum(dim=0) * change


def _gradient(output: Tensor, batch: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(
        output.sum(), batch, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient
