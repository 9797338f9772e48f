"""How far simulated hidden states look like real ones, and whether a classifier tells them apart.

Pictures of overlapping clouds convince too easily. So a classifier is asked to tell real from
simulated states of other levels (Lopez-Paz and Oquab, "Revisiting classifier two-sample tests",
2017): the area under its ROC curve is 0.5 where they are alike and 1 where they are apart. The
control asks the same of two random halves of the real episodes.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from analysis.figure_style import frame_clouds
from analysis.probe_targets import ProbeTargets
from analysis.probes import fit_linear
from analysis.results import PRODUCERS, SOURCES, ends_before
from experiment.errors import UserError
from experiment.resampling import INTERVAL_PERCENTILES, resample_weights

NUM_FOLDS = 5
NUM_FIGURES = 5
REAL_COLOUR, SIMULATED_COLOUR = "blue", "red"


@dataclass(frozen=True, eq=False)
class States:
    """Principal components of N hidden states."""

    scores: NDArray[np.float32]
    """(N, R)"""
    unit: NDArray[np.int64]
    """(N,) equal for states of episodes and samples that depend on each other."""
    is_simulated: NDArray[np.bool_]
    """(N,)"""


@dataclass(frozen=True)
class Separability:
    """Area under the ROC curve with its 95% interval, from resampling independent units."""

    area: float
    lower: float
    upper: float


def read_states(results: xr.Dataset, max_points: int, seed: int) -> States:
    """At most `max_points` random rows of each source from the result of the hidden analysis.

    What a sample does after the end that is predicted for it is left out: nothing real is like it.

    Raises:
        UserError: it has no simulated rows, or does not tell which rows are independent.
    """
    if "unit" not in results:
        raise UserError(
            "--input_dir: the hidden analysis does not tell which rows are independent of each "
            f"other; make it anew with: {PRODUCERS['hidden_analysis']}"
        )
    source, is_over = results["source"].values, ends_before(results) > 0
    rng = np.random.default_rng(seed)
    of_sources = [
        rng.permutation(np.flatnonzero((source == code) & ~is_over)) for code in range(len(SOURCES))
    ]
    if not len(of_sources[1]):
        raise UserError(
            "--input_dir: the hidden analysis was made without simulated rollouts; make it anew "
            "with --generated_data_dir"
        )
    rows = np.sort(np.concatenate([rows[:max_points] for rows in of_sources]))
    return States(results["pca"].values[rows], results["unit"].values[rows], source[rows] == 1)


def tell_apart(states: States, num_resamples: int, seed: int) -> Separability:
    """Classify real and simulated states by logistic regression, across folds of independent units.

    A sample is in the fold of the real episode that its window is from.
    """
    return _separability(states.scores, states.is_simulated, states.unit, num_resamples, seed)


def tell_halves_apart(states: States, num_resamples: int, seed: int) -> Separability:
    """The control: the same of two random halves of the real levels."""
    real = ~states.is_simulated
    units = np.unique(states.unit[real])
    half = np.random.default_rng(seed).permutation(units)[: len(units) // 2]
    is_in_half = np.isin(states.unit[real], half)
    return _separability(states.scores[real], is_in_half, states.unit[real], num_resamples, seed)


def _separability(
    scores: NDArray[np.float32],
    answer: NDArray[np.bool_],
    unit: NDArray[np.int64],
    num_resamples: int,
    seed: int,
) -> Separability:
    targets = ProbeTargets(("answer",), ("",), answer[:, None].astype(float), np.array([True]))
    fold = _balanced_folds(answer, unit, seed)
    told = fit_linear(scores, targets, fold).predict(scores, fold)[:, 0]
    if not np.isfinite(told).all():
        raise UserError(
            "too few levels to tell real from simulated states apart: expected at least 3 of each"
        )
    _, number = np.unique(unit, return_inverse=True)
    weights = resample_weights(int(number.max()) + 1, num_resamples, seed)
    areas = np.array([roc_auc_score(answer, told, sample_weight=w[number]) for w in weights])
    lower, upper = np.percentile(areas, INTERVAL_PERCENTILES)
    return Separability(float(roc_auc_score(answer, told)), float(lower), float(upper))


def _balanced_folds(
    answer: NDArray[np.bool_], unit: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """(N,) folds of whole units, each with the same share of either answer.

    With unequal shares, a fold rich in one answer would be told by a classifier that expects the
    other, and the area of states that are alike would fall below one half.
    """
    fold = np.empty(len(answer), np.int64)
    groups = min(len(np.unique(unit[answer == which])) for which in (True, False))
    splitter = StratifiedGroupKFold(max(2, min(NUM_FOLDS, groups)), shuffle=True, random_state=seed)
    for number, (_, rows) in enumerate(splitter.split(answer, answer, groups=unit)):
        fold[rows] = number
    return fold


def overlap_dataset(states: States, found: Separability, control: Separability) -> xr.Dataset:
    """Label the states that are drawn and the two figures."""
    both = (found, control)
    return xr.Dataset(
        {
            "pca": (("row", "pca_component"), states.scores),
            "source": ("row", states.is_simulated.astype(np.int8)),
            "roc_area": (
                "comparison",
                [x.area for x in both],
                {"long_name": "area under the ROC curve on other episodes; 0.5 is chance"},
            ),
            "roc_area_interval": (
                ("bound", "comparison"),
                [[x.lower for x in both], [x.upper for x in both]],
                {"long_name": "95% interval, bootstrap over levels and source episodes"},
            ),
        },
        coords={
            "comparison": ["real_and_simulated", "halves_of_real"],
            "bound": ["lower", "upper"],
        },
    )


def draw_overlap(results: xr.Dataset, first: int) -> Figure:
    """Component `first` against the next: real states blue, simulated ones red."""
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    axis = figure.subplots()
    is_simulated = results["source"].values == 1
    points = results["pca"].values[:, first : first + 2]
    # In a random order, so that neither hides the other.
    order = np.random.default_rng(0).permutation(len(points))
    colours = np.where(is_simulated, SIMULATED_COLOUR, REAL_COLOUR)[order]
    axis.scatter(*points[order].T, s=3, linewidths=0, alpha=0.5, c=colours, rasterized=True)
    clouds = [points[~is_simulated], points[is_simulated]]
    outside = frame_clouds(axis, clouds)
    beyond = f" ({outside:,} of {len(is_simulated):,} points beyond the axes)" if outside else ""
    axis.set(xlabel=f"PC {first}{beyond}", ylabel=f"PC {first + 1}")
    handles = [
        Line2D([], [], marker="o", ls="", ms=4, color=colour, label=f"{name} ({len(cloud):,})")
        for name, colour, cloud in zip(
            SOURCES, (REAL_COLOUR, SIMULATED_COLOUR), clouds, strict=True
        )
    ]
    axis.legend(handles=handles, loc="upper right")
    area = results["roc_area"].values
    low, high = results["roc_area_interval"].values
    axis.set_title(
        f"told apart by all components: ROC area {area[0]:.2f} [{low[0]:.2f}, {high[0]:.2f}]\n"
        f"control, two halves of the real episodes: {area[1]:.2f} [{low[1]:.2f}, {high[1]:.2f}]"
    )
    return figure
