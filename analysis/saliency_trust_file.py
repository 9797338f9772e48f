"""What saliency_trust.nc holds: figures of merit, their intervals, and what they are made of."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from analysis.fidelity_file import BOUNDS, with_interval
from analysis.saliency_trust import (
    FRACTIONS,
    MAPS,
    MODES,
    NOISE_SCALES,
    STEP_SIZES,
    FiniteChanges,
)
from analysis.sample_trust import POOR_TRUST
from generative.level_bootstrap import LevelBootstrap, percentile_interval

SIMULATORS = {
    "frozen": "simulator with frozen offsets",
    "discrete": "simulator as it is",
    "shuffled": "control: as it is, changes of other directions",
}
AGREEMENTS = {
    "correlation": "correlation of predicted and actual changes over directions",
    "sign_agreement": "share of directions whose change has the predicted sign",
    "relative_error": "norm of predicted − actual over the norm of actual changes",
}
LIKENESSES = {
    "to_clean": "a perturbed copy's map and the clean one",
    "halves": "means over two halves of the copies",
    "other_sample": "control: clean maps of two samples",
}
GROUPS = {
    "all": "all samples",
    "trusted": f"simulator trust of at least {POOR_TRUST}",
    "poor": f"simulator trust below {POOR_TRUST}",
}
AREA_BASELINES = ("random", "edges")


@dataclass(frozen=True, eq=False)
class TrustMeasurement:
    """Everything measured, for N samples."""

    sample_id: NDArray[np.int64]
    """(N,)"""
    unit: NDArray[np.int64]
    """(N,) what is resampled: samples of one real episode belong together."""
    trust: NDArray[np.float32]
    """(N,) of the sample against reality."""
    changes: FiniteChanges
    clean_maps: NDArray[np.float32]
    """(N, pixels)"""
    to_clean: NDArray[np.float64]
    """(N, num_scales)"""
    halves: NDArray[np.float64]
    """(N, num_scales)"""
    curves: NDArray[np.float64]
    """(N, num_maps, num_modes, num_fractions); NaN for samples without a real row."""


def to_dataset(found: TrustMeasurement, num_resamples: int, seed: int) -> xr.Dataset:
    """Label the figures; intervals are those of resampled episodes."""
    bootstrap = LevelBootstrap(found.unit, num_resamples, seed)
    areas = curve_areas(found.curves)
    variables = {
        "simulator_trust": ("sample", found.trust, _named("trust of the sample; NaN: unknown")),
        "episode": (
            "sample",
            found.unit,
            _named("what is resampled: one number for all samples of one real episode"),
        ),
        "predicted_change": (
            ("sample", "step_size", "direction"),
            found.changes.predicted,
            _named("gradient · step"),
        ),
        "discrete_change": (
            ("sample", "step_size", "direction"),
            found.changes.discrete,
            _named("change of the value in the simulator as it is"),
        ),
        "frozen_change": (
            ("sample", "step_size", "direction"),
            found.changes.frozen,
            _named("the same, offsets frozen"),
        ),
        "area": (
            ("sample", "map", "mode"),
            areas,
            _named("area under |change of the real value| over the share of pixels"),
        ),
        **_mean(
            "agreement",
            ("measure", "simulator", "step_size"),
            sample_agreements(found.changes),
            bootstrap,
        ),
        **_mean(
            "likeness",
            ("compared", "noise_scale"),
            np.stack([found.to_clean, found.halves, _other_sample(found)], axis=1),
            bootstrap,
        ),
        **_mean("curve", ("map", "mode", "fraction"), found.curves, bootstrap),
        **_area_differences(found, areas, bootstrap),
    }
    return xr.Dataset(
        {**variables, **_meanings()},
        coords={
            "sample": found.sample_id,
            "step_size": list(STEP_SIZES),
            "noise_scale": list(NOISE_SCALES),
            "fraction": list(FRACTIONS),
            "map": list(MAPS),
            "mode": list(MODES),
            "simulator": list(SIMULATORS),
            "measure": list(AGREEMENTS),
            "compared": list(LIKENESSES),
            "group": list(GROUPS),
            "baseline": list(AREA_BASELINES),
            "bound": list(BOUNDS),
        },
        attrs={"poor_trust": POOR_TRUST, "num_episodes": bootstrap.num_levels},
    )


def sample_agreements(changes: FiniteChanges) -> NDArray[np.float64]:
    """(N, num_agreements, num_simulators, num_sizes), each over the directions of one sample."""
    actual = (changes.frozen, changes.discrete, np.roll(changes.discrete, 1, axis=-1))
    found = [_agreement(changes.predicted, one) for one in actual]
    return np.stack(found, axis=2)


def _agreement(predicted: NDArray[np.float64], actual: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, num_agreements, num_sizes)"""
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (predicted, actual))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    # Changes that are all alike are not predicted.
    correlation = np.divide((a * b).sum(-1), norms, out=np.zeros_like(norms), where=norms > 0)
    same_sign = (np.sign(predicted) == np.sign(actual)).mean(axis=-1)
    size = np.linalg.norm(actual, axis=-1)
    missed = np.linalg.norm(predicted - actual, axis=-1)
    error = np.divide(missed, size, out=np.full_like(size, np.nan), where=size > 0)
    return np.stack([correlation, same_sign, error], axis=1)


