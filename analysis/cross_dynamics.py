"""Computes cross-correlations and cross-causations per behaviour and lag, and keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
import xarray as xr
from numpy.typing import NDArray
from tqdm import tqdm

from analysis.cross_causation import (
    extreme_samples,
    seriate,
    summarise_effects,
)
from analysis.cross_correlation import (
    NULLS,
    LaggedCorrelation,
    NullSettings,
    clip_coordinates,
    component_deviations,
    correlate,
    group_series,
    lagged_correlation,
    regress,
)
from analysis.cross_states import (
    States,
    component_labels,
    cross_name,
    side_by_side,
    stack_environment,
)
from analysis.episode_stacks import CoordinateStack, stack_coordinates
from analysis.false_discovery import false_discovery_q, lagged_families
from analysis.jacobian_means import lag_means, step_means
from analysis.results import (
    BEHAVIOUR_NAME,
    JACOBIAN_NAME,
    input_hashes,
    read_results,
    write_results,
)
from analysis.rollout_rows import select_episodes
from analysis.sample_source import open_simulated_rollouts
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.provenance import collect_provenance
from experiment.randomness import keyed_uniform
from experiment.report import StageReport
from projections.hidden import HiddenProjection, load_fitting_projection
from rollouts.independent_units import units_of_episodes
from rollouts.store import RolloutDataset

ALL = "all"
"""Name of the group of all episodes."""


@dataclass(frozen=True)
class CrossInputs:
    """What is read."""

    generated_data_dir: Path = Path("generative/rec_gen_mod_data/informed_init")
    """Rollouts to correlate, simulated or real."""
    projection: Path = Path("analysis/hx_analysis_precomp/projection")
    """Fitted projection that defines components, made by hidden_analysis_precompute.py."""
    behaviour: Path | None = Path("analysis/combined_agent_env_hx_analysis_precomp")
    """Folder of behaviour_clusters.nc, which must be of GENERATED_DATA_DIR. With None, or where the
    default folder is absent, all episodes are one group."""
    jacobians: Path | None = Path("analysis/jacob_analysis_precomp")
    """Folder of jacobians.nc, which must be of GENERATED_DATA_DIR. With None, or where the default
    folder is absent, there is no cross-causation."""


@dataclass(frozen=True)
class CrossSettings:
    """What is computed."""

    num_samples: int = 4000
    """Episodes to correlate."""
    states: States = "agent"
    """Components to correlate: of the agent's hidden state; of the environment's deterministic
    state, which only simulated rollouts have; or both, with themselves and with each other.
    Jacobians are those of the agent's components: with others there is no cross-causation."""
    num_components: int = 16
    """Leading components of the projection."""
    num_env_components: int = 16
    """Leading principal components of the environment's state, with --states environment, both."""
    max_lag: int = 20
    """Longest lag, in steps."""
    heed_ends: bool = True
    """Whether steps after the predicted end of a sample are left out; not to heed ends is for
    simulators that predict them badly."""
    ridge: float = 0.01
    """Penalty of the regression of later components on earlier ones, as a share of their mean
    variance."""
    clip: float = 6.0
    """Standardised coordinates are clipped at so many standard deviations; 0 for not."""
    nulls: Annotated[NullSettings, tyro.conf.arg(name="")] = field(default_factory=NullSettings)
    extrema_threshold: float = 0.02
    """Share of the samples that count as extreme at either end of a component: at least one."""
    extrema_step: int = 3
    """Step at which samples are extreme."""


@dataclass(frozen=True, eq=False)
class Group:
    """Episodes that are looked at together."""

    name: str
    members: NDArray[np.int64]
    """Positions in the stack."""


