"""What probes find: scores of every representation for every variable, beside their controls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from tqdm import tqdm

from analysis.probe_scores import LevelScorer, Score, summarise
from analysis.probe_targets import ProbeTargets
from analysis.probes import (
    LinearProbes,
    PerceptronSettings,
    fit_linear,
    level_folds,
    mean_predictions,
    perceptron_predictions,
    shuffle_levels,
)
from analysis.ridge import fit_ridge


@dataclass(frozen=True)
class ProbeSettings:
    """How probes are fitted and judged."""

    num_folds: int = 5
    """Parts that the levels are divided into; each is predicted from the others."""
    min_levels: int = 10
    """A variable known in fewer levels is left out; a yes-or-no variable needs as many with either
    answer."""
    max_features: int = 256
    """A wider representation is replaced by its first so many principal components."""
    num_shuffles: int = 20
    """Shuffles of the levels' values, for the control that there is nothing to find."""
    num_resamples: int = 2000
    """Bootstrap resamples of the levels, for the 95% intervals and the tests."""
    perceptron: Annotated[PerceptronSettings, tyro.conf.arg(name="")] = field(
        default_factory=PerceptronSettings
    )


@dataclass(frozen=True, eq=False)
class ProbeTable:
    """Scores of R representations for V variables; NaN where a variable is too rare."""

    representations: tuple[str, ...]
    linear: Score
    """(R, V)"""
    perceptron: Score
    """(R, V)"""
    mean: Score
    """(V,) of the other folds' mean, which sees nothing."""
    shuffled: NDArray[np.float64]
    """(R, V) mean over shuffles of the score of ridge regression on shuffled values."""
    shuffled_maximum: NDArray[np.float64]
    """(R, V) the highest of these."""
    baselines: tuple[str, ...]
    """B of the representations."""
    difference: Score
    """(R, B, V) linear score minus the baseline's, on the same resamples."""
    num_rows: NDArray[np.int64]
    """(V,)"""
    num_levels: NDArray[np.int64]
    """(V,)"""


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """N rows of representations and what they are asked for."""

    representations: dict[str, NDArray[np.float32]]
    """(N, F) by name."""
    targets: ProbeTargets
    level: NDArray[np.int64]
    """(N,)"""


def leave_out_rare(
    targets: ProbeTargets, level: NDArray[np.int64], min_levels: int
) -> ProbeTargets:
    """Make variables unknown everywhere that fewer than `min_levels` levels tell of.

    A yes-or-no variable needs as many levels with either answer.
    """
    values = targets.values.copy()
    for variable in range(values.shape[1]):
        answers = [np.isfinite(values[:, variable])]
        if targets.is_binary[variable]:
            answers = [values[:, variable] == answer for answer in (0.0, 1.0)]
        if min(len(np.unique(level[rows])) for rows in answers) < min_levels:
            values[:, variable] = np.nan
    return replace(targets, values=values)


