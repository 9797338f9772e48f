"""Effects of an intervention against its twin, with controls, predictions and intervals.

An effect is the mean over pairs (recording, twin) of the difference between the two. Intervals and
q-values come from resampling the levels that the pairs began in: pairs of one level, and rows of
one pair, are alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from agents.protocol import Agent
from analysis.clustering import Clustering
from analysis.effect_names import (
    INTERVENTION_ATTRIBUTE,
    TESTED,
    TWIN,
    UNSIGNED,
    World,
    intervention_in_words,
)
from analysis.effect_predictions import differentiate, gradient_effects, predict_by_readout
from analysis.effect_recording import WorldRecordings
from analysis.false_discovery import false_discovery_q
from analysis.fidelity_file import BOUNDS, with_interval
from analysis.paired_rows import (
    MeasureNames,
    Outputs,
    PairRows,
    occupancy,
    read_pair_rows,
    row_differences,
    twin_levels,
)
from experiment.resampling import bootstrap_p_values
from generative.level_bootstrap import LevelBootstrap, ResampledMeans, average_windows
from generative.sampling import SamplingPlan
from projections.controls import RandomDirections
from projections.hidden import HiddenProjection
from projections.intervention import MovableIntervention, descriptions_of

PREDICTIONS = {
    "readout_simulated": "heads on the simulated twin's states, each changed once",
    "readout_real": "heads on the real twin's states, each changed once",
    "gradient_simulated": "derivative of the simulation by the strength of the intervention",
}
"""What is predicted, and how."""


@dataclass(frozen=True, eq=False)
class BehaviourClusters:
    """Clusters of hidden states, found on real rollouts."""

    clustering: Clustering
    projection: HiddenProjection
    num_features: int
    """Leading principal components that were clustered."""

    def assign(self, hidden: NDArray[np.float64]) -> NDArray[np.int32]:
        """(N, K, H), NaN where there is no row → (N, K) clusters, 0 there."""
        scores = self.projection.principal_components(
            np.nan_to_num(hidden).reshape(-1, hidden.shape[-1])
        )
        features = np.asarray(scores[:, : self.num_features], np.float32)
        return self.clustering.assign(features).reshape(hidden.shape[:-1])


@dataclass(frozen=True, eq=False)
class Measuring:
    """What is measured on a recording, and by what."""

    agent: Agent
    projection: HiddenProjection
    clusters: BehaviourClusters | None
    names: MeasureNames
    num_rows: int
    """Rows that effects by row are measured on."""


@dataclass(frozen=True, eq=False)
class WorldEffects:
    """Effects in one world, by variant; V variants, the tested one first."""

    by_row: ResampledMeans
    """(V, S, K)"""
    by_pair: ResampledMeans
    """(V, P) means over rows, and figures of episodes"""
    predicted_by_row: dict[str, NDArray[np.float64]]
    """By prediction, (V, S, K)."""
    predicted_by_pair: dict[str, NDArray[np.float64]]
    """By prediction, (V, S)."""
    twin: NDArray[np.float64]
    """(P,) what the twin has in place of each effect."""
    num_levels: int
    """How many were resampled."""

    def q_value(self, names: MeasureNames) -> NDArray[np.float64]:
        """(P,) of the tested effects by pair: see `false_discovery`.

        What cannot be negative is never zero. That is no discovery, and would make room for others:
        NaN.
        """
        is_tested = ~np.isin(names.by_pair, UNSIGNED)
        mean = np.where(is_tested, self.by_pair.mean[0], np.nan)
        return false_discovery(mean, self.by_pair.resampled[:, 0], self.num_levels)


def false_discovery(
    mean: NDArray[np.float64], resampled: NDArray[np.float64], num_levels: int
) -> NDArray[np.float64]:
    """(P,) means, (R, P) resampled → (P,) q-values of the means being zero.

    p-values by the resampled means' deviation, adjusted for the number of measures (Benjamini and
    Hochberg, "Controlling the false discovery rate", 1995). What is zero in every pair has q = 1.
    """
    return false_discovery_q(bootstrap_p_values(mean, resampled.std(axis=0), num_levels))


def measure_world(
    recordings: WorldRecordings,
    measuring: Measuring,
    bootstrap: LevelBootstrap,
    world: World,
    plan: SamplingPlan | None,
) -> WorldEffects:
    """Effects of all variants of a world, and what was predicted.

    Args:
        recordings: the variants and their twin.
        measuring: what is measured.
        bootstrap: of the levels of the pairs, by ascending episode id.
        world: for the names of predictions.
        plan: of the simulated twin, to differentiate; None leaves that out.
    """
    variants = list(recordings.interventions)
    twin = read_pair_rows(recordings.datasets[TWIN], measuring.num_rows)
    twin_shares = _cluster_shares(twin, measuring)
    by_row, by_pair = [], []
    predicted: dict[str, list[NDArray[np.float64]]] = {}
    for variant in variants:
        changed = read_pair_rows(recordings.datasets[variant], measuring.num_rows)
        rows = _differences(changed.outputs, twin, measuring)
        pairs = np.concatenate(
            [
                np.nanmean(rows, axis=-1),
                [changed.episode_return - twin.episode_return, changed.is_done - twin.is_done],
                _cluster_shares(changed, measuring) - twin_shares,
            ]
        )
        by_row.append(average_windows(rows[:, None], bootstrap))
        by_pair.append(average_windows(pairs[:, None, :, None], bootstrap))
        for name, effects in _predict(
            recordings.interventions[variant], twin, measuring, world, plan
        ).items():
            predicted.setdefault(name, []).append(effects)
    return WorldEffects(
        _stack(by_row, squeeze=False),
        _stack(by_pair, squeeze=True),
        {n: np.array([_row_means(e, bootstrap) for e in found]) for n, found in predicted.items()},
        {n: np.array([_pair_means(e) for e in found]) for n, found in predicted.items()},
        _twin_means(twin, twin_shares, measuring),
        bootstrap.num_levels,
    )


def _row_means(effects: NDArray[np.float64], bootstrap: LevelBootstrap) -> NDArray[np.float64]:
    """(S, N, K) → (S, K); NaN for a row that no pair has."""
    return average_windows(effects[:, None], bootstrap).mean[:, 0]


def _pair_means(effects: NDArray[np.float64]) -> NDArray[np.float64]:
    """(S, N, K) → (S,) mean over pairs of their means over rows."""
    return np.nanmean(effects, axis=-1).mean(axis=-1)


def _differences(outputs: Outputs, twin: PairRows, measuring: Measuring) -> NDArray[np.float64]:
    return row_differences(outputs, twin.outputs, measuring.names.groups, measuring.projection)


def _cluster_shares(rows: PairRows, measuring: Measuring) -> NDArray[np.float64]:
    """(num_clusters, N)"""
    if measuring.clusters is None:
        return np.zeros((0, len(rows.episode_return)))
    cluster = measuring.clusters.assign(rows.outputs.hidden)
    return occupancy(cluster, rows.is_row, measuring.names.num_clusters)


def _twin_means(
    twin: PairRows, shares: NDArray[np.float64], measuring: Measuring
) -> NDArray[np.float64]:
    levels = twin_levels(twin.outputs, measuring.names.groups, measuring.projection)
    return np.concatenate(
        [
            _pair_means(levels),
            [twin.episode_return.mean(), twin.is_done.mean()],
            shares.mean(axis=-1),
        ]
    )


def _predict(
    intervention: MovableIntervention,
    twin: PairRows,
    measuring: Measuring,
    world: World,
    plan: SamplingPlan | None,
) -> dict[str, NDArray[np.float64]]:
    """By prediction, (S, N, K)."""
    outputs = predict_by_readout(measuring.agent, twin, intervention)
    predictions = {f"readout_{world}": _differences(outputs, twin, measuring)}
    if plan is not None:
        tangents = differentiate(plan, intervention)
        effects = gradient_effects(tangents, measuring.names.groups, measuring.projection)
        predictions[f"gradient_{world}"] = np.where(twin.is_row, effects, np.nan)
    return predictions


def _stack(means: list[ResampledMeans], squeeze: bool) -> ResampledMeans:
    """V of (S, 1, K) → (V, S, K), with `squeeze` (V, S); resampled likewise behind R."""
    index = (..., 0, 0) if squeeze else (..., 0, slice(None))
    return ResampledMeans(
        np.stack([m.mean[index] for m in means]),
        np.stack([m.resampled[index] for m in means], axis=1),
    )


def to_dataset(
    effects: Mapping[World, WorldEffects],
    recordings: Mapping[World, WorldRecordings],
    names: MeasureNames,
    levels: NDArray[np.int64],
) -> xr.Dataset:
    """Label everything."""
    worlds = list(effects)
    variants = list(recordings[worlds[0]].interventions)
    labelled = xr.concat([_world_dataset(effects[world], names) for world in worlds], dim="world")
    strengths = [[recordings[w].strengths[v] for v in variants] for w in worlds]

    def strength(name: str, meaning: str) -> Any:
        values = [[getattr(s, name) for s in row] for row in strengths]
        return ("world", "variant"), values, {"long_name": meaning}

    tested = recordings[worlds[0]].interventions[TESTED]
    labelled.attrs[INTERVENTION_ATTRIBUTE] = intervention_in_words(descriptions_of(tested))
    return labelled.assign(
        {
            "change_norm": strength(
                "mean_change_norm", "mean norm of the changes of the hidden state"
            ),
            "share_outside": strength(
                "share_of_rows_outside_unit_box", "share of rows with a unit outside [-1, 1]"
            ),
            "spared": (
                ("variant", "component"),
                np.array(
                    [_spared(recordings[worlds[0]].interventions[v], names) for v in variants]
                ),
                {"long_name": "whether a random control leaves the component where it is"},
            ),
            "level": ("pair", levels, {"long_name": "level seed that a pair began in"}),
            **_predicted(effects),
        }
    ).assign_coords(
        world=worlds,
        variant=variants,
        control=variants[1:],
        row_measure=names.by_row,
        measure=names.by_pair,
        bound=list(BOUNDS),
        prediction=list(PREDICTIONS),
        prediction_meaning=("prediction", list(PREDICTIONS.values())),
    )


def _spared(intervention: MovableIntervention, names: MeasureNames) -> NDArray[np.bool_]:
    """(num_components,)"""
    spared = intervention.spared if isinstance(intervention, RandomDirections) else None
    indices = () if spared is None else spared.indices
    return np.isin(np.arange(names.num_components), indices)


def excess_in_size(by_pair: ResampledMeans) -> ResampledMeans:
    """(V, P) effects, the tested one first → (V − 1, P) by how much it is larger than each control.

    Sizes are compared, each effect being counted along its own sign: which way a random direction
    points is arbitrary. The plain difference from a control of the opposite sign would be twice as
    large as either, and so differ from 0 however alike the two are in size.
    """
    sign = np.where(by_pair.mean < 0, -1.0, 1.0)
    mean, resampled = sign * by_pair.mean, sign * by_pair.resampled
    return ResampledMeans(mean[:1] - mean[1:], resampled[:, :1] - resampled[:, 1:])


def _world_dataset(effects: WorldEffects, names: MeasureNames) -> xr.Dataset:
    pair, excess = effects.by_pair, excess_in_size(effects.by_pair)
    row_dims, what = ("variant", "row_measure", "step"), "mean over pairs, less the twin's"
    return xr.Dataset(
        {
            **with_interval(
                "row_effect", row_dims, effects.by_row.mean, effects.by_row.interval, what
            ),
            **with_interval("effect", ("variant", "measure"), pair.mean, pair.interval, what),
            **with_interval(
                "excess",
                ("control", "measure"),
                excess.mean,
                excess.interval,
                "size of the tested intervention's effect less that of the control's",
            ),
            "q_value": (
                "measure",
                effects.q_value(names),
                {"long_name": "q of the tested effect being 0; NaN for what is never negative"},
            ),
            "twin": ("measure", effects.twin, {"long_name": "mean over the unmodified twins"}),
        }
    )


def _predicted(effects: Mapping[World, WorldEffects]) -> dict[str, Any]:
    """(prediction, variant, row_measure[, step]); NaN where nothing was predicted."""
    by_row: dict[str, NDArray] = {}
    by_pair: dict[str, NDArray] = {}
    for found in effects.values():
        by_row |= found.predicted_by_row
        by_pair |= found.predicted_by_pair
    example = next(iter(by_row.values()))
    nothing = np.full(example.shape, np.nan)
    return {
        "predicted_row": (
            ("prediction", "variant", "row_measure", "step"),
            np.array([by_row.get(name, nothing) for name in PREDICTIONS]),
            {"long_name": "predicted mean effect"},
        ),
        "predicted": (
            ("prediction", "variant", "row_measure"),
            np.array([by_pair.get(name, nothing[..., 0]) for name in PREDICTIONS]),
            {"long_name": "predicted mean effect, averaged over rows"},
        ),
    }