@dataclass(frozen=True, eq=False)
class JacobianTable:
    """Jacobians of samples."""

    sample_id: NDArray[np.int64]
    unit: NDArray[np.int64]
    """(N,) samples of one unit depend on each other (`rollouts.independent_units`)."""
    jacobian: NDArray[np.float32]
    """(N, 2, K, D, K, D), with and without the environment."""
    push_effect: NDArray[np.float32] | None
    """(N, 2, K, D, D), [sample, variant, step, target, source]."""
    push_step: int
    component: NDArray[np.float32]
    """(N, K, D)"""
    length: NDArray[np.int64]
    variants: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class CrossPlan:
    """Everything loaded and checked, before any work."""

    settings: CrossSettings
    stack: CoordinateStack
    """Coordinates in standard deviations, clipped."""
    deviation: NDArray[np.float64]
    """(D,) standard deviation of each component, the unit of all that follows."""
    groups: list[Group]
    lags: list[int]
    jacobians: JacobianTable | None
    inputs: dict[str, str]
    """Hashes by role."""
    labels: list[str]
    """(D,) names of the components: numbers, after an `e` for the environment's, an `a` for the
    agent's beside them."""


def make_plan(inputs: CrossInputs, settings: CrossSettings) -> CrossPlan:
    """Read what the flags name; every mistake in them is found here, before any work."""
    _check_numbers(settings)
    has_environment = settings.states != "agent"
    open_dataset = open_simulated_rollouts if has_environment else RolloutDataset
    dataset = open_dataset(inputs.generated_data_dir)
    source = f"--generated_data_dir {inputs.generated_data_dir}"
    rows = select_episodes(dataset, settings.num_samples, source, "--num_samples")
    hashes = {"agent": dataset.metadata.agent_hash, "dataset": dataset.hash}
    parts, jacobians = [], None
    if settings.states != "environment":
        projection = load_fitting_projection(
            inputs.projection, slice(*dataset.metadata.hidden_slice)
        )
        agents = _leading(
            stack_coordinates(rows, projection, settings.heed_ends), settings.num_components
        )
        if not has_environment:
            jacobians = _read_jacobians(inputs, dataset, projection, agents)
        known = None if jacobians is None else jacobians.component.shape[2]
        parts.append(replace(agents, values=agents.values[:, :, :known]))
        hashes["projection_data"] = projection.data_hash
    if has_environment:
        _tell_unread_jacobians(inputs, settings)
        parts.append(
            stack_environment(
                rows, settings.num_env_components, settings.heed_ends, settings.nulls.seed
            )
        )
    stack = side_by_side(parts)
    return CrossPlan(
        settings=settings,
        stack=clip_coordinates(stack, settings.clip),
        labels=component_labels(settings.states, [part.values.shape[2] for part in parts]),
        deviation=component_deviations(stack),
        groups=_read_groups(inputs, dataset, stack.episode_id),
        lags=_possible_lags(settings.max_lag, stack),
        jacobians=jacobians,
        inputs=hashes,
    )


def _check_numbers(settings: CrossSettings) -> None:
    require_at_least(settings, "num_samples", "num_components", "num_env_components")
    require_at_least(settings, "max_lag", "clip", "extrema_step", least=0)
    if not settings.ridge > 0:
        raise UserError(f"--ridge {settings.ridge}: must be above 0")
    require_at_least(settings.nulls, "num_permutations", "num_resamples", least=10)
    if not 0 < settings.extrema_threshold <= 0.5:
        raise UserError(
            f"--extrema_threshold {settings.extrema_threshold}: expected a share above 0 and at "
            "most 0.5"
        )


def _leading(stack: CoordinateStack, wanted: int) -> CoordinateStack:
    available = stack.values.shape[2]
    if available < wanted:
        print(f"--num_components {wanted}: the projection has {available}, all of them are used")
    return replace(stack, values=stack.values[:, :, :wanted])


def _possible_lags(max_lag: int, stack: CoordinateStack) -> list[int]:
    longest = int(stack.length.max()) - 1
    if max_lag > longest:
        print(f"--max_lag {max_lag}: the longest episode allows {longest}")
    return list(range(min(max_lag, longest) + 1))


