"""Do gradients say what the dynamics do? Agreement of Jacobians with dynamics, and its nulls.

The dynamics are lagged correlations, or the coefficients of a regression of all later components
on all earlier ones: components that are correlated among themselves make the former differ from
the Jacobian even in a linear world, but not the latter. Everything is in standard deviations.

Two (D, D) matrices with the same axes, [source at t, target at t + k], are compared entry by
entry: by the share of equal signs, by Spearman's rank correlation and by the cosine. The diagonal,
a component's persistence, agrees almost always; so it is left out unless asked for.

Two nulls. *Components* (Mantel, 1967): the component indices of one matrix are permuted, rows and
columns by the same permutation, which keeps every row's and column's make-up but not which
component it belongs to. *Labels*: the samples whose Jacobians are averaged are dealt to the
behaviours anew, all of one source episode together; what remains is an agreement that any group of
samples would show.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from analysis.cross_correlation import deal_membership

MEASURES = {
    "sign": "share of entries with the same sign",
    "rank": "Spearman's rank correlation",
    "cosine": "cosine",
}


@dataclass(frozen=True, eq=False)
class Agreement:
    """Agreement of two matrices beside a null."""

    observed: NDArray[np.float64]
    """(num_measures,)"""
    null_mean: NDArray[np.float64]
    """(num_measures,)"""
    p_value: NDArray[np.float64]
    """(num_measures,) share of the null that agrees as well or better, one-sided."""


def agreement(
    first: NDArray[np.floating], second: NDArray[np.floating], with_diagonal: bool = False
) -> NDArray[np.float64]:
    """(D, D), (R, D, D) → (R, num_measures), in the order of MEASURES.

    Entries that are NaN in `first` are left out; a matrix of `second` that is NaN in another, or
    less than three entries, give NaN.
    """
    size = len(first)
    chosen = np.isfinite(first)
    if not with_diagonal:
        chosen &= ~np.eye(size, dtype=np.bool_)
    x, y = first[chosen], second[:, chosen]
    results = np.full((len(second), len(MEASURES)), np.nan)
    known = np.isfinite(y).all(axis=1)
    if len(x) >= 3 and known.any():
        results[known] = _measures(x, y[known])
    return results


def _measures(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.float64]:
    """(M,), (R, M) → (R, num_measures)"""
    same_sign = np.mean(np.sign(x) == np.sign(y), axis=1)
    rank_x, rank_y = rankdata(x), rankdata(y, axis=1)
    rank = _cosine(rank_x - rank_x.mean(), rank_y - rank_y.mean(axis=1, keepdims=True))
    return np.stack([same_sign, rank, _cosine(x, y)], axis=1)


def _cosine(x: NDArray[np.floating], y: NDArray[np.floating]) -> NDArray[np.float64]:
    """(M,), (R, M) → (R,)"""
    scale = np.sqrt(np.square(x).sum() * np.square(y).sum(axis=1))
    return np.divide(y @ x, scale, out=np.full(len(y), np.nan), where=scale > 0)


def permute_components(
    matrix: NDArray[np.floating], num_permutations: int, rng: np.random.Generator
) -> NDArray[np.floating]:
    """(D, D) → (R, D, D): rows and columns by the same random permutation."""
    orders = np.stack([rng.permutation(len(matrix)) for _ in range(num_permutations)])
    return matrix[orders[:, :, None], orders[:, None, :]]


def compare_with_null(
    dynamics: NDArray[np.floating], gradients: NDArray[np.floating], null: NDArray[np.floating]
) -> Agreement:
    """Agreement of `dynamics` with `gradients` beside that with matrices drawn under a null.

    Args:
        dynamics: (D, D) correlations or regression coefficients.
        gradients: (D, D) mean Jacobian.
        null: (R, D, D) mean Jacobians under the null.
    """
    observed = agreement(dynamics, gradients[None])[0]
    drawn = agreement(dynamics, null)
    # Equality up to rounding counts as reaching the observed value.
    reached = (drawn >= observed - 1e-12) & np.isfinite(drawn)
    known = np.isfinite(drawn).sum(axis=0)
    mean = np.where(known > 0, np.nansum(drawn, axis=0), np.nan) / np.maximum(known, 1)
    p_value = (1 + reached.sum(axis=0)) / (1 + known)
    return Agreement(observed, mean, np.where(np.isfinite(observed) & (known > 0), p_value, np.nan))


def deal_labels(
    per_sample: NDArray[np.floating],
    unit: NDArray[np.integer],
    is_member: NDArray[np.bool_],
    num_permutations: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """(N, D, D) → (R, D, D): means of groups in which units have traded their memberships.

    Args:
        per_sample: Jacobians of all samples that labels are dealt among; NaN for one without.
        unit: (N,) samples of one unit depend on each other, and trade places as a whole.
        is_member: (N,) which belong to the group.
        num_permutations: R.
        rng: draws the groups.
    """
    usable = np.isfinite(per_sample).all(axis=(1, 2))
    values, units, members = per_sample[usable], unit[usable], is_member[usable]
    if not members.any():
        return np.full((num_permutations, *per_sample.shape[1:]), np.nan)
    weights = np.stack(
        [deal_membership(members, units, rng) for _ in range(num_permutations)], dtype=np.float64
    )
    return np.tensordot(weights / weights.sum(axis=1, keepdims=True), values, axes=1)