def curve_areas(curves: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., num_fractions) → (...) areas by the trapezoidal rule."""
    return trapezoid(curves, FRACTIONS, axis=-1)


def _other_sample(found: TrustMeasurement) -> NDArray[np.float64]:
    """(N, num_scales) cosine to the clean map of another episode's sample; NaN if there is none."""
    count, likeness = len(found.unit), np.full(len(found.unit), np.nan)
    maps = found.clean_maps / np.linalg.norm(found.clean_maps, axis=1, keepdims=True)
    for index in range(count):
        others = np.flatnonzero(found.unit != found.unit[index])
        if others.size:
            likeness[index] = float(np.mean(maps[others] @ maps[index]))
    return np.repeat(likeness[:, None], len(NOISE_SCALES), axis=1)


def _area_differences(
    found: TrustMeasurement, areas: NDArray[np.float64], bootstrap: LevelBootstrap
) -> dict[str, tuple]:
    references = [list(MAPS).index(name) for name in AREA_BASELINES]
    differences = areas[:, :, None, :] - areas[:, None, references, :]
    members = {
        "all": np.ones(len(found.trust), np.bool_),
        "trusted": found.trust >= POOR_TRUST,
        "poor": found.trust < POOR_TRUST,
    }
    is_in_group = np.stack(list(members.values()), axis=1)[:, :, None, None, None]
    grouped = np.where(is_in_group, differences[:, None], np.nan)
    compared = np.isfinite(areas[:, 0, 0])
    counts = [int((is_member & compared).sum()) for is_member in members.values()]
    return {
        "group_size": ("group", counts, _named("samples with a real row")),
        **_mean("area_difference", ("group", "map", "baseline", "mode"), grouped, bootstrap),
    }


def _mean(
    name: str, dims: tuple[str, ...], values: NDArray[np.float64], bootstrap: LevelBootstrap
) -> dict[str, tuple]:
    """Mean over (N, ...) samples, those without a value left out, and its interval."""
    sums = bootstrap.sum_by_level(np.nan_to_num(values))
    counts = bootstrap.sum_by_level(np.isfinite(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(axis=0) / counts.sum(axis=0)
        resampled = bootstrap.resample(sums) / bootstrap.resample(counts)
    return with_interval(name, dims, mean, percentile_interval(resampled), "mean over samples")


def _named(description: str) -> dict[str, str]:
    return {"long_name": description}


def _meanings() -> dict[str, tuple]:
    dims = {"map": MAPS, "simulator": SIMULATORS, "measure": AGREEMENTS, "compared": LIKENESSES}
    return {f"{dim}_meaning": (dim, list(meanings.values())) for dim, meanings in dims.items()}