def _read_groups(
    inputs: CrossInputs, dataset: RolloutDataset, episode_id: NDArray[np.int64]
) -> list[Group]:
    """All episodes, then those of each behaviour that has any."""
    everything = Group(ALL, np.arange(len(episode_id)))
    if inputs.behaviour is None:
        return [everything]
    path = inputs.behaviour / BEHAVIOUR_NAME
    if inputs.behaviour == CrossInputs.behaviour and not path.exists():
        print(f"no behaviour clusters in {inputs.behaviour}: all episodes are one group")
        return [everything]
    with read_results(path) as results:
        _require_same_data(path, results, dataset, "--behaviour")
        labels = dict(zip(results["sample"].values, results["sample_cluster"].values, strict=True))
    label = np.array([labels.get(episode, -1) for episode in episode_id])
    found = np.unique(label[label >= 0])
    return [everything, *(Group(str(c), np.flatnonzero(label == c)) for c in found)]


def _require_same_data(path: Path, results: xr.Dataset, dataset: RolloutDataset, flag: str) -> None:
    made_from = input_hashes(results).get("generated_dataset")
    if made_from != dataset.hash:
        raise UserError(
            f"{flag}: {path} was made from dataset {str(made_from)[:12]}, but "
            f"--generated_data_dir {dataset.folder} is dataset {dataset.hash[:12]}; {flag} None "
            "goes without"
        )


def _tell_unread_jacobians(inputs: CrossInputs, settings: CrossSettings) -> None:
    """Say that those asked for are not read; the default ones nobody asked for."""
    if inputs.jacobians not in (None, CrossInputs.jacobians):
        print(
            f"--jacobians {inputs.jacobians}: not read with --states {settings.states}, there is "
            "no cross-causation"
        )


def _read_jacobians(
    inputs: CrossInputs,
    dataset: RolloutDataset,
    projection: HiddenProjection,
    stack: CoordinateStack,
) -> JacobianTable | None:
    """Those of the episodes and components in `stack`, as far as the file has them."""
    if inputs.jacobians is None:
        return None
    path = inputs.jacobians / JACOBIAN_NAME
    if inputs.jacobians == CrossInputs.jacobians and not path.exists():
        print(f"no Jacobians in {inputs.jacobians}: there is no cross-causation")
        return None
    with read_results(path) as results:
        _require_same_data(path, results, dataset, "--jacobians")
        if results.attrs["projection_data_hash"] != projection.data_hash:
            raise UserError(
                f"--jacobians: {path} was made with another projection than --projection "
                f"{inputs.projection}"
            )
        size, available = stack.values.shape[2], results.sizes["source"]
        if available < size:
            print(f"--num_components {size}: {path} has {available}, all of them are used")
        chosen = np.isin(results["sample_id"].values, stack.episode_id)
        leading = results.isel(
            source=slice(size), target=slice(size), sample=np.flatnonzero(chosen)
        ).load()
        return JacobianTable(
            sample_id=leading["sample_id"].values,
            unit=units_of_episodes(dataset, leading["sample_id"].values),
            jacobian=leading["jacobian"].values,
            push_effect=leading["push_effect"].values if "push_effect" in leading else None,
            push_step=int(leading.attrs["grad_timestep"]),
            component=leading["component"].values,
            length=leading["length"].values,
            variants=tuple(leading["environment_gradient"].values.tolist()),
        )


def compute_cross_dynamics(
    plan: CrossPlan, config: Any, output_dir: Path, report: StageReport
) -> Path:
    """Compute everything and write the result file, `cross_name`; returns its path.

    Args:
        plan: what was read.
        config: recorded as the file's provenance.
        output_dir: folder of the file.
        report: filled in.
    """
    folder = require_writable_folder(output_dir, "--output_dir")
    results = _correlations(plan)
    if plan.jacobians is not None:
        results = results.merge(_causations(plan, plan.jacobians), combine_attrs="override")
    path = folder / cross_name(plan.settings.states)
    write_results(path, results, collect_provenance(config, plan.settings.nulls.seed, plan.inputs))
    report.outputs.append(str(path))
    report.metrics |= {
        "episodes": len(plan.stack.episode_id),
        "groups": len(plan.groups),
        "lags": len(plan.lags),
        "discoveries_by_null": {
            name: int((results["correlation_q"].sel(null=name) < 0.05).sum()) for name in NULLS
        },
    }
    return path


