"""Probes: how much of a variable can be read from a representation, on levels not fitted on.

Ridge regression for quantities, logistic regression for yes-or-no variables, and a small
perceptron, which shows what a linear probe misses. All are fitted and judged by folds of whole
levels (Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from analysis.probe_targets import ProbeTargets
from analysis.ridge import MIN_FOLDS, fit_ridge


@dataclass(frozen=True)
class PerceptronSettings:
    """The small network that shows what a linear probe misses."""

    mlp_units: int = 64
    """Units of its one hidden layer."""
    mlp_epochs: int = 40
    """Passes over the rows; of these, the one that predicts other levels best is kept."""
    mlp_batch_size: int = 256
    """Rows per step."""
    mlp_learning_rate: float = 3e-3
    """Step size of Adam."""


def level_folds(level: NDArray[np.int64], num_folds: int, seed: int) -> NDArray[np.int64]:
    """(N,) level of each row → (N,) fold of each row; a level is never split.

    With fewer levels than folds, each level is a fold.
    """
    num_folds = min(num_folds, len(np.unique(level)))
    fold = np.empty(len(level), np.int64)
    splitter = GroupKFold(num_folds, shuffle=True, random_state=seed)
    for number, (_, rows) in enumerate(splitter.split(level, groups=level)):
        fold[rows] = number
    return fold


@dataclass(frozen=True, eq=False)
class LinearProbes:
    """For each held-out fold the probes that were fitted on the others."""

    weights: NDArray[np.float64]
    """(num_folds, F, V)"""
    bias: NDArray[np.float64]
    """(num_folds, V)"""
    is_binary: NDArray[np.bool_]
    """(V,) whose probes are logistic."""

    @property
    def num_folds(self) -> int:
        """How many folds there are."""
        return len(self.bias)

    def predict(
        self, features: NDArray[np.floating], fold: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(N, V) values, of yes-or-no variables probabilities, from probes without the rows' fold.

        Args:
            features: (N, F) of any rollouts.
            fold: (N,) of their levels; any fold for a level that no probe was fitted on.
        """
        values = np.empty((len(features), len(self.is_binary)))
        for held_out in range(self.num_folds):
            rows = fold == held_out
            values[rows] = features[rows] @ self.weights[held_out] + self.bias[held_out]
        return np.where(self.is_binary, expit(values), values)


def fit_linear(
    features: NDArray[np.floating], targets: ProbeTargets, fold: NDArray[np.int64]
) -> LinearProbes:
    """Fit ridge regression, or logistic regression for yes-or-no variables.

    Args:
        features: (N, F)
        targets: of the same rows.
        fold: (N,) as `level_folds` gives it.
    """
    ridge = fit_ridge(features, targets.values, fold)
    probes = LinearProbes(ridge.weights, ridge.bias, targets.is_binary)
    for held_out, variable in np.argwhere(np.isfinite(ridge.penalty) & targets.is_binary):
        target = targets.values[:, variable]
        rows = np.isfinite(target) & (fold != held_out)
        penalty = float(ridge.penalty[held_out, variable])
        logistic = _fit_logistic(features[rows], target[rows], penalty)
        probes.weights[held_out, :, variable] = logistic.weights
        probes.bias[held_out, variable] = logistic.bias
    return probes


@dataclass(frozen=True, eq=False)
class _Logistic:
    weights: NDArray[np.float64]
    """(F,)"""
    bias: float


def _fit_logistic(
    features: NDArray[np.floating], target: NDArray[np.float64], ridge_penalty: float
) -> _Logistic:
    # One doubtful row of each answer keeps the odds finite where all rows agree.
    share = (target.sum() + 0.5) / (len(target) + 1)
    if np.ptp(target) == 0:
        return _Logistic(np.zeros(features.shape[1]), float(logit(share)))
    scaling = StandardScaler().fit(features.astype(np.float64))
    scaled = scaling.transform(features.astype(np.float64))
    # Around the mean the log-likelihood bends as share · (1 − share) / 2 · (y − x · w)² does, so
    # this is the penalty that suited ridge regression.
    strength = 1 / (ridge_penalty * share * (1 - share) * len(target))
    logistic = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-3)
    logistic.fit(scaled, target)
    weights = np.asarray(logistic.coef_)[0] / np.asarray(scaling.scale_)
    return _Logistic(
        weights, float(np.asarray(logistic.intercept_)[0] - weights @ np.asarray(scaling.mean_))
    )