@dataclass(frozen=True, eq=False)
class FittedProbes:
    """Linear probes of one representation."""

    narrow: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    """Takes (N, F) representations to the features that the probes read."""
    probes: LinearProbes

    def predict(
        self, representation: NDArray[np.float32], fold: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(N, V) from (N, F), as `LinearProbes.predict`."""
        return self.probes.predict(self.narrow(representation), fold)


def fit_probes(rows: LabelledRows, settings: ProbeSettings, seed: int) -> dict[str, FittedProbes]:
    """Fit linear probes of every representation for every variable."""
    fold = level_folds(rows.level, settings.num_folds, seed)
    fitted = {}
    for name, wide in tqdm(
        rows.representations.items(), desc="linear probes", unit="representation", disable=None
    ):
        narrow = fit_narrowing(wide, settings.max_features)
        fitted[name] = FittedProbes(narrow, fit_linear(narrow(wide), rows.targets, fold))
    return fitted


def judge_probes(
    rows: LabelledRows,
    fitted: dict[str, FittedProbes],
    settings: ProbeSettings,
    seed: int,
    baselines: Sequence[str],
) -> ProbeTable:
    """Judge linear probes on levels that they were not fitted on, beside controls.

    Args:
        rows: what the probes were fitted on.
        fitted: of every representation, as `fit_probes` gives it.
        settings: how they were fitted.
        seed: with which they were fitted; decides shuffles, resamples and the perceptron's start.
        baselines: representations to subtract.
    """
    targets, fold = rows.targets, level_folds(rows.level, settings.num_folds, seed)
    scorer = LevelScorer(targets.values, rows.level, settings.num_resamples, seed)
    rng = np.random.default_rng(seed)
    shuffles = [
        shuffle_levels(targets.values, rows.level, rng) for _ in range(settings.num_shuffles)
    ]
    linear, perceptron, shuffled = {}, {}, {}
    for name, probes in tqdm(fitted.items(), desc="controls", unit="representation", disable=None):
        features = probes.narrow(rows.representations[name])
        linear[name] = scorer.resampled(probes.probes.predict(features, fold))
        perceptron[name] = scorer.resampled(
            perceptron_predictions(features, targets, fold, settings.perceptron, seed)
        )
        shuffled[name] = _shuffled_scores(features, shuffles, rows.level, fold)
    names = tuple(linear)
    present = tuple(name for name in baselines if name in names)
    scores = np.stack(list(linear.values()), axis=1)
    base_scores = scores[:, [names.index(name) for name in present]]
    return ProbeTable(
        representations=names,
        linear=summarise(scores),
        perceptron=summarise(np.stack(list(perceptron.values()), axis=1)),
        mean=scorer.score(mean_predictions(targets, fold)),
        shuffled=np.stack([found.mean(axis=0) for found in shuffled.values()]),
        shuffled_maximum=np.stack([found.max(axis=0) for found in shuffled.values()]),
        baselines=present,
        difference=summarise(scores[:, :, None] - base_scores[:, None]),
        num_rows=np.isfinite(targets.values).sum(axis=0),
        num_levels=scorer.num_levels,
    )


def fit_narrowing(
    features: NDArray[np.float32], max_features: int
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What takes (N, F) features to their first `max_features` principal components.

    Targets have no part in it, so nothing leaks from levels that are predicted later. Features
    that are few enough are left alone.
    """
    if features.shape[1] <= max_features:
        return np.asarray
    pca: Any = PCA(min(max_features, len(features)), svd_solver="covariance_eigh").fit(features)
    return pca.transform


def _shuffled_scores(
    features: NDArray[np.float32],
    shuffles: list[NDArray[np.float64]],
    level: NDArray[np.int64],
    fold: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(num_shuffles, V) scores of ridge regression on values that belong to other levels."""
    values = np.concatenate(shuffles, axis=1)
    ridge = fit_ridge(features, values, fold)
    prediction = LinearProbes(ridge.weights, ridge.bias, np.zeros(values.shape[1], np.bool_))
    scores = LevelScorer(values, level, 0, 0).resampled(prediction.predict(features, fold))
    return scores[0].reshape(len(shuffles), -1)


@dataclass(frozen=True, eq=False)
class ReadingTable:
    """Scores of probes that were fitted on real decisions, on simulated ones of other levels."""

    representations: tuple[str, ...]
    """R of them."""
    score: Score
    """(2, R, T, V) read off the real decisions, and off the simulated ones that imitate them, at
    each of T simulated steps."""
    num_rows: NDArray[np.int64]
    """(T, V)"""


def read_simulated(
    fitted: dict[str, FittedProbes],
    fitted_level: NDArray[np.int64],
    real: LabelledRows,
    simulated: LabelledRows,
    step: NDArray[np.int64],
    settings: ProbeSettings,
    seed: int,
) -> ReadingTable:
    """Read linear probes of real decisions on real and simulated ones.

    No probe reads a level that it was fitted on.

    Args:
        fitted: probes by representation, as `fit_probes` gives them.
        fitted_level: (M,) levels of the decisions that they were fitted on.
        real: other real decisions.
        simulated: the simulated decisions that imitate `real`, row by row, so they have the same
            targets and levels.
        step: (N,) simulated step of each.
        settings: how they were fitted.
        seed: with which they were fitted; decides resamples.
    """
    fold = level_folds(fitted_level, settings.num_folds, seed)
    reading_fold = _fold_of_levels(fitted_level, fold, real.level)
    scorers = [
        LevelScorer(
            np.where((step == number)[:, None], real.targets.values, np.nan),
            real.level,
            settings.num_resamples,
            seed,
        )
        for number in range(int(step.max()) + 1)
    ]
    scores = []
    for name in simulated.representations:
        for rows in (real, simulated):
            prediction = fitted[name].predict(rows.representations[name], reading_fold)
            scores.append(np.stack([scorer.resampled(prediction) for scorer in scorers], axis=1))
    # One resample after the other: representations, sources, steps, variables.
    stacked = np.stack(scores, axis=1).reshape(
        len(scores[0]), len(simulated.representations), 2, len(scorers), -1
    )
    known = np.isfinite(real.targets.values)
    return ReadingTable(
        tuple(simulated.representations),
        summarise(stacked.swapaxes(1, 2)),
        np.stack([known[step == number].sum(axis=0) for number in range(len(scorers))]),
    )


def _fold_of_levels(
    fitted_level: NDArray[np.int64], fold: NDArray[np.int64], level: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(N,) for each level the fold whose probes have not seen it; fold 0 where none has."""
    fold_of = dict(zip(fitted_level.tolist(), fold.tolist(), strict=True))
    return np.array([fold_of.get(number, 0) for number in level.tolist()], np.int64)
