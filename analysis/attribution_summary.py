"""Numbers on many saliency maps: how much comes by which path, and whether methods agree.

A summary is of one target step, the last that a file holds. Intervals resample source episodes,
with all samples that are from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from tqdm import tqdm

from analysis.saliency import MIXED, PATHS
from analysis.saliency_pictures import gradient_times_input
from analysis.saliency_targets import steps_read
from experiment.errors import UserError
from generative.level_bootstrap import LevelBootstrap, percentile_interval

SOURCES = {
    "frame": "gradient_frame",
    "agent state": "gradient_agent_state",
    "environment state": "gradient_env_deter",
}
"""With respect to what gradients are summarised, and their variables."""
ENVIRONMENT_CUT = "cut"
"""The gradient that integrated gradients over frames are compared with: the environment does not
answer there either."""


def mean_of_known(values: NDArray[np.floating], axis: int | tuple[int, ...]) -> NDArray[np.float64]:
    """Mean over axes of what is not NaN; NaN, without a warning, where nothing is known."""
    is_known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(is_known, values, 0.0).sum(axis=axis) / is_known.sum(axis=axis)


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean over samples with its 95% interval."""

    value: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


def mean_over_samples(
    values: NDArray[np.floating], unit: NDArray[np.int64], num_resamples: int, seed: int
) -> Mean:
    """(S, ...) values of samples → their mean; those that are NaN do not count.

    Args:
        values: of the samples.
        unit: (S,) samples of one unit depend on each other, and are drawn together.
        num_resamples: of the units.
        seed: draws them.
    """
    bootstrap = LevelBootstrap(unit, num_resamples, seed)
    is_known = np.isfinite(values)
    sums = bootstrap.sum_by_level(np.where(is_known, values, 0.0))
    counts = bootstrap.sum_by_level(is_known)
    with np.errstate(invalid="ignore"):
        mean = sums.sum(axis=0) / counts.sum(axis=0)
        resampled = bootstrap.resample(sums) / bootstrap.resample(counts)
    lower, upper = percentile_interval(resampled)
    return Mean(mean, lower, upper)


def units_of_samples(results: xr.Dataset) -> NDArray[np.int64]:
    """(S,) which samples of a file depend on each other.

    A file that does not tell, of a version before this was kept, has samples of their own.
    """
    return results["unit"].values if "unit" in results else np.arange(results.sizes["sample"])


@dataclass(frozen=True, eq=False)
class PathNorms:
    """Root mean squares of gradients that came by each path."""

    norm: NDArray[np.float64]
    """(S, len(SOURCES), P, T, K) over samples, what the gradient is with respect to, paths, targets
    and the K steps up to the target step."""
    unit: NDArray[np.int64]
    """(S,) samples of one unit depend on each other."""
    paths: tuple[str, ...]
    targets: tuple[str, ...]

    def shares(self) -> NDArray[np.float64]:
        """(S, len(SOURCES), P, T) of each path against all (`passed`), over the steps before those
        that the target reads, where paths can differ; NaN where there are none."""
        num_steps = self.norm.shape[-1]
        ends = np.array([num_steps - steps_read(target) for target in self.targets])
        is_before = np.arange(num_steps) < ends[:, None]
        size = np.sqrt(np.square(self.norm * is_before).sum(axis=-1))
        whole = size[:, :, [self.paths.index("passed")]]
        return np.divide(size, whole, out=np.full_like(size, np.nan), where=whole > 0)


def path_norms(results: xr.Dataset) -> PathNorms:
    """Sizes of the gradients of a file made with --split_paths.

    Raises:
        UserError: the gradients are not split, or the target step is the first.
    """
    variants = tuple(results["environment_gradient"].values.tolist())
    paths = (*PATHS, MIXED)
    if not set(paths) <= set(variants):
        raise UserError(
            f"--paths: gradients by {', '.join(variants)}; expected all of {', '.join(paths)}; "
            "make them with: python saliency_experiments.py --split_paths"
        )
    step = int(results["target_step"].values[-1])
    if step == 0:
        raise UserError("--paths: the target step is 0, before which there is nothing to split")
    at = results.isel(target_step=-1).sel(environment_gradient=list(paths))
    norms = []
    for index in tqdm(range(results.sizes["sample"]), desc="paths", unit="sample", disable=None):
        of_sources = []
        for variable in SOURCES.values():
            rows = at[variable].isel(sample=index, step=slice(step + 1))
            rows = rows.transpose("environment_gradient", "target", "step", ...)
            squares = np.square(np.asarray(rows.values, np.float64))
            of_sources.append(np.sqrt(squares.reshape(*squares.shape[:3], -1).mean(axis=-1)))
        norms.append(of_sources)
    targets = tuple(results["target"].values.tolist())
    return PathNorms(np.array(norms), units_of_samples(results), paths, targets)


