"""Whether what drives what in the simulator drives it in reality too.

Correlations and Jacobians rank statements "component i drives j after k steps"
(`analysis/causal_statements.py`). Here each component is pushed once, at row 0, by an amount of its
own, in the simulator and in the real environment from the same starts; what all components do k
rows later is compared with the same recording without the push. So every statement on all samples
is put to the test, and with it every pair of components of which nothing was stated, which tells
how often a sign comes out right by itself. The best statements are also tested by what they would
let one expect of behaviour: the updates of i are led to j (*swap*), and i is held at its mean
(*collapse*). `analysis/statement_outcomes.py` counts what comes of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import tyro
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import norm

from analysis.causal_statements import EVIDENCE, StatementSettings, rank_statements
from analysis.consistency import MEASURES, compare_with_null, permute_components
from analysis.cross_dynamics import ALL
from analysis.effect_recording import TESTED, EffectRecordingConfig
from analysis.effect_verdict import random_controls
from analysis.false_discovery import false_discovery_q
from analysis.fidelity_file import BOUNDS
from analysis.intervention_effects_precompute import InterventionEffectsCommand, measure_effects
from analysis.matched_statements import MatchSettings, match_statements
from analysis.paired_rows import COMPONENT_PREFIX
from analysis.results import (
    CONSISTENCY_NAME,
    CROSS_NAME,
    INTERVENTION_EFFECTS_NAME,
    STATEMENT_EFFECTS_NAME,
    input_hashes,
    read_results,
    write_results,
)
from analysis.statement_outcomes import summarise
from experiment.counts import at_most_available
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from experiment.resampling import bootstrap_p_values
from projections.hidden import HiddenProjection
from projections.intervention_flags import DEFAULT_PROJECTIONS, InterventionConfig

COMPARISONS = {
    "gradient_simulated": ("gradient", "simulated"),
    "gradient_real": ("gradient", "real"),
    "simulated_real": ("simulated", "real"),
}
"""Which responses to pushes are compared with which."""
AFTER_THE_FIRST_ROW = ("1", "to", "end")
"""On row 0 the simulator corrects a state that it decoded, which is no update of the agent's."""
PUSHES = EffectRecordingConfig(
    real_steps=10, num_random_controls=3, sign_flip=False, control_components=4
)
"""What is recorded of a push by default: no more real rows than simulated ones. Its random controls
serve for the other pushes too, on the components that they leave alone."""
_DEVIATIONS_OF_INTERVAL = 2 * norm.ppf(0.975)


@dataclass(frozen=True)
class StatementEffectsConfig:
    """Flags of `statement_effects_precompute.py`."""

    interpreting_params_name: str = "defaults"
    """Preset of hyperparams/statement_effects.yml that the other values are taken from."""
    consistency: Path = Path("analysis/dynamics_grads_consistency_plots")
    """Folder of consistency.nc, whose statements are tested."""
    cross: Path = Path("analysis/xcorr_and_xcaus_plots")
    """Folder of xcorr_and_xcaus.nc, which that file was made from: mean Jacobians of all pairs."""
    data_dir: Path = Path("data")
    """Dataset of real rollouts, made by record.py, whose rows are the starts."""
    gen_mod_exp_name: str = "test_tgm"
    """Name of the training whose newest simulator is taken when no --model_file is given."""
    model_file: Path | None = None
    """The simulator's folder; by default the newest of generative/results/GEN_MOD_EXP_NAME/."""
    agent_file: str | None = None
    """The agent; by default the one that recorded DATA_DIR."""
    projection: Path = DEFAULT_PROJECTIONS / "projection"
    """Fitted projection that defines the components."""
    output_dir: Path = Path("analysis/statement_effects")
    """Folder for statement_effects.nc, and a folder in it for each intervention, with its
    recordings; what is there already is not recorded again."""
    num_pushed: int = 16
    """Components that are pushed: sources of the best statements first, then the leading others."""
    push_size: float = 1.0
    """Size of a push, in standard deviations of the component over real states."""
    num_pairs: int = 3
    """Best statements, of different sources, whose components are swapped and collapsed."""
    pushes: EffectRecordingConfig = field(default=PUSHES)
    """How much is recorded of each push."""
    pairs: EffectRecordingConfig = field(default_factory=EffectRecordingConfig)
    """How much is recorded of each swap and each collapse."""
    matching: Annotated[MatchSettings, tyro.conf.arg(name="")] = field(
        default_factory=MatchSettings
    )
    """How supported statements are compared with others of the same predicted size."""
    num_permutations: int = 1000
    """Permutations of the components for the null of the agreement of responses."""
    num_resamples: int = 1000
    """Bootstrap resamples of the levels, and of the pushed components, for the 95% intervals."""
    seed: int = 0
    """Decides starts, draws and permutations."""
    device: str = "auto"
    """Where the networks run: auto, cpu, gpu, cuda, cuda:N."""
    report: Path | None = None
    """Write seconds, outputs and metrics to this JSON file."""


