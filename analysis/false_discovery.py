"""Control of the false-discovery rate among many tests (Benjamini and Hochberg, 1995).

A rate that is controlled over all tests is one among all discoveries. Where one kind of them is
almost always made, as that a component goes with its own past, it makes room for false ones of
another kind. So each kind of hypothesis is adjusted on its own (Efron, "Simultaneous inference:
when should hypothesis testing problems be combined?", Annals of Applied Statistics, 2008).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control

NOT_TESTED = -1
"""Family of entries that are no hypotheses of their own."""
BETWEEN, SAME_STEP, OWN_PAST = range(3)
"""Families of a lagged matrix: one component and another some steps later, two components at one
step, a component and itself some steps later."""


def false_discovery_q(p_values: NDArray[np.floating], family: ArrayLike = 0) -> NDArray[np.float64]:
    """Adjusted p-values: the smallest false-discovery rate at which an entry counts as found.

    Args:
        p_values: (...); NaN where nothing was tested.
        family: (...) or what broadcasts to it. Entries of one number are adjusted together, those
            of NOT_TESTED not at all.

    Returns:
        (...); NaN where nothing was tested.
    """
    adjusted = np.full(p_values.shape, np.nan)
    families = np.broadcast_to(np.asarray(family), p_values.shape)
    is_tested = np.isfinite(p_values) & (families != NOT_TESTED)
    for number in np.unique(families[is_tested]):
        chosen = is_tested & (families == number)
        adjusted[chosen] = false_discovery_control(np.asarray(p_values[chosen], np.float64))
    return adjusted


def lagged_families(lags: Sequence[int], size: int) -> NDArray[np.int64]:
    """(L, D, D) family of each entry [lag, component at t, component at t + lag].

    At lag 0 a correlation matrix is symmetric, and 1 on its diagonal: only what is above it counts.
    """
    later = np.where(np.eye(size, dtype=np.bool_), OWN_PAST, BETWEEN)
    at_once = np.where(np.triu(np.ones((size, size), np.bool_), 1), SAME_STEP, NOT_TESTED)
    return np.stack([later if lag > 0 else at_once for lag in lags])