MATRIX = ("source", "target")
EFFECTS = {"causation": "mean Jacobian", "push": "mean effect of a finite push"}
ADJUSTED = (
    "adjusted over all groups and lags, for pairs of components and for each with itself apart"
)
Labelled = tuple[tuple[str, ...], NDArray, dict[str, str]]


def _labelled(dims: tuple[str, ...], values: NDArray, description: str) -> Labelled:
    return dims, values, {"long_name": description}


def _correlations(plan: CrossPlan) -> xr.Dataset:
    dealt = np.concatenate([group.members for group in plan.groups[1:]] or [np.zeros(0, int)])
    found = [
        lagged_correlation(
            plan.stack,
            group.members,
            plan.lags,
            plan.settings.nulls,
            dealt if group.name != ALL and len(dealt) > len(group.members) else None,
        )
        for group in tqdm(plan.groups, desc="cross-correlation", unit="group", disable=None)
    ]
    p_values = np.stack([_stacked_p_values(found, name) for name in NULLS])
    size = plan.stack.values.shape[2]
    families = lagged_families(plan.lags, size)
    q_values = np.stack([false_discovery_q(p, families) for p in p_values])
    by_group = ("group", "lag", *MATRIX)
    halves = _halves(plan.stack.unit)
    variables = {
        "correlation": _labelled(
            by_group,
            np.stack([one.correlation for one in found]),
            "correlation of the source component at t with the target component at t + lag",
        ),
        "correlation_interval": _labelled(
            ("bound", *by_group),
            np.stack([one.interval for one in found], axis=1),
            "95% interval of the correlation, bootstrap over source episodes",
        ),
        "correlation_p": _labelled(("null", *by_group), p_values, "p-value under each null"),
        "correlation_q": _labelled(("null", *by_group), q_values, f"the same, {ADJUSTED}"),
        "correlation_half": _labelled(
            ("half", *by_group),
            np.stack([_half_correlations(plan, half) for half in halves]),
            "correlation in either random half of the source episodes",
        ),
        "regression": _labelled(
            by_group,
            np.stack([_regressions(plan, group) for group in plan.groups]),
            "coefficients of the regression of the target at t + lag on all sources at t",
        ),
        "component_label": _labelled(("source",), np.array(plan.labels), "name of each component"),
        "component_deviation": _labelled(
            ("source",), plan.deviation, "standard deviation, the unit of both axes"
        ),
        "num_episodes": _labelled(
            ("group",), np.array([len(g.members) for g in plan.groups]), "episodes of the group"
        ),
        "num_units": _labelled(
            ("group",),
            _count_units(plan.stack.unit, [group.members for group in plan.groups]),
            "source episodes, or levels, that these are from: what is resampled",
        ),
        "num_pairs": _labelled(
            ("group", "lag"), np.stack([one.num_pairs for one in found]), "pairs of steps"
        ),
        "component_order": _labelled(
            ("group", "place"),
            np.stack([seriate(one.correlation[0]) for one in found]),
            "components in the order of a hierarchical clustering of their correlations at lag 0",
        ),
    }
    coordinates = {
        "group": [group.name for group in plan.groups],
        "lag": plan.lags,
        "null": list(NULLS),
        "bound": ["lower", "upper"],
        "source": np.arange(size),
        "target": np.arange(size),
    }
    attributes = {"clip": plan.settings.clip, "states": plan.settings.states}
    return xr.Dataset(variables, coordinates, attributes)