@dataclass(frozen=True)
class ComponentPair:
    """One component, and another that it is said to drive."""

    source: int
    target: int


@dataclass(frozen=True, eq=False)
class StatementPlan:
    """What is tested, read and checked before any recording."""

    config: StatementEffectsConfig
    cross: xr.Dataset
    statements: pd.DataFrame
    """All that can be made on all samples, best supported first; not only those that were kept."""
    pushed: list[int]
    """Components in ascending order."""
    pairs: list[ComponentPair]
    num_candidates: int
    """Statements on all samples and on each behaviour."""

    @property
    def num_components(self) -> int:
        """Components that statements are about."""
        return self.cross.sizes["source"]


def make_plan(config: StatementEffectsConfig) -> StatementPlan:
    """Read what the flags name; every mistake in them is found here, before any recording."""
    require_at_least(config, "num_pushed", "num_permutations")
    require_at_least(config, "num_pairs", least=0)
    if not config.matching.match_ratio > 1:
        raise UserError(f"--match_ratio {config.matching.match_ratio}: expected more than 1")
    if not (config.pushes.real and config.pairs.real):
        raise UserError("--pushes.no-real, --pairs.no-real: statements are tested in reality too")
    with read_results(config.cross / CROSS_NAME) as results:
        cross = results.load()
    with read_results(config.consistency / CONSISTENCY_NAME) as results:
        if input_hashes(results) != input_hashes(cross):
            raise UserError(
                f"--consistency {config.consistency}: made from other data than --cross "
                f"{config.cross}"
            )
        rate = float(results.attrs["false_discovery_rate"])
    _require_projection(config, cross)
    # The table that was kept ends somewhere: what it leaves out may have all evidence, too.
    candidates = rank_statements(cross, StatementSettings(rate, num_statements=None))
    statements = candidates.loc[candidates["behaviour"] == ALL, :]
    return StatementPlan(
        config,
        cross,
        statements,
        components_to_push(
            statements,
            cross.sizes["source"],
            at_most_available(config.num_pushed, cross.sizes["source"], "--num_pushed"),
        ),
        best_pairs(statements, config.num_pairs),
        len(candidates),
    )


def _require_projection(config: StatementEffectsConfig, cross: xr.Dataset) -> None:
    found = HiddenProjection.load(config.projection).data_hash
    expected = input_hashes(cross)["projection_data"]
    if found != expected:
        raise UserError(
            f"--projection {config.projection}: fitted on data {found[:12]}, but the components of "
            f"--cross {config.cross} on {expected[:12]}"
        )


def components_to_push(statements: pd.DataFrame, num_components: int, wanted: int) -> list[int]:
    """Sources of the best statements first, then the leading other components; ascending."""
    order = [*statements["source"].tolist(), *range(num_components)]
    return sorted(list(dict.fromkeys(order))[:wanted])


def best_pairs(statements: pd.DataFrame, wanted: int) -> list[ComponentPair]:
    """Pairs of the best statements, each source at most once."""
    pairs: dict[int, ComponentPair] = {}
    for source, target in statements[["source", "target"]].to_numpy().tolist():
        pairs.setdefault(source, ComponentPair(source, target))
    return list(pairs.values())[: at_most_available(wanted, len(pairs), "--num_pairs")]


