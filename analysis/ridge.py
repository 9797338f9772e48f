"""Ridge regression of many targets, its penalty chosen on levels that it was not fitted on.

All that is needed of the rows are their moments (sums of products) per fold. So every combination
of folds and every penalty comes without a further pass over the rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""λ of (1/n) Σ (y − x·w − b)² + λ |w|², where features have unit variance."""
MIN_FOLDS = 3
"""One is held out, one tells the penalty, one is fitted on."""
_SMALLEST_VARIANCE = 1e-9


@dataclass(frozen=True, eq=False)
class FoldedRidge:
    """For each held-out fold the probes y ≈ x · weights + bias that were fitted on the others.

    NaN where a target is known in fewer than three folds.
    """

    weights: NDArray[np.float64]
    """(num_folds, F, V)"""
    bias: NDArray[np.float64]
    """(num_folds, V)"""
    penalty: NDArray[np.float64]
    """(num_folds, V) the penalty chosen."""


@dataclass(frozen=True, eq=False)
class _Moments:
    """Sums over rows."""

    count: float
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    xx: NDArray[np.float64]
    xy: NDArray[np.float64]
    yy: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Path:
    """One probe for each of P penalties."""

    weights: NDArray[np.float64]
    """(P, F, V)"""
    bias: NDArray[np.float64]
    """(P, V)"""


@dataclass(frozen=True, eq=False)
class _ChosenPath:
    held_out: int
    """Number of the fold."""
    path: _Path
    penalty_index: NDArray[np.int64]
    """(V,)"""


def fit_ridge(
    features: NDArray[np.floating],
    targets: NDArray[np.floating],
    fold: NDArray[np.int64],
    penalties: Sequence[float] = PENALTIES,
) -> FoldedRidge:
    """Fit probes for every held-out fold on the other folds.

    The penalty is that with the smallest error on these other folds, each of them predicted from
    those that remain: the held-out fold has no part in the choice.

    Args:
        features: (N, F)
        targets: (N, V) NaN where unknown: those rows are left out.
        fold: (N,) numbers from 0 on; rows of one level share theirs.
        penalties: to choose from.
    """
    num_folds, num_targets = int(fold.max()) + 1, targets.shape[1]
    probes = FoldedRidge(
        np.full((num_folds, features.shape[1], num_targets), np.nan),
        np.full((num_folds, num_targets), np.nan),
        np.full((num_folds, num_targets), np.nan),
    )
    # Sums of squares lose fewer digits when the numbers are centred.
    center = features.mean(axis=0, dtype=np.float64)
    for columns in _columns_of_same_rows(targets):
        rows = np.isfinite(targets[:, columns[0]])
        if len(np.unique(fold[rows])) < MIN_FOLDS:
            continue
        y = targets[rows][:, columns]
        moments = [
            _moments(features[rows][members] - center, y[members])
            for members in (fold[rows] == number for number in range(num_folds))
        ]
        for chosen in _chosen_paths(moments, penalties):
            number, index, every = chosen.held_out, chosen.penalty_index, np.arange(len(columns))
            weights = chosen.path.weights[index, :, every].T
            probes.weights[number][:, columns] = weights
            probes.bias[number, columns] = chosen.path.bias[index, every] - center @ weights
            probes.penalty[number, columns] = np.asarray(penalties)[index]
    return probes


def _columns_of_same_rows(targets: NDArray[np.floating]) -> list[list[int]]:
    """Targets that are known at the same rows can be fitted together."""
    groups: dict[bytes, list[int]] = {}
    for column, known in enumerate(np.isfinite(targets).T):
        groups.setdefault(known.tobytes(), []).append(column)
    return list(groups.values())


def _chosen_paths(moments: list[_Moments], penalties: Sequence[float]) -> Iterator[_ChosenPath]:
    """For each held-out fold the probes of all penalties, and which of these to take."""
    total = _combine(moments)
    errors = _validation_errors(moments, total, penalties)
    for number, held_out in enumerate(moments):
        path = _fit(_without(total, held_out), penalties)
        yield _ChosenPath(number, path, errors[number].argmin(axis=0))


def _validation_errors(
    moments: list[_Moments], total: _Moments, penalties: Sequence[float]
) -> NDArray[np.float64]:
    """(folds, P, V) squared error on the other folds when one fold is held out."""
    errors = np.zeros((len(moments), len(penalties), len(total.y)))
    for i, first in enumerate(moments):
        for j in range(i):
            # What remains without both serves either as the held-out fold.
            path = _fit(_without(_without(total, first), moments[j]), penalties)
            errors[i] += _squared_error(path, moments[j])
            errors[j] += _squared_error(path, first)
    return errors


def _moments(x: NDArray[np.float64], y: NDArray[np.float64]) -> _Moments:
    return _Moments(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, (y**2).sum(0))


def _combine(moments: list[_Moments]) -> _Moments:
    total, *others = moments
    for one in others:
        total = _Moments(*(a + b for a, b in zip(_parts(total), _parts(one), strict=True)))
    return total


def _without(all_rows: _Moments, some: _Moments) -> _Moments:
    return _Moments(*(a - b for a, b in zip(_parts(all_rows), _parts(some), strict=True)))


def _parts(moments: _Moments) -> tuple[Any, ...]:
    return moments.count, moments.x, moments.y, moments.xx, moments.xy, moments.yy


def _fit(moments: _Moments, penalties: Sequence[float]) -> _Path:
    """Solve for all penalties by one eigendecomposition of the features' correlations."""
    n, mean_x, mean_y = moments.count, moments.x / moments.count, moments.y / moments.count
    covariance = moments.xx / n - np.outer(mean_x, mean_x)
    variance = np.diag(covariance)
    # A feature that never varies says nothing.
    varies = variance > _SMALLEST_VARIANCE * max(float(variance.max()), 1e-300)
    inverse_deviation = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
    correlation = inverse_deviation[:, None] * covariance * inverse_deviation
    values, vectors = np.linalg.eigh(correlation)
    crossed = inverse_deviation[:, None] * (moments.xy / n - np.outer(mean_x, mean_y))
    shrunk = 1 / (np.maximum(values, 0.0) + np.asarray(penalties)[:, None])
    weights = inverse_deviation[:, None] * (vectors @ (shrunk[:, :, None] * (vectors.T @ crossed)))
    return _Path(weights, mean_y - mean_x @ weights)


def _squared_error(path: _Path, rows: _Moments) -> NDArray[np.float64]:
    """(P, V) Σ (y − x·w − b)² over rows of which only the moments are known."""
    w, b = path.weights, path.bias
    fitted = np.einsum("pfv,pfv->pv", w, rows.xx @ w) + 2 * b * (rows.x @ w)
    crossed = np.einsum("pfv,fv->pv", w, rows.xy) + b * rows.y
    return rows.yy - 2 * crossed + fitted + rows.count * b**2
