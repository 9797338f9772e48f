"""Lagged cross-correlation of component coordinates, within groups of episodes, with its nulls.

r[i, j] at lag k pairs component i at step t with component j at step t + k, over all episodes of a
group and all t for which both steps are in the episode. At every step the group's mean is
subtracted, so that a course which all episodes share is no correlation; what is left is divided by
the root mean squares over the same pairs, so that r lies in [−1, 1] and is 1 on the diagonal of
lag 0.

Episodes of one unit, such as samples that began in one real episode, depend on each other
(`rollouts.independent_units`). Three nulls, each of which moves whole units and never single steps:

- *pairing*: the later series are those of another unit of the group. Nothing relates i to j.
- *time shift*: the later series of each unit are shifted around by a random number of steps.
  What differs between units stays related, but not at this lag. Only a correlation that goes
  beyond this null, away from zero, counts: one that is weaker than at other lags is nothing
  specific to its own.
- *labels*: units trade the groups that their episodes belong to. The group is like any other.

The p-value of an entry compares its z-score, by the mean and deviation of its own null, with the
z-scores of all entries of the matrix in all permutations (pooled as in significance analysis of
microarrays, Tusher, Tibshirani and Chu, 2001): a few hundred permutations then resolve p-values
far below their reciprocal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.episode_stacks import CoordinateStack
from experiment.resampling import INTERVAL_PERCENTILES
from generative.level_bootstrap import LevelBootstrap
from rollouts.independent_units import permute_units

NULLS = {
    "pairing": "later steps of another source episode of the group",
    "time_shift": "later steps shifted around within the episode",
    "labels": "source episodes dealt to the groups anew",
}
MIN_UNITS = 4
"""Groups of fewer independent units have no p-values."""


@dataclass(frozen=True, eq=False)
class GroupSeries:
    """Component coordinates of the episodes of one group."""

    values: NDArray[np.float64]
    """(n, T, D) centred at every step; zero after the end of an episode."""
    length: NDArray[np.int64]
    """(n,)"""
    unit: NDArray[np.int64]
    """(n,) episodes of one unit depend on each other."""

    @property
    def num_units(self) -> int:
        """How many independent units there are."""
        return len(np.unique(self.unit))

    @property
    def is_valid(self) -> NDArray[np.bool_]:
        """(n, T)"""
        return np.arange(self.values.shape[1]) < self.length[:, None]


@dataclass(frozen=True, eq=False)
class LaggedCorrelation:
    """Correlations of one group at L lags."""

    correlation: NDArray[np.float64]
    """(L, D, D), [lag, component at t, component at t + lag]; NaN where nothing varies."""
    interval: NDArray[np.float64]
    """(2, L, D, D) bounds of 95% intervals, from resampling units."""
    p_values: dict[str, NDArray[np.float64]]
    """(L, D, D) by null; NaN where there are too few units."""
    num_pairs: NDArray[np.int64]
    """(L,) pairs of steps."""


@dataclass(frozen=True)
class NullSettings:
    """How many permutations and resamples, and their seed."""

    num_permutations: int = 200
    """Permutations of each null."""
    num_resamples: int = 500
    """Bootstrap resamples of the independent units, for 95% intervals."""
    seed: int = 0


def component_deviations(stack: CoordinateStack) -> NDArray[np.float64]:
    """(D,) standard deviation over all valid steps; 1 for a component that never varies."""
    deviation = stack.values[stack.is_valid].std(axis=0, dtype=np.float64)
    return np.where(deviation > 0, deviation, 1.0)


def clip_coordinates(stack: CoordinateStack, limit: float) -> CoordinateStack:
    """Standardise every component over all valid steps and clip it; 0 for no clipping.

    A few extreme states would else decide every correlation.
    """
    valid = stack.is_valid
    scaled = (stack.values - stack.values[valid].mean(axis=0)) / component_deviations(stack)
    if limit > 0:
        scaled = scaled.clip(-limit, limit)
    scaled = np.where(valid[:, :, None], scaled, 0.0).astype(np.float32)
    return replace(stack, values=scaled)


def group_series(stack: CoordinateStack, members: NDArray[np.integer]) -> GroupSeries:
    """Those episodes, the group's mean subtracted at every step.

    Args:
        stack: of all episodes.
        members: positions of the group's episodes.
    """
    values, length = stack.values[members].astype(np.float64), stack.length[members]
    valid = (np.arange(values.shape[1]) < length[:, None])[:, :, None]
    mean = values.sum(axis=0) / np.maximum(valid.sum(axis=0), 1)
    return GroupSeries(np.where(valid, values - mean, 0.0), length, stack.unit[members])


def correlate(first: GroupSeries, later: GroupSeries, lag: int) -> NDArray[np.float64]:
    """(D, D) correlation of `first` at t with `later`, the same episodes or others, at t + lag."""
    num_steps, size = first.values.shape[1:]
    x = first.values[:, : num_steps - lag].reshape(-1, size)
    y = later.values[:, lag:].reshape(-1, size)
    # Zeros after the end of an episode drop out of the products, but not out of the squares.
    has_x = first.is_valid[:, : num_steps - lag].ravel().astype(float)
    has_y = later.is_valid[:, lag:].ravel().astype(float)
    scale = np.sqrt(np.outer(has_y @ np.square(x), has_x @ np.square(y)))
    return np.divide(x.T @ y, scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def regress(series: GroupSeries, lag: int, ridge: float) -> NDArray[np.float64]:
    """(D, D) coefficients [component at t, component at t + lag] of the regression on all at t.

    Where the dynamics are linear, this is what the Jacobian is, however the components are
    correlated among themselves.

    Args:
        series: the group.
        lag: in steps.
        ridge: added to the diagonal of the second moments, as a share of their mean.
    """
    num_steps, size = series.values.shape[1:]
    pairs = series.is_valid[:, lag:]
    x, y = series.values[:, : num_steps - lag][pairs], series.values[:, lag:][pairs]
    moments = x.T @ x
    penalty = ridge * np.trace(moments) / size
    if not penalty > 0:
        return np.full((size, size), np.nan)
    return np.linalg.solve(moments + penalty * np.eye(size), x.T @ y)


def permute_pairing(series: GroupSeries, rng: np.random.Generator) -> GroupSeries:
    """Every episode replaced by one of another unit, by a random permutation of the units."""
    order = permute_units(series.unit, rng)
    return GroupSeries(series.values[order], series.length[order], series.unit)


def shift_in_time(series: GroupSeries, rng: np.random.Generator) -> GroupSeries:
    """Every episode shifted around by at least one step, by as much as others of its unit.

    Where their lengths differ, it is the share of the length that they have in common.
    """
    _, number = np.unique(series.unit, return_inverse=True)
    length, share = series.length[:, None], rng.random(series.num_units)[number, None]
    shift = 1 + np.floor(share * np.maximum(length - 1, 1)).astype(np.int64)
    step = np.arange(series.values.shape[1])
    source = np.where(step < length, (step + shift) % length, step)
    return replace(series, values=np.take_along_axis(series.values, source[:, :, None], axis=1))


def deal_membership(
    is_member: NDArray[np.bool_], unit: NDArray[np.integer], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """(N,) which of N episodes belong to a group, units having traded their memberships.

    Units are of different sizes, so the size of the group varies a little; of a group of two or
    more, two are left at least.
    """
    fewest = min(2, int(is_member.sum()))
    dealt = is_member[permute_units(unit, rng)]
    while dealt.sum() < fewest:
        dealt = is_member[permute_units(unit, rng)]
    return dealt


def lagged_correlation(
    stack: CoordinateStack,
    members: NDArray[np.integer],
    lags: Sequence[int],
    settings: NullSettings,
    others: NDArray[np.integer] | None = None,
) -> LaggedCorrelation:
    """Correlations of one group with intervals and p-values.

    Args:
        stack: coordinates of all episodes.
        members: positions of the group's episodes.
        lags: each below the number of steps.
        settings: permutations and resamples.
        others: positions of all episodes that labels are dealt among; None for no such null.
    """
    rng = np.random.default_rng(settings.seed)
    series = group_series(stack, members)
    observed = np.stack([correlate(series, series, lag) for lag in lags])

    def under(
        null: Callable[[], tuple[GroupSeries, GroupSeries]], is_outward: bool = False
    ) -> NDArray[np.float64]:
        if series.num_units < MIN_UNITS:
            return np.full(observed.shape, np.nan)
        draws = np.empty((settings.num_permutations, *observed.shape))
        for draw in draws:
            first, later = null()
            for index, lag in enumerate(lags):
                draw[index] = correlate(first, later, lag)
        return pooled_p_values(observed, draws, is_outward)

    def any_members() -> tuple[GroupSeries, GroupSeries]:
        assert others is not None
        is_member = np.isin(others, members)
        chosen = group_series(stack, others[deal_membership(is_member, stack.unit[others], rng)])
        return chosen, chosen

    p_values = {
        "pairing": under(lambda: (series, permute_pairing(series, rng))),
        "time_shift": under(lambda: (series, shift_in_time(series, rng)), is_outward=True),
    }
    if others is not None:
        p_values["labels"] = under(any_members)
    return LaggedCorrelation(
        correlation=observed,
        interval=np.where(np.isnan(observed), np.nan, _bootstrap(series, lags, settings)),
        p_values=p_values,
        num_pairs=np.array([np.maximum(series.length - lag, 0).sum() for lag in lags]),
    )


def pooled_p_values(
    observed: NDArray[np.floating], draws: NDArray[np.floating], is_outward: bool = False
) -> NDArray[np.float64]:
    """P-values by sizes of z-scores whose null is pooled over all entries of a matrix.

    Args:
        observed: (L, D, D)
        draws: (R, L, D, D) under the null.
        is_outward: whether an entry nearer to zero than the null's mean has a p-value of 1.

    Returns:
        (L, D, D); NaN where the null does not vary.
    """
    mean, deviation = draws.mean(axis=0), draws.std(axis=0)
    # What rounding leaves of a constant is no variance.
    usable = deviation > 1e-12
    spread = np.where(usable, deviation, np.nan)
    excess = (observed - mean) / spread
    found = np.sign(observed) * excess if is_outward else np.abs(excess)
    null = np.abs(draws - mean) / spread
    p_values = np.full(observed.shape, np.nan)
    for lag in range(len(observed)):
        pool = np.sort(null[:, lag][:, usable[lag]].ravel())
        reached = len(pool) - np.searchsorted(pool, found[lag][usable[lag]])
        p_values[lag][usable[lag]] = (1 + reached) / (1 + len(pool))
    return p_values


def _bootstrap(
    series: GroupSeries, lags: Sequence[int], settings: NullSettings
) -> NDArray[np.float64]:
    """(2, L, D, D) 95% intervals; units are resampled, the means at each step held fixed."""
    bootstrap = LevelBootstrap(series.unit, settings.num_resamples, settings.seed)
    num_steps, size = series.values.shape[1:]
    bounds = np.empty((2, len(lags), size, size))
    for index, lag in enumerate(lags):
        pairs = (series.is_valid[:, lag:])[:, :, None]
        x, y = series.values[:, : num_steps - lag] * pairs, series.values[:, lag:]
        top, x2, y2 = (
            bootstrap.resample(bootstrap.sum_by_level(values))
            for values in (
                np.einsum("nti,ntj->nij", x, y),
                np.square(x).sum(axis=1),
                np.square(y).sum(axis=1),
            )
        )
        scale = np.einsum("ri,rj->rij", np.sqrt(x2), np.sqrt(y2))
        drawn = np.divide(top, scale, out=np.zeros_like(top), where=scale > 0)
        bounds[:, index] = np.percentile(drawn, INTERVAL_PERCENTILES, axis=0)
    return bounds