def measure_statements(plan: StatementPlan, report: StageReport) -> Path:
    """Record all interventions, compare, write statement_effects.nc; returns its path.

    Raises:
        UserError: files that do not fit each other, before any recording; an output folder that
            cannot be written.
    """
    config = plan.config
    folder = require_writable_folder(config.output_dir, "--output_dir")
    for name, command in interventions(plan):
        print(f"intervention {name}", flush=True)
        measure_effects(command)
        report.outputs.append(str(folder / name))
    lags = lags_reached(plan.cross, config.pushes.num_sim_steps)
    responses = [
        read_response(folder / push_name(source), lags, plan.num_components)
        for source in plan.pushed
    ]
    with read_results(folder / push_name(plan.pushed[0]) / INTERVENTION_EFFECTS_NAME) as results:
        hashes = input_hashes(results)
    path = folder / STATEMENT_EFFECTS_NAME
    dataset = to_dataset(plan, responses)
    write_results(path, dataset, collect_provenance(config, config.seed, hashes))
    report.outputs.append(str(path))
    report.metrics |= summarise(dataset)
    return path


def push_name(source: int) -> str:
    """Folder of the push of a component."""
    return f"push_{source:02d}"


def swap_name(pair: ComponentPair) -> str:
    """Folder of the swap of a pair."""
    return f"swap_{pair.source:02d}_{pair.target:02d}"


def collapse_name(source: int) -> str:
    """Folder of the collapse of a component."""
    return f"collapse_{source:02d}"


def interventions(plan: StatementPlan) -> Iterator[tuple[str, InterventionEffectsCommand]]:
    """All interventions, by the name of their folder."""
    config = plan.config
    for source in plan.pushed:
        push = InterventionConfig(
            add_directions=(source,), add_amounts=(config.push_size,), add_once=True
        )
        name = push_name(source)
        yield name, replace(_command(plan, name, push, config.pushes), gradients=False)
    for pair in plan.pairs:
        swap = InterventionConfig(
            swap_directions_from=(pair.source,),
            swap_directions_to=(pair.target,),
            intervention_steps=AFTER_THE_FIRST_ROW,
        )
        yield swap_name(pair), _command(plan, swap_name(pair), swap, config.pairs)
        collapse = InterventionConfig(
            clamp_directions=(pair.source,),
            clamp_values=(0.0,),
            intervention_steps=AFTER_THE_FIRST_ROW,
        )
        name = collapse_name(pair.source)
        yield name, _command(plan, name, collapse, config.pairs)


def _command(
    plan: StatementPlan, name: str, asked: InterventionConfig, recording: EffectRecordingConfig
) -> InterventionEffectsCommand:
    config = plan.config
    return InterventionEffectsCommand(
        data_dir=config.data_dir,
        gen_mod_exp_name=config.gen_mod_exp_name,
        model_file=config.model_file,
        agent_file=config.agent_file,
        output_dir=config.output_dir / name,
        intervention=replace(asked, projection=config.projection),
        recording=recording,
        num_resamples=config.num_resamples,
        seed=config.seed,
        device=config.device,
    )


@dataclass(frozen=True, eq=False)
class Response:
    """What all components do after one was pushed; W worlds, L lags, D components."""

    effect: NDArray[np.float64]
    """(W, L, D) mean over starts, less the twin's, in coordinates."""
    interval: NDArray[np.float64]
    """(2, W, L, D)"""
    control: NDArray[np.float64]
    """(R, W, L, D) of pushes as large along random directions."""
    spares: NDArray[np.bool_]
    """(R, D) whether such a push leaves a component where it is."""
    norm: NDArray[np.float64]
    """(W,) length of the push, and of its controls, in hidden space."""
    num_starts: int
    """That were there, of those asked for."""
    num_levels: int
    """That the starts are from."""


def read_response(folder: Path, lags: Sequence[int], num_components: int) -> Response:
    """What the recordings of a push in `folder` say of the rows `lags`, the push being at row 0."""
    names = [f"{COMPONENT_PREFIX}{number}" for number in range(num_components)]
    with read_results(folder / INTERVENTION_EFFECTS_NAME) as results:
        rows = results.sel(row_measure=names).isel(step=list(lags))
        dims = ("world", "step", "row_measure")
        randoms = random_controls(results)
        tested = rows.sel(variant=TESTED)
        return Response(
            tested["row_effect"].transpose(*dims).values,
            tested["row_effect_interval"].transpose("bound", *dims).values,
            rows["row_effect"].sel(variant=randoms).transpose("variant", *dims).values,
            results["spared"].sel(variant=randoms).values[:, :num_components],
            results["change_norm"].sel(variant=TESTED).values,
            results.sizes["pair"],
            len(np.unique(results["level"].values)),
        )


