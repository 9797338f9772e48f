"""Numbers on many saliency maps: how much comes by which path, and whether methods agree.

A summary is of one target step, the last that a file holds. Intervals resample samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from tqdm import tqdm

from analysis.saliency import MIXED, PATHS
from analysis.saliency_pictures import gradient_times_input
from experiment.errors import UserError
from experiment.resampling import INTERVAL_PERCENTILES, resample_weights

SOURCES = {
    "frame": "gradient_frame",
    "agent state": "gradient_agent_state",
    "environment state": "gradient_env_deter",
}
"""With respect to what gradients are summarised, and their variables."""
ENVIRONMENT_CUT = "cut"
"""The gradient that integrated gradients over frames are compared with: the environment does not
answer there either."""


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean over samples with its 95% interval."""

    value: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


def mean_over_samples(values: NDArray[np.floating], num_resamples: int, seed: int) -> Mean:
    """(S, ...) values of samples → their mean; those that are NaN do not count."""
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    weights = resample_weights(len(flat), num_resamples, seed)
    is_known, shape = np.isfinite(flat), values.shape[1:]
    known = np.where(is_known, flat, 0.0)
    with np.errstate(invalid="ignore"):
        resampled = (weights @ known) / (weights @ is_known)
        mean = known.sum(axis=0) / is_known.sum(axis=0)
    lower, upper = np.nanpercentile(resampled, INTERVAL_PERCENTILES, axis=0)
    return Mean(mean.reshape(shape), lower.reshape(shape), upper.reshape(shape))


@dataclass(frozen=True, eq=False)
class PathNorms:
    """Root mean squares of gradients that came by each path."""

    norm: NDArray[np.float64]
    """(S, len(SOURCES), P, T, K) over samples, what the gradient is with respect to, paths, targets
    and the K steps up to the target step."""
    paths: tuple[str, ...]
    targets: tuple[str, ...]

    def shares(self) -> NDArray[np.float64]:
        """(S, len(SOURCES), P, T) of each path against all (`passed`), over the steps before the
        target step, where paths can differ."""
        size = np.sqrt(np.square(self.norm[..., :-1]).sum(axis=-1))
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
    return PathNorms(np.array(norms), paths, tuple(results["target"].values.tolist()))


@dataclass(frozen=True, eq=False)
class MethodAgreement:
    """Cosines between maps of M methods."""

    same: NDArray[np.float64]
    """(S, T, M, M) maps of the same sample, by target."""
    other: NDArray[np.float64]
    """(S, T, M, M) the control: a map of the sample and one of the next sample."""
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
    unit = _unit(np.array(maps))
    methods = ("gradient", "gradient × input", *(f"integrated, {name}" for name in baselines))
    return MethodAgreement(
        np.einsum("stmp,stnp->stmn", unit, unit),
        np.einsum("stmp,stnp->stmn", unit, np.roll(unit, -1, axis=0)),
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
    if results.sizes["sample"] < 2:
        raise UserError("--integrated: 1 sample; at least 2 are needed to compare with another's")


def _unit(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    maps = np.asarray(maps, np.float64)
    norm = np.linalg.norm(maps, axis=-1, keepdims=True)
    return np.divide(maps, norm, out=np.full_like(maps, np.nan), where=norm > 0)


@dataclass(frozen=True, eq=False)
class Convergence:
    """What integrated gradients missed of the change that they share out."""

    missed: NDArray[np.float64]
    """(S, T) |sum of the attributions − difference| / |difference|."""
    name: str
    """Over what, and from which baseline."""


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
    return np.abs(delta) / np.abs(difference)
