"""Computes the consistency of gradients with dynamics and the ranked statements, and keeps both."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import tyro
import xarray as xr
from numpy.typing import NDArray
from tqdm import tqdm

from analysis import cross_causation, cross_correlation
from analysis.causal_statements import EVIDENCE, StatementSettings, rank_statements
from analysis.consistency import (
    MEASURES,
    Agreement,
    compare_with_null,
    deal_labels,
    permute_components,
)
from analysis.cross_dynamics import ALL
from analysis.false_discovery import false_discovery_q
from analysis.jacobian_means import lag_means
from analysis.results import (
    BEHAVIOUR_NAME,
    CONSISTENCY_NAME,
    CROSS_NAME,
    JACOBIAN_NAME,
    PRODUCERS,
    input_hashes,
    read_results,
    write_results,
)
from experiment.errors import UserError, require_at_least
from experiment.files import atomic_file, require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport

NULLS = {
    "components": "component indices of the Jacobian permuted (Mantel)",
    "labels": "source episodes dealt to the behaviours anew",
}
DYNAMICS = ("correlation", "regression")
"""What mean Jacobians are compared with."""
STATEMENTS_NAME = "causal_statements.csv"


@dataclass(frozen=True)
class ConsistencyInputs:
    """What is read."""

    cross: Path = Path("analysis/xcorr_and_xcaus_plots")
    """Folder of xcorr_and_xcaus.nc, made by xcorr_and_xcaus_plots.py."""
    jacobians: Path = Path("analysis/jacob_analysis_precomp")
    """Folder of jacobians.nc, which that file was made from."""
    behaviour: Path = Path("analysis/combined_agent_env_hx_analysis_precomp")
    """Folder of behaviour_clusters.nc, which that file was made from; not needed where it knows
    one group only."""


@dataclass(frozen=True)
class ConsistencySettings:
    """What is computed."""

    num_mantel_permutations: int = 1000
    """Permutations of the components, and of the labels."""
    statements: Annotated[StatementSettings, tyro.conf.arg(name="")] = field(
        default_factory=StatementSettings
    )
    seed: int = 0
    """Seed of the permutations."""


@dataclass(frozen=True, eq=False)
class ConsistencyPlan:
    """Everything read and checked, before any work."""

    cross: xr.Dataset
    jacobian: NDArray[np.float32]
    """(N, 2, K, D, K, D) in standard deviations of the components."""
    length: NDArray[np.int64]
    unit: NDArray[np.int64]
    """(N,) samples of one unit depend on each other (`rollouts.independent_units`)."""
    members: dict[str, NDArray[np.int64]]
    """Positions of the samples of each group."""
    settings: ConsistencySettings


def make_plan(inputs: ConsistencyInputs, settings: ConsistencySettings) -> ConsistencyPlan:
    """Read what the flags name; every mistake in them is found here, before any work."""
    require_at_least(settings, "num_mantel_permutations", least=10)
    if settings.statements.num_statements is not None:
        require_at_least(settings.statements, "num_statements")
    rate = settings.statements.false_discovery_rate
    if not 0 < rate < 1:
        raise UserError(f"--false_discovery_rate {rate}: expected a share between 0 and 1")
    path = inputs.cross / CROSS_NAME
    with read_results(path) as results:
        cross = results.load()
    if "causation" not in cross:
        raise UserError(
            f"--cross: {path} has no cross-causation; make jacobians.nc with: "
            f"{PRODUCERS['jacobians']}, then {PRODUCERS['xcorr_and_xcaus']}"
        )
    size = cross.sizes["source"]
    if "jacobian_unit" not in cross:
        raise _unknown_units(path)
    with read_results(inputs.jacobians / JACOBIAN_NAME) as results:
        _require_same_data(inputs.jacobians / JACOBIAN_NAME, results, cross)
        chosen = np.isin(results["sample_id"].values, cross["jacobian_sample"].values)
        leading = results.isel(
            source=slice(size), target=slice(size), sample=np.flatnonzero(chosen)
        ).load()
    if not np.array_equal(leading["sample_id"], cross["jacobian_sample"]):
        raise _unknown_units(path)
    deviation = cross["component_deviation"].values
    ratio = (deviation / deviation[:, None]).astype(np.float32)
    return ConsistencyPlan(
        cross=cross,
        jacobian=leading["jacobian"].values * ratio[:, None],
        length=leading["length"].values,
        unit=cross["jacobian_unit"].values,
        members=_read_members(inputs, cross, leading["sample_id"].values),
        settings=settings,
    )


def _require_same_data(path: Path, results: xr.Dataset, cross: xr.Dataset) -> None:
    found, expected = (
        input_hashes(results).get("generated_dataset"), input_hashes(cross)["dataset"]
    )  # fmt: skip
    if found != expected:
        raise UserError(
            f"{path}: made from dataset {str(found)[:12]}, but --cross is from {expected[:12]}"
        )


def _unknown_units(path: Path) -> UserError:
    return UserError(
        f"--cross: {path} does not tell which of these Jacobians are independent; make it anew "
        f"with: {PRODUCERS['xcorr_and_xcaus']}"
    )


def _read_members(
    inputs: ConsistencyInputs, cross: xr.Dataset, sample_id: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    names = [str(name) for name in cross["group"].values]
    members = {ALL: np.arange(len(sample_id))}
    if names == [ALL]:
        return members
    path = inputs.behaviour / BEHAVIOUR_NAME
    with read_results(path) as results:
        _require_same_data(path, results, cross)
        ids, labels = results["sample"].values, results["sample_cluster"].values
    by_id = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    label = np.array([by_id.get(sample, -1) for sample in sample_id.tolist()])
    return members | {name: np.flatnonzero(label == int(name)) for name in names if name != ALL}


def analyse_consistency(
    plan: ConsistencyPlan, config: Any, output_dir: Path, report: StageReport
) -> Path:
    """Compare, rank, write consistency.nc and causal_statements.csv; returns the former's path."""
    folder = require_writable_folder(output_dir, "--output_dir")
    statements = rank_statements(plan.cross, plan.settings.statements)
    results = _comparisons(plan).merge(_statement_variables(statements))
    path = folder / CONSISTENCY_NAME
    inputs = input_hashes(plan.cross)
    write_results(path, results, collect_provenance(config, plan.settings.seed, inputs))
    with atomic_file(folder / STATEMENTS_NAME) as temporary:
        statements.to_csv(temporary, index=False, float_format="%.6g")
    report.outputs += [str(path), str(folder / STATEMENTS_NAME)]
    report.metrics |= {
        "statements": len(statements),
        "best_score": int(statements["score"].to_numpy().max(initial=0)),
        "largest_possible_score": len(EVIDENCE),
    }
    return path