def mean_predictions(targets: ProbeTargets, fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, V) mean of the variable over the other folds: a probe that sees nothing."""
    predictions = np.full(targets.values.shape, np.nan)
    for held_out in np.unique(fold):
        training = targets.values[fold != held_out]
        known = np.isfinite(training)
        mean = np.nansum(training, axis=0) / np.maximum(known.sum(axis=0), 1)
        predictions[fold == held_out] = np.where(known.any(axis=0), mean, np.nan)
    return np.where(np.isfinite(targets.values), predictions, np.nan)


def perceptron_predictions(
    features: NDArray[np.floating],
    targets: ProbeTargets,
    fold: NDArray[np.int64],
    settings: PerceptronSettings,
    seed: int,
) -> NDArray[np.float64]:
    """(N, V) predicted values, from the other folds, by one network for all variables.

    Of the folds not held out, one tells for each variable after which pass to stop.
    """
    predictions = np.full(targets.values.shape, np.nan)
    num_folds = int(fold.max()) + 1
    if num_folds < MIN_FOLDS:
        return predictions
    for held_out in range(num_folds):
        stopping, testing = fold == (held_out + 1) % num_folds, fold == held_out
        data = _PerceptronData.of(features, targets, ~(stopping | testing))
        predictions[testing] = _train_perceptron(data, stopping, testing, settings, seed)
    return np.where(np.isfinite(targets.values), predictions, np.nan)


@dataclass(frozen=True, eq=False)
class _PerceptronData:
    """All rows, scaled by those that are fitted on."""

    features: Tensor
    targets: Tensor
    """(N, V) zero where unknown."""
    known: Tensor
    """(N, V) 1 where known, else 0."""
    is_binary: Tensor
    training: Tensor
    """Rows to fit on."""
    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(
        cls, features: NDArray[np.floating], targets: ProbeTargets, training: NDArray[np.bool_]
    ) -> "_PerceptronData":
        scaling = StandardScaler().fit(features[training])
        values, known = np.nan_to_num(targets.values), np.isfinite(targets.values)
        weights = (known & training[:, None]).astype(np.float64)
        count = np.maximum(weights.sum(axis=0), 1.0)
        mean = (weights * values).sum(axis=0) / count
        deviation = np.sqrt((weights * (values - mean) ** 2).sum(axis=0) / count)
        # Probabilities need no scaling, and what never varies cannot be scaled.
        keeps = targets.is_binary | (deviation == 0)
        mean, deviation = np.where(keeps, 0.0, mean), np.where(keeps, 1.0, deviation)
        return cls(
            torch.from_numpy(np.asarray(scaling.transform(features), np.float32)),
            torch.from_numpy(np.where(known, (values - mean) / deviation, 0.0)).float(),
            torch.from_numpy(known).float(),
            torch.from_numpy(targets.is_binary),
            torch.from_numpy(np.flatnonzero(training)),
            torch.from_numpy(mean).float(),
            torch.from_numpy(deviation).float(),
        )

    def loss(self, output: Tensor, rows: Tensor) -> Tensor:
        """(V,) mean over known rows: squared error, or cross-entropy of yes-or-no variables."""
        target, known = self.targets[rows], self.known[rows]
        entropy = nn.functional.binary_cross_entropy_with_logits(
            output, target.clamp(0, 1), reduction="none"
        )
        each = torch.where(self.is_binary, entropy, (output - target).square())
        return (known * each).sum(0) / known.sum(0).clamp_min(1)

    def values(self, output: Tensor) -> Tensor:
        """(..., V) outputs as predicted values and probabilities."""
        return torch.where(self.is_binary, output.sigmoid(), output * self.deviation + self.mean)


def _train_perceptron(
    data: _PerceptronData,
    stopping: NDArray[np.bool_],
    testing: NDArray[np.bool_],
    settings: PerceptronSettings,
    seed: int,
) -> NDArray[np.float64]:
    """(number of test rows, V) predictions of the best pass for each variable."""
    stopping_rows, testing_rows = (torch.from_numpy(np.flatnonzero(m)) for m in (stopping, testing))
    generator = torch.Generator().manual_seed(seed)
    network = _perceptron(data.features.shape[1], settings.mlp_units, data.targets.shape[1], seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.mlp_learning_rate)
    num_variables = data.targets.shape[1]
    best = torch.full((num_variables,), torch.inf)
    predictions = torch.zeros(len(testing_rows), num_variables)
    for _ in range(settings.mlp_epochs):
        order = data.training[torch.randperm(len(data.training), generator=generator)]
        for rows in order.split(settings.mlp_batch_size):
            optimiser.zero_grad()
            data.loss(network(data.features[rows]), rows).sum().backward()
            optimiser.step()
        with torch.no_grad():
            error = data.loss(network(data.features[stopping_rows]), stopping_rows)
            improved = error < best
            best = torch.minimum(best, error)
            output = data.values(network(data.features[testing_rows]))
            predictions = torch.where(improved, output, predictions)
    return predictions.double().numpy()


def _perceptron(num_inputs: int, num_units: int, num_outputs: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(num_inputs, num_units), nn.ReLU(), nn.Linear(num_units, num_outputs)
        )


def shuffle_levels(
    values: NDArray[np.float64], level: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """(N, V) values of other levels, each level's from a random one of its rows on.

    Within a level values stay in order, its end followed by its beginning, so they vary as slowly
    as the true ones; but neither the level nor the time in the episode tells them any more. Each
    variable is shuffled among the rows where it is known.

    Args:
        values: (N, V) NaN where unknown.
        level: (N,) rows of one level need not be neighbours.
        rng: draws the order of the levels, and where each begins.
    """
    _, number = np.unique(level, return_inverse=True)
    in_order = np.argsort(number, kind="stable")
    shuffled = np.full(values.shape, np.nan)
    for variable in range(values.shape[1]):
        rows = in_order[np.isfinite(values[in_order, variable])]
        starts = np.unique(number[rows], return_index=True)[1]
        blocks = np.split(values[rows, variable], starts[1:])
        order = rng.permutation(len(blocks))
        moved = [np.roll(blocks[i], rng.integers(len(blocks[i]) + 1)) for i in order]
        shuffled[rows, variable] = np.concatenate(moved)
    return shuffled
