"""How many factors a non-negative factorisation should have, by cross-validation.

Held-out rows alone would not tell: more factors always describe a row better when all of it is
given. So of held-out rows some hidden units are shown, their factors found from these, and the
other units predicted (bi-cross-validation: Owen and Perry, "Bi-cross-validation of the SVD and the
nonnegative matrix factorization", 2009). The rows of an episode stay together.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import NMF, non_negative_factorization
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GroupKFold, KFold
from tqdm import tqdm

from experiment.counts import at_most_available
from experiment.errors import UserError

NUM_ROW_FOLDS = 3
NUM_UNIT_FOLDS = 3
SMALLEST_SHARE_LEFT = 1e-4
"""Of the mean square of the data, that factors are taken to leave even where they fit exactly."""
LARGEST_PENALTY = 1e200
"""Leaves no coefficient, and is far below the largest number, whatever the size of the data."""


@dataclass(frozen=True, eq=False)
class FactorChoice:
    """Candidates and how well they predict."""

    candidates: tuple[int, ...]
    error: NDArray[np.float64]
    """(len(candidates),) share of the variance of held-out units left unexplained."""

    @property
    def best(self) -> int:
        """The candidate of the smallest error."""
        return self.candidates[int(self.error.argmin())]


def choose_factor_count(
    hidden: NDArray[np.floating],
    unit: NDArray[np.int64],
    candidates: Sequence[int],
    max_iter: int,
    seed: int,
) -> FactorChoice:
    """Find which number of factors predicts held-out units of held-out episodes best.

    Args:
        hidden: (N, H) hidden states, in any unit: only their ratios count.
        unit: (N,) of each row: what is held out as a whole, its level or episode.
        candidates: numbers of factors; one above the number of hidden units stands for that.
        max_iter: limit on the iterations of each factorisation.
        seed: shuffles levels and hidden units, and starts the factorisations.

    Raises:
        UserError: too few levels or hidden units.
    """
    num_units = hidden.shape[1]
    if len(np.unique(unit)) < NUM_ROW_FOLDS or num_units < NUM_UNIT_FOLDS:
        raise UserError(
            f"--nmf_candidates: choosing needs {NUM_ROW_FOLDS} levels and {NUM_UNIT_FOLDS} "
            f"hidden units, found {len(np.unique(unit))} and {num_units}"
        )
    hidden = _to_unit_size(hidden)
    existing = (at_most_available(c, num_units, "--nmf_candidates") for c in candidates)
    candidates = tuple(dict.fromkeys(existing))
    rows = list(
        GroupKFold(NUM_ROW_FOLDS, shuffle=True, random_state=seed).split(hidden, groups=unit)
    )
    units = list(KFold(NUM_UNIT_FOLDS, shuffle=True, random_state=seed).split(np.arange(num_units)))
    error = np.zeros(len(candidates))
    total = 0.0
    for training, testing in tqdm(rows, desc="number of factors", unit="fold", disable=None):
        low = hidden[training].min(axis=0)
        data = np.maximum(hidden - low, 0.0)
        total += ((data[testing] - data[training].mean(axis=0)) ** 2).sum()
        for number, candidate in enumerate(candidates):
            fitted = _fit_factors(data[training], candidate, max_iter, seed)
            for shown, hidden_units in units:
                told = _coefficients(data[testing][:, shown], fitted, shown, max_iter)
                predicted = told @ fitted.factors[:, hidden_units]
                error[number] += ((data[testing][:, hidden_units] - predicted) ** 2).sum()
    return FactorChoice(candidates, error / total)


def _to_unit_size(hidden: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, H) → the same with 1 as the largest absolute value, like states of a GRU.

    Where a factorisation starts depends on the unit of the data: its zeros are filled with the mean
    of the data, while coefficients and factors grow with the root of that.
    """
    largest = np.abs(hidden).max()
    return np.asarray(hidden, np.float64) / (largest if largest > 0 else 1.0)


@dataclass(frozen=True, eq=False)
class _FittedFactors:
    """Factors of the training rows, and what these say about coefficients."""

    factors: NDArray[np.float64]
    """(K, H)"""
    penalty: NDArray[np.float64]
    """(K,) of each squared coefficient: mean square of what the factors leave of a unit, over that
    of the coefficient."""


def _fit_factors(
    data: NDArray[np.float64], num_factors: int, max_iter: int, seed: int
) -> _FittedFactors:
    """(N, H) rows → `num_factors` factors."""
    nmf = NMF(num_factors, init="nndsvda", max_iter=max_iter, random_state=seed)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        # A candidate is judged as it is after so many iterations.
        warnings.simplefilter("ignore", ConvergenceWarning)
        coefficients = np.asarray(nmf.fit_transform(data), np.float64)
    factors = np.asarray(nmf.components_, np.float64)
    left = np.mean((data - coefficients @ factors) ** 2)
    left = max(left, SMALLEST_SHARE_LEFT * np.mean(data**2))
    # A factor that no row has needs no coefficient either.
    mean_square = np.maximum(np.mean(coefficients**2, axis=0), left / LARGEST_PENALTY)
    return _FittedFactors(factors, left / mean_square)


def _coefficients(
    data: NDArray[np.float64], fitted: _FittedFactors, shown: NDArray[np.int64], max_iter: int
) -> NDArray[np.float64]:
    """(N, H') rows of the shown units → (N, K) non-negative coefficients.

    Of a factor with next to no weight on these units they tell next to nothing: the best fit may
    be a coefficient of any size, and the error of one row more than that of all others. So squared
    coefficients are penalised as their size in the training rows says (ridge regression, as the
    most probable coefficients of a normal prior: Hoerl and Kennard, 1970); what is not told is 0.
    """
    no_size = np.zeros((len(data), len(fitted.penalty)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found, _, _ = non_negative_factorization(
            np.hstack([data, no_size]),
            H=np.hstack([fitted.factors[:, shown], np.diag(np.sqrt(fitted.penalty))]),
            update_H=False,
            max_iter=max_iter,
        )
    return np.asarray(found, np.float64)