def _comparisons(plan: ConsistencyPlan) -> xr.Dataset:
    cross, settings = plan.cross, plan.settings
    lags = [int(lag) for lag in cross["lag"].values if lag > 0]
    variants = cross["environment_gradient"].values.tolist()
    groups = cross["group"].values.tolist()
    shape = (len(NULLS), len(DYNAMICS), len(variants), len(groups), len(lags), len(MEASURES))
    observed, null_mean, p_value = (np.full(shape, np.nan) for _ in range(3))
    progress = tqdm(total=len(variants) * len(groups), desc="consistency", disable=None)
    for v, variant in enumerate(variants):
        per_sample = lag_means(plan.jacobian[:, v], plan.length, lags)
        for g, group in enumerate(groups):
            for k, lag in enumerate(lags):
                # Every row has draws of its own, which depend on no other row.
                rng = np.random.default_rng([settings.seed, g, lag])
                where = {"group": group, "lag": lag, "environment_gradient": variant}
                found = _compare(plan, per_sample[:, k], where, rng)
                for (null, dynamics), one in found.items():
                    place = list(NULLS).index(null), DYNAMICS.index(dynamics), v, g, k
                    observed[place], null_mean[place] = one.observed, one.null_mean
                    if _has_enough_units(cross.sel(group=group)):
                        p_value[place] = one.p_value
            progress.update()
    progress.close()
    dims = ("dynamics", "environment_gradient", "group", "lag", "measure")
    return xr.Dataset(
        {
            "agreement": (dims, observed[0], {"long_name": "agreement of gradients and dynamics"}),
            "agreement_null": (("null", *dims), null_mean, {"long_name": "mean under the null"}),
            "agreement_p": (("null", *dims), p_value, {"long_name": "p-value, one-sided"}),
            "agreement_q": (
                ("null", *dims),
                np.stack([false_discovery_q(p) for p in p_value]),
                {"long_name": "the same, adjusted over all rows"},
            ),
            "num_episodes": ("group", cross["num_episodes"].values),
            "num_jacobians": ("group", cross["num_jacobians"].values),
            "measure_meaning": ("measure", list(MEASURES.values())),
            "null_meaning": ("null", list(NULLS.values())),
        },
        coords={
            "null": list(NULLS),
            "dynamics": list(DYNAMICS),
            "environment_gradient": variants,
            "group": groups,
            "lag": lags,
            "measure": list(MEASURES),
        },
        attrs={
            "num_components": cross.sizes["source"],
            "false_discovery_rate": settings.statements.false_discovery_rate,
        },
    )


def _has_enough_units(group: xr.Dataset) -> bool:
    """Whether a group's correlations and mean Jacobians are tested themselves.

    What agrees in one or two episodes, however well, says nothing of a behaviour.
    """
    return bool(
        group["num_units"] >= cross_correlation.MIN_UNITS
        and group["num_jacobian_units"] >= cross_causation.MIN_UNITS
    )


def _compare(
    plan: ConsistencyPlan,
    per_sample: NDArray[np.float64],
    where: dict[str, Any],
    rng: np.random.Generator,
) -> dict[tuple[str, str], Agreement]:
    """Agreement of one group at one lag, by null and dynamics."""
    num_permutations, group = plan.settings.num_mantel_permutations, where["group"]
    gradients = plan.cross["causation"].sel(where).values
    at_lag = plan.cross.sel(group=group, lag=where["lag"])
    dynamics = {name: at_lag[name].values for name in DYNAMICS}
    permuted = permute_components(gradients, num_permutations, rng)
    labelled = [m for name, m in plan.members.items() if name != ALL]
    is_labelled = group != ALL and len(labelled) > 1
    dealt = np.concatenate(labelled) if is_labelled else np.zeros(0, np.int64)
    is_member = np.isin(dealt, plan.members[group])
    regrouped = deal_labels(per_sample[dealt], plan.unit[dealt], is_member, num_permutations, rng)
    nulls = {"components": permuted, "labels": regrouped}
    return {
        (null, name): compare_with_null(matrix, gradients, nulls[null])
        for null, (name, matrix) in product(nulls, dynamics.items())
    }


def _statement_variables(statements: pd.DataFrame) -> xr.Dataset:
    """The table as variables along `statement`, prefixed so that no name is taken."""
    variables = {
        f"statement_{name}": ("statement", _plain(column.to_numpy()))
        for name, column in statements.items()
    }
    return xr.Dataset(variables)


def _plain(values: NDArray) -> NDArray:
    """Words as fixed-width strings, which a result file can hold."""
    return values if values.dtype.kind in "iufb" else values.astype(str)