def controls_of_size(responses: Sequence[Response], pushed: Sequence[int]) -> NDArray[np.float64]:
    """(N, W, S, L, D) effects of the N random pushes of all S responses, scaled to each push.

    A random push of one response is along another direction than that of another response, so
    every push has the controls of all. Effects are taken to be proportional to a push's length,
    which is of the same order for all. A random push that itself moves component i or j is no
    control of what i does to j, but partly that effect, or a move of j that lasts: NaN.

    Args:
        responses: to the pushes.
        pushed: (S,) component of each.
    """
    per_length = np.concatenate([one.control / one.norm[:, None, None] for one in responses])
    norm = np.stack([one.norm for one in responses], axis=1)
    spares = np.concatenate([one.spares for one in responses])
    is_control = spares[:, pushed, None] & spares[:, None]
    scaled = per_length[:, :, None] * norm[:, :, None, None]
    return np.where(is_control[:, None, :, None], scaled, np.nan)


def lags_reached(cross: xr.Dataset, num_rows: int) -> list[int]:
    """Lags of statements that a push at row 0 reaches."""
    return [int(lag) for lag in cross["lag"].values if 0 < lag < num_rows]


def to_dataset(plan: StatementPlan, responses: Sequence[Response]) -> xr.Dataset:
    """Label responses, what was predicted, what was stated, and how they agree."""
    lags = lags_reached(plan.cross, plan.config.pushes.num_sim_steps)
    effect = np.stack([one.effect for one in responses], axis=1)
    interval = np.stack([one.interval for one in responses], axis=2)
    control = controls_of_size(responses, plan.pushed)
    num_levels = responses[0].num_levels
    num_controls = np.isfinite(control).any(axis=(1, 3)).sum(axis=0)
    by_world = ("world", "source", "lag", "target")
    unit = {"units": "coordinate", "long_name": "mean over starts, less the twin's"}
    is_pair = np.array(plan.pushed)[:, None] != np.arange(plan.num_components)
    dataset = xr.Dataset(
        {
            "effect": (by_world, effect, unit),
            "effect_interval": (("bound", *by_world), interval, {"long_name": "95% interval"}),
            "effect_q": (by_world, response_q(effect, interval, is_pair[:, None], num_levels), {
                "long_name": "q of an effect of zero, over all pairs and lags of a world"
            }),
            "control_low": (by_world, -_largest(-control), {"long_name": "least of the controls"}),
            "control_high": (by_world, _largest(control), {"long_name": "largest of them"}),
            "control_p": (by_world, control_p_value(effect, control), {
                "long_name": "share of random directions, the tested one counted, that do as much"
            }),
            "num_controls": (("source", "target"), num_controls, {
                "long_name": "random directions that leave both components where they are"
            }),
            **_predicted(plan, lags),
            **_stated(plan, lags),
        },
        coords={
            "world": ["simulated", "real"],
            "source": plan.pushed,
            "lag": lags,
            "target": np.arange(plan.num_components),
            "bound": list(BOUNDS),
        },
        attrs={
            "num_candidates": plan.num_candidates,
            "largest_possible_score": len(EVIDENCE),
            "push_size": plan.config.push_size,
            "num_starts": responses[0].num_starts,
            "num_random_directions": len(control),
            "swaps": " ".join(swap_name(pair) for pair in plan.pairs),
            "collapses": " ".join(collapse_name(pair.source) for pair in plan.pairs),
        },
    )  # fmt: skip
    config = plan.config
    matched = match_statements(dataset, config.matching, config.num_resamples, config.seed)
    return dataset.merge(_agreements(dataset, plan)).merge(matched, combine_attrs="no_conflicts")


