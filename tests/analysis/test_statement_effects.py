"""Causal statements put to the test by pushes, on responses that are known."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from analysis import statement_effects
from analysis.cross_dynamics import ALL
from analysis.effect_recording import EffectRecordingConfig, spared_by_control
from analysis.intervention_effects_precompute import InterventionEffectsCommand, measure_effects
from analysis.matched_statements import MatchSettings, match_statements
from analysis.paired_rows import COMPONENT_PREFIX
from analysis.results import INTERVENTION_EFFECTS_NAME, write_results
from analysis.statement_effects import (
    PUSHES,
    ComponentPair,
    Response,
    StatementEffectsConfig,
    StatementPlan,
    best_pairs,
    components_to_push,
    control_p_value,
    controls_of_size,
    interventions,
    lags_reached,
    response_q,
    to_dataset,
)
from analysis.statement_figures import draw_agreement, draw_matched, draw_responses
from analysis.statement_outcomes import outcome
from experiment.errors import UserError
from experiment.provenance import collect_provenance
from findings.causes import best_table, beyond_by_chance
from projections.hidden import HiddenProjection
from projections.intervention_flags import InterventionConfig

SIZE, LAGS = 3, [1, 2]
LARGEST_SCORE = 6


def statements(*pairs: tuple[int, int]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=pd.Index(["source", "target"]))


def test_sources_of_the_best_statements_are_pushed_first() -> None:
    ranked = statements((5, 1), (2, 0), (5, 3))
    assert components_to_push(ranked, 8, 2) == [2, 5]
    assert components_to_push(ranked, 8, 4) == [0, 1, 2, 5]
    assert components_to_push(ranked, 8, 100) == list(range(8))


def test_best_pairs_have_different_sources(capsys: pytest.CaptureFixture[str]) -> None:
    ranked = statements((5, 1), (5, 3), (2, 0))
    assert len(best_pairs(ranked, 9)) == 2
    assert "--num_pairs 9: only 2 exist" in capsys.readouterr().out
    assert best_pairs(ranked, 2) == [ComponentPair(5, 1), ComponentPair(2, 0)]
    assert best_pairs(ranked, 0) == []


def test_lags_are_those_that_a_push_at_the_first_row_reaches() -> None:
    cross = xr.Dataset(coords={"lag": [0, 1, 2]})
    assert lags_reached(cross, num_rows=2) == [1]


def test_q_values_find_the_planted_effects_only() -> None:
    rng = np.random.default_rng(0)
    effect = rng.normal(size=(1, 4, 5, 10))
    effect[0, 0] += 8.0
    interval = np.stack([effect - 1.96, effect + 1.96])
    is_pair = np.ones((4, 5, 10), np.bool_)
    is_pair[1] = False
    q_value = response_q(effect, interval, is_pair, num_levels=200)
    assert (q_value[0, 0] < 0.05).all()
    assert np.isnan(q_value[0, 1]).all()
    assert (q_value[0, 2:] < 0.05).mean() < 0.05


def results(effect: np.ndarray, gradient: np.ndarray, score: np.ndarray) -> xr.Dataset:
    """Responses whose intervals are narrow; what is zero is known to be."""
    by_world = ("world", "source", "lag", "target")
    interval = np.stack([effect - 0.1, effect + 0.1])
    is_pair = ~np.eye(SIZE, dtype=np.bool_)[:, None]
    dims = ("comparison", "lag", "measure")
    return xr.Dataset(
        {
            "effect": (by_world, effect),
            "effect_interval": (("bound", *by_world), interval),
            "effect_q": (by_world, response_q(effect, interval, is_pair, 200)),
            "control_low": (by_world, np.full(effect.shape, -1.5)),
            "control_high": (by_world, np.full(effect.shape, 1.5)),
            "control_p": (by_world, np.where(np.abs(effect) > 1.5, 0.1, 1.0)),
            "num_controls": (("source", "target"), np.full((SIZE, SIZE), 9)),
            "gradient": (by_world[1:], gradient),
            "score": (by_world[1:], score),
            **{
                name: (dims, np.full((3, 2, 1), 0.5))
                for name in ("agreement", "agreement_null", "agreement_p")
            },
            "measure_meaning": ("measure", ["cosine"]),
        },
        coords={
            "world": ["simulated", "real"],
            "source": np.arange(SIZE),
            "lag": LAGS,
            "target": np.arange(SIZE),
            "bound": ["lower", "upper"],
            "measure": ["cosine"],
            "comparison": list(statement_effects.COMPARISONS),
        },
        attrs={
            "largest_possible_score": LARGEST_SCORE,
            "push_size": 1.0,
            "num_starts": 8,
            "swaps": "",
            "collapses": "",
            "num_candidates": 12,
        },
    )


@pytest.fixture
def planted() -> xr.Dataset:
    """Two supported statements: one true in both worlds, one whose real effect is the opposite."""
    effect = np.zeros((2, SIZE, len(LAGS), SIZE))
    effect[:, 0, 0, 1] = 2.0
    effect[:, 1, 1, 2] = (1.0, -1.0)
    gradient = np.full((SIZE, len(LAGS), SIZE), 0.3)
    score = np.zeros(gradient.shape)
    score[0, 0, 1] = score[1, 1, 2] = LARGEST_SCORE
    # A component drives itself: no statement.
    effect[:, 2, 0, 2] = 5.0
    return results(effect, gradient, score)


def test_outcomes_are_counted_by_sign_and_control(planted: xr.Dataset) -> None:
    simulated = outcome(planted, "simulated", "supported")
    assert (simulated.num_statements, simulated.num_seen, simulated.num_opposite) == (2, 2, 0)
    # Random directions reach 1.5, so only the effect of 2 lies beyond them.
    assert simulated.num_beyond_controls == 1
    # One control has no range; what points the other way counts by its size, too.
    for control in (3.0, -3.0):
        one = planted.assign(
            {name: xr.full_like(planted[name], control) for name in ("control_low", "control_high")}
        )
        assert outcome(one, "simulated", "supported").num_beyond_controls == 0
    real = outcome(planted, "real", "supported")
    assert (real.num_seen, real.num_opposite) == (1, 1)
    others = outcome(planted, "real", "others")
    assert others.num_statements == len(LAGS) * SIZE * (SIZE - 1) - 2
    assert others.num_seen == others.num_opposite == 0
    assert others.share_seen == 0.0


def test_figures_are_drawn(planted: xr.Dataset) -> None:
    matched = match_statements(planted, MatchSettings(), num_resamples=10, seed=0)
    assert len(draw_matched(planted.merge(matched, combine_attrs="no_conflicts")).axes) == 4
    titles = [axis.get_title() for axis in draw_responses(planted).axes]
    assert "2 of 2 with the predicted sign" in titles[0]
    assert "1 of 2 with the predicted sign, 1 with the opposite" in titles[1]
    assert len(draw_agreement(planted).axes) == 1


def test_a_response_at_lag_k_is_read_from_row_k(tmp_path: Path) -> None:
    """Effects that are the number of their row, so that a shift by one row would show."""
    dims = ("world", "variant", "row_measure", "step")
    names = ["value", *(f"{COMPONENT_PREFIX}{number}" for number in range(SIZE))]
    rows = np.broadcast_to(np.arange(4.0), (2, 2, len(names), 4))
    dataset = xr.Dataset(
        {
            "row_effect": (dims, rows),
            "row_effect_interval": (("bound", *dims), np.stack([rows - 1, rows + 1])),
            "change_norm": (dims[:2], [[2.0, 2.0], [3.0, 3.0]]),
            "level": ("pair", [5, 7, 5]),
            "spared": (("variant", "component"), [[False] * (SIZE + 1), [True] * (SIZE + 1)]),
        },
        coords={
            "world": ["simulated", "real"],
            "variant": ["tested", "random_0"],
            "control": ["random_0"],
            "row_measure": names,
            "bound": ["lower", "upper"],
        },
    )
    provenance = collect_provenance({}, 0, {})
    write_results(tmp_path / INTERVENTION_EFFECTS_NAME, dataset, provenance)
    response = statement_effects.read_response(tmp_path, LAGS, SIZE)
    np.testing.assert_array_equal(response.effect[0], [[1.0] * SIZE, [2.0] * SIZE])
    np.testing.assert_array_equal(response.interval[0], response.effect - 1)
    np.testing.assert_array_equal(response.control[0], response.effect)
    np.testing.assert_array_equal(response.norm, [2.0, 3.0])
    assert response.spares.tolist() == [[True] * SIZE]
    assert (response.num_starts, response.num_levels) == (3, 2)


PUSH_SIZE = 2.0
"""Standard deviations."""


@pytest.fixture
def planted_plan(tmp_path: Path) -> StatementPlan:
    """Components of different scales, in real states and in simulated ones; other Jacobians are
    NaN than those on all samples, the environment passed, at lags that a push reaches."""
    rng = np.random.default_rng(3)
    states = rng.gamma(1.0, size=(200, 2 * SIZE)) * np.exp(rng.normal(size=2 * SIZE))
    HiddenProjection("nmf", SIZE).fit(states).save(tmp_path)
    jacobian = rng.normal(size=(len(LAGS), SIZE, SIZE))
    deviation = np.array([0.5, 2.0, 5.0])
    groups, lags, variants = [ALL, "0"], [0, *LAGS, 5], ["cut", "passed"]
    causation = np.full((len(variants), len(groups), len(lags), SIZE, SIZE), np.nan)
    causation[1, 0, 1:3] = jacobian * deviation[:, None] / deviation
    dims = ("environment_gradient", "group", "lag", "source", "target")
    cross = xr.Dataset(
        {
            "causation": (dims, causation),
            "causation_q": (dims, np.abs(causation)),
            "component_deviation": ("source", deviation),
            "jacobian_in_coordinates": (("reached", "source", "target"), jacobian),
        },
        {"environment_gradient": variants, "group": groups, "lag": lags,
         "source": np.arange(SIZE), "target": np.arange(SIZE)},
    )  # fmt: skip
    stated = pd.DataFrame(
        [(0, 1, 1, 6), (0, 2, 2, 5), (2, 1, 0, 4), (1, 1, 0, 3), (0, 5, 1, 2)],
        columns=pd.Index(["source", "lag", "target", "score"]),
    )
    config = StatementEffectsConfig(
        projection=tmp_path,
        push_size=PUSH_SIZE,
        num_permutations=20,
        num_resamples=10,
        pushes=replace(PUSHES, num_sim_steps=3),
    )
    return StatementPlan(config, cross, stated, [0, 2], [], num_candidates=9)


def response_to(effect: np.ndarray) -> Response:
    """(W, L, D) effects of a push."""
    interval = np.stack([effect - 0.1, effect + 0.1])
    return Response(effect, interval, effect[None], np.ones((1, SIZE), bool), np.ones(2), 60, 50)


def predicted_effect(plan: StatementPlan, source: int) -> np.ndarray:
    """(L, D) what a push of so many standard deviations does where everything is linear."""
    projection = HiddenProjection.load(plan.config.projection)
    statistics = projection.coordinates("nmf").statistics
    assert statistics is not None
    push = PUSH_SIZE * statistics.deviation[source]
    return plan.cross["jacobian_in_coordinates"].values[:, source] * push


def test_predictions_are_mean_jacobians_times_the_push_in_coordinates(planted_plan) -> None:
    nothing = np.zeros((2, len(LAGS), SIZE))
    dataset = to_dataset(planted_plan, [response_to(nothing) for _ in planted_plan.pushed])
    for source in planted_plan.pushed:
        at = dataset.sel(source=source)
        np.testing.assert_allclose(at["gradient"], predicted_effect(planted_plan, source))
    assert np.isfinite(dataset["gradient_q"]).all()
    assert dataset.attrs["num_candidates"] == 9
    # Fewer than asked for may exist.
    assert dataset.attrs["num_starts"] == 60 < planted_plan.config.pushes.num_starts


def test_scores_are_those_of_the_statements_that_are_tested(planted_plan) -> None:
    nothing = np.zeros((2, len(LAGS), SIZE))
    score = to_dataset(planted_plan, [response_to(nothing)] * 2)["score"]
    assert score.sizes == {"source": 2, "lag": 2, "target": SIZE}
    assert float(score.sel(source=0, lag=1, target=1)) == 6
    assert float(score.sel(source=0, lag=2, target=2)) == 5
    assert float(score.sel(source=2, lag=1, target=0)) == 4
    assert int(np.isfinite(score).sum()) == 3


def test_responses_of_all_components_are_compared_world_by_world(planted_plan) -> None:
    """The simulator does what the gradient says, reality the opposite."""
    plan = replace(planted_plan, pushed=list(range(SIZE)))
    predicted = [predicted_effect(plan, source) for source in plan.pushed]
    dataset = to_dataset(plan, [response_to(np.stack([one, -one])) for one in predicted])
    assert dataset["agreement_p"].min() >= 1 / 21
    for comparison, cosine in (
        ("gradient_simulated", 1.0), ("gradient_real", -1.0), ("simulated_real", -1.0)
    ):  # fmt: skip
        at = dataset["agreement"].sel(comparison=comparison, measure="cosine")
        np.testing.assert_allclose(at, cosine)
    signs = dataset["agreement"].sel(measure="sign").transpose("comparison", "lag")
    np.testing.assert_allclose(signs, [[1.0] * 2, [0.0] * 2, [0.0] * 2])


def test_components_are_pushed_once_and_pairs_swapped_and_held_from_the_second_row_on(
    planted_plan,
) -> None:
    config = planted_plan.config
    plan = replace(planted_plan, pairs=[ComponentPair(2, 1)])
    found = dict(interventions(plan))
    assert list(found) == ["push_00", "push_02", "swap_02_01", "collapse_02"]
    asked = {name: command.intervention for name, command in found.items()}
    of_projection = InterventionConfig(projection=config.projection)
    for source in plan.pushed:
        expected = replace(
            of_projection, add_directions=(source,), add_amounts=(PUSH_SIZE,), add_once=True
        )
        assert asked[f"push_{source:02d}"] == expected
    later = replace(of_projection, intervention_steps=("1", "to", "end"))
    assert asked["swap_02_01"] == replace(later, swap_directions_from=(2,), swap_directions_to=(1,))
    assert asked["collapse_02"] == replace(later, clamp_directions=(2,), clamp_values=(0.0,))
    for name, command in found.items():
        is_push = name.startswith("push")
        assert command.recording == (config.pushes if is_push else config.pairs)
        assert command.gradients == (not is_push)
        assert command.output_dir == config.output_dir / name


def test_every_push_has_the_controls_of_all_scaled_to_its_length() -> None:
    """Random pushes whose effects are their length times what their direction does."""
    rng = np.random.default_rng(0)
    of_direction = rng.normal(size=(3, 2, 2, len(LAGS), SIZE))
    norms = np.array([[0.5, 0.5], [2.0, 1.0], [1.0, 3.0]])
    responses = [
        Response(
            np.zeros((2, len(LAGS), SIZE)),
            np.zeros((2, 2, len(LAGS), SIZE)),
            directions * norm[:, None, None],
            np.ones((2, SIZE), bool),
            norm,
            9,
            9,
        )
        for directions, norm in zip(of_direction, norms, strict=True)
    ]
    found = controls_of_size(responses, [0, 1, 2])
    assert found.shape == (6, 2, 3, len(LAGS), SIZE)
    for push, norm in enumerate(norms):
        expected = of_direction.reshape(6, 2, len(LAGS), SIZE) * norm[:, None, None]
        np.testing.assert_allclose(found[:, :, push], expected)


def test_only_pushes_that_move_neither_component_are_controls_of_a_statement() -> None:
    """Two random pushes: one leaves 0 and 1 alone, the other 0 and 2."""
    spares = np.array([[True, True, False], [True, False, True]])
    shape = (1, len(LAGS), 3)
    nothing = np.zeros(shape)
    control = np.stack([np.full(shape, 1.0), np.full(shape, -2.0)])
    response = Response(nothing, np.stack([nothing] * 2), control, spares, np.ones(1), 9, 9)
    found = controls_of_size([response], pushed=[0])[:, 0, 0, 0]
    np.testing.assert_array_equal(found, [[1.0, 1.0, np.nan], [-2.0, np.nan, -2.0]])


def test_p_values_count_the_controls_that_do_as_much() -> None:
    control = np.array([[1.0, np.nan], [-3.0, np.nan], [2.0, 0.5], [np.nan, np.nan]])
    np.testing.assert_allclose(control_p_value(np.array([-2.0, 1.0]), control), [3 / 4, 1 / 2])
    np.testing.assert_allclose(control_p_value(np.array([4.0, np.nan]), control), [1 / 4, np.nan])


def test_a_report_tells_q_values_and_how_many_stay(planted: xr.Dataset) -> None:
    table = pd.DataFrame(
        {
            "behaviour": "all",
            "rank": [1, 2],
            "source": [0, 1],
            "lag": [1, 2],
            "target": [1, 2],
            "score": LARGEST_SCORE,
            **dict.fromkeys(("r", "r_lower", "r_upper"), 0.5),
        }
    )
    with mock.patch("findings.causes.EVIDENCE", range(LARGEST_SCORE)):
        found = best_table(planted, table)
    first, second = (dict(zip(found.columns, row, strict=True)) for row in found.rows)
    assert first["q, real"] == "< 0.001"
    assert first["p, random directions"] == "0.100"
    assert first["in reality"] == "as predicted"
    assert second["in reality"] == "opposite"
    assert beyond_by_chance(planted) == "0.1"


def test_every_pair_is_spared_by_most_controls_of_its_own_push() -> None:
    num_controls, size, num_moved = 3, 16, 4
    spared = np.zeros((size, num_controls, size), bool)
    for push in range(size):
        for number in range(num_controls):
            chosen = spared_by_control({push}, size, num_moved, number, seed=0)
            spared[push, number, list(chosen)] = True
            assert push in chosen
    assert (~spared).sum(axis=2).tolist() == [[num_moved] * num_controls] * size
    # In three turns of four no component of fifteen comes twice.
    assert (spared.sum(axis=1) >= num_controls - 1).all()
    both = np.einsum("pni,pnj->ij", spared.astype(int), spared.astype(int))
    assert both.min() >= 12
    assert spared_by_control({1}, 2, 4, 0, seed=0) == (0, 1)


def test_only_components_can_be_spared() -> None:
    command = InterventionEffectsCommand(
        intervention=InterventionConfig(
            add_directions=(1,), add_amounts=(1.0,), direction_type="unit"
        ),
        recording=EffectRecordingConfig(control_components=2),
    )
    with pytest.raises(UserError, match="--control_components 2: goes with components"):
        measure_effects(command)