def _count_units(
    unit: NDArray[np.integer], members: Sequence[NDArray[np.integer]]
) -> NDArray[np.int64]:
    """(G,) independent units of each group."""
    return np.array([len(np.unique(unit[m])) for m in members], np.int64)


def _regressions(plan: CrossPlan, group: Group) -> NDArray[np.float64]:
    """(L, D, D)"""
    series = group_series(plan.stack, group.members)
    return np.stack([regress(series, lag, plan.settings.ridge) for lag in plan.lags])


def _stacked_p_values(found: Sequence[LaggedCorrelation], null: str) -> NDArray[np.float64]:
    """(G, L, D, D); NaN where a group has no such null."""
    missing = np.full(found[0].correlation.shape, np.nan)
    return np.stack([one.p_values.get(null, missing) for one in found])


def _halves(unit: NDArray[np.integer]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two random halves of (N,) episodes that share no unit, the same ones in every analysis."""
    is_first = keyed_uniform(0, "dynamics-half", unit)[:, 0] < 0.5
    return is_first, ~is_first


def _half_correlations(plan: CrossPlan, half: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(G, L, D, D); NaN where a half is empty."""
    size = plan.stack.values.shape[2]
    found = np.full((len(plan.groups), len(plan.lags), size, size), np.nan)
    for index, group in enumerate(plan.groups):
        members = group.members[half[group.members]]
        if len(members):
            series = group_series(plan.stack, members)
            found[index] = [correlate(series, series, lag) for lag in plan.lags]
    return found


def _causations(plan: CrossPlan, table: JacobianTable) -> xr.Dataset:
    table = in_deviations(table, plan.deviation)
    members = [_positions(table, plan, group) for group in plan.groups]
    variants = range(len(table.variants))
    per_sample = np.stack(
        [lag_means(table.jacobian[:, v], table.length, plan.lags) for v in variants]
    )
    variables = {
        **_effect_variables("causation", per_sample, table.unit, members, plan.lags),
        "causation_half": _labelled(
            ("half", "environment_gradient", "group", "lag", *MATRIX),
            np.stack(
                [
                    [[_mean(values[m[half[m]]]) for m in members] for values in per_sample]
                    for half in _halves(table.unit)
                ]
            ),
            "mean Jacobian in either random half of the source episodes",
        ),
        "causation_by_step": _labelled(
            ("environment_gradient", "group", "source_step", "target_step", *MATRIX),
            np.stack(
                [
                    [step_means(table.jacobian[m, v], table.length[m]) for m in members]
                    for v in variants
                ]
            ).astype(np.float32),
            "mean Jacobian for every pair of steps",
        ),
        "num_jacobians": _labelled(
            ("group",), np.array([len(m) for m in members]), "samples with Jacobians"
        ),
        "num_jacobian_units": _labelled(
            ("group",), _count_units(table.unit, members), "source episodes that these are from"
        ),
        "jacobian_unit": _labelled(
            ("jacobian_sample",), table.unit, "equal for samples of one source episode"
        ),
        **_extrema_variables(plan, table, per_sample),
    }
    if table.push_effect is not None:
        pushed = _pushes_by_lag(table, plan.lags)
        variables |= _effect_variables("push", pushed, table.unit, members, plan.lags)
    steps = np.arange(table.jacobian.shape[2])
    coordinates = {
        "environment_gradient": list(table.variants),
        "source_step": steps,
        "target_step": steps,
        "extreme": ["low", "high"],
        "jacobian_sample": table.sample_id,
    }
    return xr.Dataset(variables, coordinates)


def in_deviations(table: JacobianTable, deviation: NDArray[np.floating]) -> JacobianTable:
    """Effects per standard deviation of the source, in standard deviations of the target."""
    ratio = (deviation / deviation[:, None]).astype(np.float32)
    push = None if table.push_effect is None else table.push_effect * ratio
    return replace(table, jacobian=table.jacobian * ratio[:, None], push_effect=push)


def _positions(table: JacobianTable, plan: CrossPlan, group: Group) -> NDArray[np.int64]:
    """Positions in the table of the group's samples that have Jacobians."""
    return np.flatnonzero(np.isin(table.sample_id, plan.stack.episode_id[group.members]))


def _mean(values: NDArray[np.floating]) -> NDArray[np.float64]:
    return summarise_effects(values, np.arange(len(values))).mean


def _effect_variables(
    name: str,
    per_sample: NDArray[np.float64],
    unit: NDArray[np.int64],
    members: Sequence[NDArray[np.int64]],
    lags: Sequence[int],
) -> dict[str, Labelled]:
    """Mean, interval, tests of (V, N, L, D, D) values, by variant and group."""
    what = EFFECTS[name]
    found = [[summarise_effects(values[m], unit[m]) for m in members] for values in per_sample]
    dims = ("environment_gradient", "group", "lag", *MATRIX)

    def stacked(field_name: str) -> NDArray[np.float64]:
        return np.stack([[getattr(one, field_name) for one in row] for row in found])

    # At lag 0 a Jacobian is the identity, and the effect of a push the push itself.
    has_passed = np.array(lags)[:, None, None] > 0
    p_values = np.where(has_passed, stacked("p_value"), np.nan)
    families = lagged_families(lags, per_sample.shape[-1])
    meaning = f"{what}: d target at t + lag / d source at t, both in standard deviations"
    return {
        name: _labelled(dims, stacked("mean"), meaning),
        f"{name}_interval": _labelled(
            ("bound", *dims), np.moveaxis(stacked("interval"), 2, 0), f"95% interval of the {what}"
        ),
        f"{name}_p": _labelled(dims, p_values, f"p-value of a {what} of zero"),
        f"{name}_q": _labelled(
            dims,
            np.stack([false_discovery_q(p, families) for p in p_values]),
            f"the same, {ADJUSTED}",
        ),
        f"{name}_positive_share": _labelled(
            dims, stacked("positive_share"), "share of samples above zero"
        ),
    }


def _pushes_by_lag(table: JacobianTable, lags: Sequence[int]) -> NDArray[np.float64]:
    """(V, N, L, D, D), [.., source, target]; NaN where the episode has ended."""
    assert table.push_effect is not None
    num_samples, num_variants, num_steps, size = table.push_effect.shape[:4]
    found = np.full((num_variants, num_samples, len(lags), size, size), np.nan)
    for index, lag in enumerate(lags):
        step = table.push_step + lag
        if step < num_steps:
            reaches = step < table.length
            effect = table.push_effect[reaches, :, step].transpose(1, 0, 3, 2)
            found[:, reaches, index] = effect
    return found


def _extrema_variables(
    plan: CrossPlan, table: JacobianTable, per_sample: NDArray[np.float64]
) -> dict[str, Labelled]:
    """Mean Jacobians of the samples in which a component is lowest and highest."""
    wanted, last = plan.settings.extrema_step, table.component.shape[1] - 1
    if wanted > last:
        print(f"--extrema_step {wanted}: Jacobians end with step {last}, which is taken")
    step = min(wanted, last)
    reaches = np.flatnonzero(table.length > step)
    means, ids = [], []
    for component in range(table.component.shape[2]):
        ends = extreme_samples(
            table.component[reaches, step, component], plan.settings.extrema_threshold
        )
        chosen = [reaches[ends.low], reaches[ends.high]]
        means.append([[_mean(values[m]) for m in chosen] for values in per_sample])
        ids.append([table.sample_id[m] for m in chosen])
    return {
        "extrema_causation": _labelled(
            ("component", "environment_gradient", "extreme", "lag", *MATRIX),
            np.array(means),
            "mean Jacobian of the samples in which the component is extreme",
        ),
        "extrema_sample": _labelled(
            ("component", "extreme", "rank"), np.array(ids, np.int64), "ids of these samples"
        ),
    }