@dataclass(frozen=True, eq=False)
class MethodAgreement:
    """Cosines between maps of M methods."""

    same: NDArray[np.float64]
    """(S, T, M, M) maps of the same sample, by target."""
    other: NDArray[np.float64]
    """(S, T, M, M) the control: a map of the sample and one of the next sample of another unit."""
    methods: tuple[str, ...]
    targets: tuple[str, ...]


def method_agreement(results: xr.Dataset) -> MethodAgreement:
    """Compare gradient, gradient × input and integrated gradients over the frames.

    A map is what the numbers of a pixel add up to, for all steps up to the target step.

    Raises:
        UserError: the file has no integrated gradients over frames, too few samples for the
            control, or gradients that pass the environment.
    """
    _require_comparable(results)
    at = results.isel(target_step=-1)
    step = int(at["target_step"])
    baselines = results["baseline"].values.tolist()
    maps = []
    for index in tqdm(range(results.sizes["sample"]), desc="methods", unit="sample", disable=None):
        one = at.isel(sample=index, step=slice(step + 1))
        gradient = one["gradient_frame"].sel(environment_gradient=ENVIRONMENT_CUT)
        gradient = gradient.transpose("target", "step", ...).values
        product = gradient_times_input(gradient, one["frame"].values)
        integrated = one["integrated_frame"].transpose("baseline", "target", "step", ...).values
        of_methods = np.stack([gradient, product, *integrated], axis=1)
        maps.append(of_methods.sum(axis=-1).reshape(*of_methods.shape[:2], -1))
    unit, others = _unit(np.array(maps)), _next_of_another_unit(units_of_samples(results))
    methods = ("gradient", "gradient × input", *(f"integrated, {name}" for name in baselines))
    return MethodAgreement(
        np.einsum("stmp,stnp->stmn", unit, unit),
        np.einsum("stmp,stnp->stmn", unit, unit[others]),
        methods,
        tuple(results["target"].values.tolist()),
    )


def _require_comparable(results: xr.Dataset) -> None:
    if "integrated_frame" not in results:
        raise UserError(
            "--integrated: no integrated gradients over frames; make them with: python "
            "saliency_experiments.py --integrate frames latent --no-env_grads"
        )
    if ENVIRONMENT_CUT not in results["environment_gradient"].values:
        raise UserError(
            "--integrated: the gradients pass the environment, which integrated gradients over "
            "frames do not; add --no-env_grads to: python saliency_experiments.py"
        )
    if len(np.unique(units_of_samples(results))) < 2:
        raise UserError(
            f"--integrated: {results.sizes['sample']} samples of one source episode; at least 2 "
            "are needed to compare with a sample of another"
        )


def _next_of_another_unit(unit: NDArray[np.integer]) -> NDArray[np.int64]:
    """(S,) units, two at least → (S,) position of the next sample of another, around the end."""
    size = len(unit)
    ahead = (np.arange(size)[:, None] + np.arange(1, size)) % size
    first = (unit[ahead] != unit[:, None]).argmax(axis=1)
    return ahead[np.arange(size), first]


def _unit(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    maps = np.asarray(maps, np.float64)
    norm = np.linalg.norm(maps, axis=-1, keepdims=True)
    return np.divide(maps, norm, out=np.full_like(maps, np.nan), where=norm > 0)


@dataclass(frozen=True, eq=False)
class Convergence:
    """What integrated gradients missed of the change that they share out."""

    missed: NDArray[np.float64]
    """(S, T) |sum of the attributions − difference| / |difference|; NaN where nothing changed and
    nothing was attributed."""
    name: str
    """Over what, and from which baseline."""

    def share_within(self, tolerance: float) -> float:
        """Share of the integrals that miss at most `tolerance` of their difference.

        A target that has no value at the step, or does not change at all, has nothing to share
        out, and does not count; NaN where none counts.
        """
        within = np.where(np.isnan(self.missed), np.nan, self.missed <= tolerance)
        return float(mean_of_known(within, (0, 1)))


def convergence(results: xr.Dataset) -> Sequence[Convergence]:
    """By kind of integral, for those that a file has."""
    found = []
    if "integrated_frame_delta" in results:
        for baseline in results["baseline"].values.tolist():
            at = results.sel(baseline=baseline)
            found.append(Convergence(_missed(at, "integrated_frame"), f"frames, {baseline}"))
    if "integrated_latent_delta" in results:
        found.append(Convergence(_missed(results, "integrated_latent"), "latent, mean"))
    return found


def _missed(results: xr.Dataset, name: str) -> NDArray[np.float64]:
    at = results.isel(target_step=-1)
    delta, difference = (
        at[f"{name}_{what}"].transpose("sample", "target").values
        for what in ("delta", "difference")
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(delta) / np.abs(difference)