def control_p_value(
    effect: NDArray[np.float64], control: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(...) effects, (N, ...) of controls or NaN → (...) p-values of being like the controls.

    (1 + controls of at least that size) / (1 + controls): with n of them never below 1 / (n + 1).
    """
    known = np.isfinite(control)
    reached = known & (np.abs(np.where(known, control, 0.0)) >= np.abs(effect))
    p_value = (1 + reached.sum(axis=0)) / (1 + known.sum(axis=0))
    return np.where(np.isfinite(effect), p_value, np.nan)


def _largest(control: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, ...) → (...) the largest that is not NaN; NaN without any."""
    found = np.max(control, axis=0, initial=-np.inf, where=np.isfinite(control))
    return np.where(np.isfinite(found), found, np.nan)


def response_q(
    effect: NDArray[np.float64],
    interval: NDArray[np.float64],
    is_pair: NDArray[np.bool_],
    num_levels: int,
) -> NDArray[np.float64]:
    """(W, S, L, D) effects → q-values, adjusted over the pairs and lags of each world.

    The p-value is that of Student's t with the deviation that the 95% interval tells; adjusted
    after Benjamini and Hochberg (1995). NaN for a component's effect on itself, which is no
    statement, and where there is no effect.

    Args:
        effect: (W, S, L, D)
        interval: (2, W, S, L, D)
        is_pair: broadcasts to (S, L, D); false for source = target.
        num_levels: that were resampled.
    """
    deviation = (interval[1] - interval[0]) / _DEVIATIONS_OF_INTERVAL
    p_value = bootstrap_p_values(effect, deviation, num_levels)
    return np.stack([false_discovery_q(np.where(is_pair, p, np.nan)) for p in p_value])


def _predicted(plan: StatementPlan, lags: list[int]) -> dict[str, Any]:
    """Mean Jacobians times the push, in coordinates."""
    cross = plan.cross.sel(group=ALL, environment_gradient="passed", lag=lags)
    pushed = cross.sel(source=plan.pushed).transpose("source", "lag", "target", ...)
    deviation = plan.cross["component_deviation"].values
    projection = HiddenProjection.load(plan.config.projection)
    statistics = projection.coordinates(projection.method).statistics
    assert statistics is not None
    push = plan.config.push_size * statistics.deviation[plan.pushed]
    # Jacobians are kept in standard deviations over the simulated samples.
    scale = push[:, None, None] * deviation / deviation[plan.pushed][:, None, None]
    dims = ("source", "lag", "target")
    return {
        "gradient": (
            dims,
            pushed["causation"].values * scale,
            {"units": "coordinate", "long_name": "mean Jacobian times the push"},
        ),
        "gradient_q": (dims, pushed["causation_q"].values, {"long_name": "its q-value"}),
    }


def _stated(plan: StatementPlan, lags: list[int]) -> dict[str, Any]:
    """Sum of the evidence for each statement on all samples; NaN where there is none to be made."""
    shape = (len(plan.pushed), len(lags), plan.num_components)
    score = np.full(shape, np.nan)
    table = plan.statements[["source", "lag", "target", "score"]].to_numpy().tolist()
    for source, lag, target, value in table:
        if source in plan.pushed and lag in lags:
            score[plan.pushed.index(source), lags.index(lag), target] = value
    meaning = {"long_name": "evidence for the statement on all samples, less that against it"}
    return {"score": (("source", "lag", "target"), score, meaning)}


def _agreements(dataset: xr.Dataset, plan: StatementPlan) -> xr.Dataset:
    """How responses agree, beside permuted components; only where all components were pushed."""
    if len(plan.pushed) < plan.num_components:
        print(
            f"--num_pushed {len(plan.pushed)}: {plan.num_components} components would have to be "
            "pushed to compare responses with those of permuted components; that is left out"
        )
        return xr.Dataset()
    lags = dataset["lag"].values
    shape = (len(COMPARISONS), len(lags), len(MEASURES))
    observed, null_mean, p_value = (np.full(shape, np.nan) for _ in range(3))
    for index, (first, second) in enumerate(COMPARISONS.values()):
        for place in range(len(lags)):
            rng = np.random.default_rng([plan.config.seed, place])
            one, other = (_response(dataset, name, place) for name in (first, second))
            null = permute_components(other, plan.config.num_permutations, rng)
            found = compare_with_null(one, other, null)
            observed[index, place], null_mean[index, place] = found.observed, found.null_mean
            p_value[index, place] = found.p_value
    dims = ("comparison", "lag", "measure")
    return xr.Dataset(
        {
            "agreement": (dims, observed, {"long_name": "agreement between different components"}),
            "agreement_null": (dims, null_mean, {"long_name": "mean under permuted components"}),
            "agreement_p": (dims, p_value, {"long_name": "p-value, one-sided (Mantel)"}),
            "measure_meaning": ("measure", list(MEASURES.values())),
        },
        coords={"comparison": list(COMPARISONS), "measure": list(MEASURES)},
    )


def _response(dataset: xr.Dataset, name: str, place: int) -> NDArray[np.float64]:
    """(S, D) predicted by the gradient, or observed in a world."""
    chosen = dataset["gradient"] if name == "gradient" else dataset["effect"].sel(world=name)
    return chosen.isel(lag=place).transpose("source", "target").values
