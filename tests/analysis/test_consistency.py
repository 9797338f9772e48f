"""Agreement of gradients with dynamics, and the ranked statements, where the truth is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from analysis import cross_figures
from analysis.causal_statements import StatementSettings, rank_statements
from analysis.consistency import agreement, compare_with_null, deal_labels, permute_components
from analysis.consistency_analysis import (
    ConsistencyInputs,
    ConsistencyPlan,
    ConsistencySettings,
    analyse_consistency,
)
from analysis.consistency_analysis import make_plan as make_consistency_plan
from analysis.consistency_figures import ConsistencyDrawing, plot_consistency
from analysis.cross_correlation import NullSettings
from analysis.cross_dynamics import (
    ALL,
    CrossInputs,
    CrossPlan,
    CrossSettings,
    Group,
    JacobianTable,
    compute_cross_dynamics,
    in_deviations,
)
from analysis.cross_dynamics import make_plan as make_cross_plan
from analysis.cross_figures import (
    CrossDrawing,
    draw_extremes,
    draw_group,
    plot_cross_dynamics,
)
from analysis.cross_states import component_labels
from analysis.episode_stacks import CoordinateStack
from analysis.false_discovery import false_discovery_q
from analysis.jacobian_means import lag_means
from analysis.results import BEHAVIOUR_NAME, JACOBIAN_NAME, read_results, write_results
from analysis.rollout_rows import RolloutRows
from experiment.errors import UserError
from experiment.provenance import collect_provenance
from experiment.randomness import keyed_uniform
from experiment.report import StageReport
from projections.hidden import HiddenProjection
from rollouts.store import RolloutDataset

NUM, LONG, STEPS, SIZE = 60, 12, 8, 4
"""Episodes of LONG steps, the first STEPS of which have Jacobians."""
BY_GROUP = (
    *("correlation", "correlation_interval", "correlation_half", "regression"),
    *("causation", "causation_interval", "causation_half", "causation_by_step", "push"),
)
"""What is computed for each behaviour."""


def random_matrices(seed=0):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(SIZE + 4, SIZE + 4))
    return first, first + 0.5 * rng.normal(size=first.shape), rng


def test_measures_equal_their_definitions_off_the_diagonal():
    first, second, _ = random_matrices()
    off = ~np.eye(len(first), dtype=bool)
    sign, rank, cosine = agreement(first, second[None])[0]
    x, y = first[off], second[off]
    assert sign == pytest.approx(np.mean(x * y > 0))
    assert rank == pytest.approx(spearmanr(x, y)[0])
    assert cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    changed = second.copy()
    np.fill_diagonal(changed, 100.0)
    np.testing.assert_allclose(agreement(first, changed[None])[0], [sign, rank, cosine])
    assert agreement(first, changed[None], with_diagonal=True)[0, 2] != pytest.approx(cosine)


def test_permuted_components_keep_the_matrix_up_to_names():
    first, _, rng = random_matrices()
    permuted = permute_components(first, 20, rng)
    np.testing.assert_allclose(
        np.sort(permuted.diagonal(axis1=1, axis2=2)), np.sort(first.diagonal())[None].repeat(20, 0)
    )
    np.testing.assert_allclose(
        np.sort(np.linalg.svd(permuted)[1]), np.sort(np.linalg.svd(first)[1])[None].repeat(20, 0)
    )


def test_mantels_null_finds_related_matrices_and_no_unrelated_ones():
    first, second, rng = random_matrices()
    null = permute_components(second, 300, rng)
    assert (compare_with_null(first, second, null).p_value < 0.02).all()
    p_values = []
    for seed in range(30):
        unrelated = np.random.default_rng(100 + seed).normal(size=first.shape)
        null = permute_components(unrelated, 100, rng)
        p_values.append(compare_with_null(first, unrelated, null).p_value)
    assert np.mean(np.array(p_values) < 0.1) < 0.25
    assert 0.3 < np.mean(p_values) < 0.7


def test_a_draw_that_agrees_as_well_counts_against_the_observed_one():
    """Of five draws two agree as well, up to rounding, and two worse; one knows nothing."""
    dynamics = np.random.default_rng(5).normal(size=(6, 6))
    gradients = 2.0 * dynamics
    unknown = np.full((6, 6), np.nan)
    null = np.stack([gradients, 3.0 * dynamics, -gradients, dynamics.T, unknown])
    found = compare_with_null(dynamics, gradients, null)
    np.testing.assert_allclose(found.p_value, (1 + 2) / (1 + 4))


def test_dealt_groups_have_the_groups_size_and_only_samples_with_jacobians():
    per_sample = np.arange(6.0)[:, None, None] * np.ones((6, 2, 2))
    per_sample[3] = np.nan
    rng, everyone = np.random.default_rng(0), np.ones(6, bool)
    means = deal_labels(per_sample, np.arange(6), everyone, 50, rng)
    # Sample 3 has no Jacobian, so the five others are every group.
    np.testing.assert_allclose(means, (0 + 1 + 2 + 4 + 5) / 5)
    nobody = np.zeros((0, 2, 2)), np.zeros(0, int), np.zeros(0, bool)
    assert np.isnan(deal_labels(*nobody, 3, rng)).all()


def test_groups_of_repeated_samples_vary_as_those_of_single_ones():
    values = np.random.default_rng(0).normal(size=(12, 2, 2))
    unit, is_member = np.repeat(np.arange(12), 8), np.arange(12) < 5
    once, repeated, naive = (
        deal_labels(values[chosen], units, is_member[chosen], 400, np.random.default_rng(1))
        for chosen, units in (
            (np.arange(12), np.arange(12)), (unit, unit), (unit, np.arange(len(unit)))
        )
    )  # fmt: skip
    np.testing.assert_allclose(repeated, once)
    assert (naive.std(axis=0) < 0.6 * once.std(axis=0)).all()


def planted_plan(num_permutations=20, seed=0):
    """Component 0 drives 1 after one step in behaviour 0, against it in behaviour 1.

    Components 2 and 3 are correlated at lag 1 but have no gradient; 3 → 2 has one, and no
    correlation.
    """
    rng = np.random.default_rng(seed)
    behaviour = np.arange(NUM) % 2
    gain = np.where(behaviour == 0, 0.9, -0.9)
    values = rng.normal(size=(NUM, LONG, SIZE))
    values[:, 1:, 1] += gain[:, None] * values[:, :-1, 0]
    values[:, 1:, 3] += 0.9 * values[:, :-1, 2]
    jacobian = 0.01 * rng.normal(size=(NUM, 2, STEPS, SIZE, STEPS, SIZE))
    push = 0.01 * rng.normal(size=(NUM, 2, STEPS, SIZE, SIZE))
    for t in range(STEPS - 1):
        jacobian[:, 0, t + 1, 1, t, 0] += gain
        jacobian[:, 0, t + 1, 2, t, 3] += 0.9
    push[:, 0, 4, 1, 0] += gain
    table = JacobianTable(
        sample_id=np.arange(NUM),
        unit=np.arange(NUM),
        jacobian=jacobian.astype(np.float32),
        push_effect=push.astype(np.float32),
        push_step=3,
        component=values[:, :STEPS].astype(np.float32),
        length=np.full(NUM, STEPS),
        variants=("passed", "cut"),
    )
    groups = [Group(ALL, np.arange(NUM))]
    groups += [Group(str(b), np.flatnonzero(behaviour == b)) for b in (0, 1)]
    settings = CrossSettings(nulls=NullSettings(num_permutations, 50), extrema_threshold=0.1)
    ids = np.arange(NUM)
    stack = CoordinateStack(values.astype(np.float32), np.full(NUM, LONG), ids, ids)
    inputs = {"agent": "a", "dataset": "d", "projection_data": "p"}
    labels = component_labels("agent", [SIZE])
    return CrossPlan(settings, stack, np.ones(SIZE), groups, [0, 1, 2, 9], table, inputs, labels)


@pytest.fixture(scope="module")
def cross(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cross")
    path = compute_cross_dynamics(planted_plan(300), {}, folder, StageReport("cross"))
    with read_results(path) as results:
        return results.load()


def statement(table, behaviour, lag, source, target):
    found = table.query(
        f"behaviour == '{behaviour}' and lag == {lag} and source == {source} and target == {target}"
    )
    (row,) = found.to_dict("records")
    return row


def test_the_planted_statement_is_ranked_first_with_its_sign(cross):
    table = rank_statements(cross, StatementSettings(num_statements=10_000))
    best = table.head(2)
    assert set(best["behaviour"]) == {"0", "1"}
    assert best[["lag", "source", "target"]].to_numpy().tolist() == [[1, 0, 1]] * 2
    for behaviour, sign in (("0", 1), ("1", -1)):
        row = statement(table, behaviour, 1, 0, 1)
        assert row["score"] == 6
        assert sign * row["r"] > 0.5
        assert sign * row["gradient_mean"] == pytest.approx(0.9, abs=0.05)
        assert abs(row["gradient_without_environment"]) < 0.05
        assert row["q_labels"] < 0.05
    # The two behaviours cancel in the group of all.
    assert statement(table, ALL, 1, 0, 1)["score"] <= 2


def test_either_half_of_the_episodes_has_the_planted_correlation_at_its_lag(cross):
    """x_1(t + 1) = a x_0(t) + noise has r = a / sqrt(1 + a²), and none at other lags."""
    halves = cross["correlation_half"].sel(source=0, target=1)
    for behaviour, gain in (("0", 0.9), ("1", -0.9)):
        own = halves.sel(group=behaviour)
        np.testing.assert_allclose(own.sel(lag=1), gain / np.sqrt(1 + gain**2), atol=0.15)
        np.testing.assert_allclose(own.sel(lag=[0, 2]), 0.0, atol=0.3)


def test_halves_of_mean_jacobians_are_those_of_the_episodes(cross):
    table = planted_plan().jacobians
    assert table is not None
    is_first = keyed_uniform(0, "dynamics-half", table.unit)[:, 0] < 0.5
    lags = cross["lag"].values.tolist()
    for variant, name in enumerate(table.variants):
        per_sample = lag_means(table.jacobian[:, variant], table.length, lags)
        for group, members in (("0", np.arange(NUM) % 2 == 0), (ALL, np.ones(NUM, np.bool_))):
            found = cross["causation_half"].sel(group=group, environment_gradient=name)
            halves = [per_sample[members & half].mean(axis=0) for half in (is_first, ~is_first)]
            np.testing.assert_allclose(found, halves, rtol=1e-6, equal_nan=True)


def test_a_push_has_no_effect_after_the_end_of_an_episode(tmp_path):
    """Half of the samples end with the step of the push; what stands behind it is not looked at."""
    plan = planted_plan(2)
    table = plan.jacobians
    assert table is not None
    assert table.push_effect is not None
    ends = np.arange(NUM) % 4 < 2
    length = np.where(ends, table.push_step + 1, table.length)
    push = table.push_effect.copy()
    push[ends, :, table.push_step + 1 :] = 1e6
    cut_short = replace(table, length=length, push_effect=push)
    path = compute_cross_dynamics(
        replace(plan, jacobians=cut_short), {}, tmp_path, StageReport("cross")
    )
    with read_results(path) as results:
        own = results["push"].sel(environment_gradient="passed", lag=1, source=0, target=1)
        for behaviour, gain in (("0", 0.9), ("1", -0.9)):
            assert float(own.sel(group=behaviour)) == pytest.approx(gain, abs=0.02)


def test_one_kind_of_evidence_alone_ranks_below_both(cross):
    table = rank_statements(cross, StatementSettings(num_statements=10_000))
    only_correlated = statement(table, "0", 1, 2, 3)
    only_gradient = statement(table, "0", 1, 3, 2)
    assert only_correlated["evidence_correlation"] == 1
    assert only_correlated["evidence_push"] == 0
    assert only_gradient["evidence_gradient"] == 1
    assert only_gradient["evidence_correlation"] == 0
    assert max(only_correlated["score"], only_gradient["score"]) < 6


def test_contradicting_signs_count_against(cross):
    flipped = cross.assign(causation=-cross["causation"], causation_half=-cross["causation_half"])
    row = statement(
        rank_statements(flipped, StatementSettings(num_statements=10_000)), "0", 1, 0, 1
    )
    assert row["evidence_sign"] == -1
    assert row["evidence_push"] == -1


def test_effects_are_in_standard_deviations_of_both_components():
    plan = planted_plan()
    assert plan.jacobians is not None
    scaled = in_deviations(plan.jacobians, np.array([2.0, 0.5, 1.0, 1.0]))
    before = plan.jacobians.jacobian[0, 0, 1, 1, 0, 0]
    # Component 0 moves by 2 per standard deviation, of which 1 has 0.5.
    assert scaled.jacobian[0, 0, 1, 1, 0, 0] == pytest.approx(4 * before)
    assert scaled.push_effect is not None
    assert plan.jacobians.push_effect is not None
    assert scaled.push_effect[0, 0, 4, 1, 0] == pytest.approx(
        4 * plan.jacobians.push_effect[0, 0, 4, 1, 0]
    )


def test_lags_beyond_the_jacobians_are_no_statements(cross):
    assert cross["causation"].sel(lag=9).isnull().all()
    table = rank_statements(cross, StatementSettings(num_statements=10_000))
    assert set(table["lag"]) == {1, 2}


def test_statements_are_adjusted_among_themselves(cross):
    """Neither what a component has of its own past nor lag 0 is among the statements."""
    is_pair = (cross["source"] != cross["target"]) & (cross["lag"] > 0)
    for name in ("correlation", "causation", "push"):
        p_values, found = (
            cross[f"{name}_{what}"].isel(
                {"null": 0, "environment_gradient": 0}, missing_dims="ignore"
            )
            for what in ("p", "q")
        )
        among_themselves = false_discovery_q(p_values.where(is_pair).values)
        np.testing.assert_allclose(found.where(is_pair).values, among_themselves)
    for name in ("causation_p", "causation_q", "push_p", "push_q"):
        assert cross[name].sel(lag=0).isnull().all()


def test_each_behaviour_has_the_order_of_its_own_correlations_at_lag_zero(tmp_path):
    """Components 0 and 2, 1 and 3 are alike in behaviour 0; in behaviour 1 0 and 3, 1 and 2."""
    plan = planted_plan(2)
    rng = np.random.default_rng(4)
    source = np.array([[0, 1, 0, 1], [0, 1, 1, 0]])[np.arange(NUM) % 2]
    common, own = rng.normal(size=(NUM, LONG, 2)), rng.normal(size=(NUM, LONG, SIZE))
    values = np.take_along_axis(common, source[:, None].repeat(LONG, axis=1), axis=2) + 0.3 * own
    stack = replace(plan.stack, values=values.astype(np.float32))
    path = compute_cross_dynamics(
        replace(plan, stack=stack, jacobians=None), {}, tmp_path, StageReport("cross")
    )
    with read_results(path) as results:
        order = results["component_order"].load()
    for behaviour, pairs in (("0", {(0, 2), (1, 3)}), ("1", {(0, 3), (1, 2)})):
        first, second = np.sort(order.sel(group=behaviour).values.reshape(2, 2), axis=1).tolist()
        assert {tuple(first), tuple(second)} == pairs


def test_a_page_shows_the_components_in_the_order_that_is_asked_for(cross):
    order = [2, 0, 3, 1]
    planted = cross.assign(component_order=(("group", "place"), [order] * cross.sizes["group"]))
    values = planted["correlation"].sel(group="0", lag=1).values
    for is_seriated, expected in ((True, order), (False, range(SIZE))):
        axis = draw_group(planted, "0", [1], is_seriated).axes[0]
        drawn = np.asarray(axis.images[0].get_array())
        np.testing.assert_array_equal(drawn, values[np.ix_(expected, expected)])
        assert [label.get_text() for label in axis.get_yticklabels()] == [str(c) for c in expected]


def test_extremes_name_their_samples(cross):
    plan = planted_plan()
    assert plan.jacobians is not None
    ids = cross["extrema_sample"].sel(component=2)
    values = plan.jacobians.component[:, 3, 2]
    assert ids.sizes["rank"] == 6
    assert values[ids.sel(extreme="low")].max() <= np.sort(values)[5]
    assert values[ids.sel(extreme="high")].min() >= np.sort(values)[-6]


def test_samples_are_extreme_at_the_last_step_where_none_is_as_late_as_asked(tmp_path, capsys):
    plan = planted_plan(10)
    found = []
    for step in (STEPS - 1, 99):
        settings = replace(plan.settings, extrema_step=step)
        path = compute_cross_dynamics(
            replace(plan, settings=settings), {}, tmp_path / str(step), StageReport("cross")
        )
        with read_results(path) as results:
            found.append(results["extrema_sample"].values)
    np.testing.assert_array_equal(*found)
    said = f"--extrema_step 99: Jacobians end with step {STEPS - 1}"
    assert capsys.readouterr().out.count(said) == 1


def test_what_holds_in_a_behaviour_changes_when_labels_are_permuted(cross, tmp_path):
    """Behaviours of the same sizes, with other samples in them: all that is left is the mean."""
    plan = planted_plan()
    behaviour = np.random.default_rng(0).permutation(np.arange(NUM) % 2)
    groups = [plan.groups[0], *(Group(str(b), np.flatnonzero(behaviour == b)) for b in (0, 1))]
    path = compute_cross_dynamics(
        replace(plan, groups=groups), {}, tmp_path, StageReport("permuted")
    )
    with read_results(path) as results:
        permuted = results.load()
    at = {"group": "0", "lag": 1, "source": 0, "target": 1}
    for name in ("correlation", "regression", "causation"):
        place = at | ({"environment_gradient": "passed"} if name == "causation" else {})
        true, wrong = float(cross[name].sel(place)), float(permuted[name].sel(place))
        assert true > 0.5
        assert abs(wrong) < 0.4
    for name in BY_GROUP:
        of_all = {"group": ALL}
        np.testing.assert_array_equal(cross[name].sel(of_all), permuted[name].sel(of_all))
        true, wrong = (found[name].sel(group="0").values for found in (cross, permuted))
        assert not np.allclose(true, wrong, equal_nan=True), name


def test_members_of_a_behaviour_are_those_that_its_file_names(
    planted_datasets, tmp_path, monkeypatch
):
    """By id, in whatever order the file has them."""
    monkeypatch.chdir(tmp_path)
    dataset = RolloutDataset(planted_datasets.simulated)
    rows = RolloutRows(dataset, dataset.num_episodes)
    HiddenProjection("pca", 3).fit(rows.read_hidden(0, rows.num_rows)).save(tmp_path / "projection")
    rng = np.random.default_rng(0)
    label = rng.permutation(np.arange(rows.num_episodes) % 2)
    order = rng.permutation(rows.num_episodes)
    behaviours = xr.Dataset(
        {"sample_cluster": ("sample", label[order])}, {"sample": rows.episode_ids[order]}
    )
    provenance = collect_provenance({}, 0, {"generated_dataset": dataset.hash})
    write_results(tmp_path / BEHAVIOUR_NAME, behaviours, provenance)
    inputs = CrossInputs(dataset.folder, tmp_path / "projection", behaviour=tmp_path)
    groups = make_cross_plan(inputs, CrossSettings(max_lag=2)).groups
    assert [group.name for group in groups] == [ALL, "0", "1"]
    for group in groups[1:]:
        assert group.members.tolist() == np.flatnonzero(label == int(group.name)).tolist()


def write_jacobians(folder, dataset, projection, num_components=2, num_steps=3):
    """Jacobians of nothing but noise, of all episodes of a dataset."""
    ids = dataset.episodes["episode_id"].to_numpy(np.int64)
    rng = np.random.default_rng(0)
    steps = (len(ids), num_steps, num_components)
    pairs = (len(ids), 2, num_steps, num_components, num_steps, num_components)
    of_pairs = ("target_step", "target", "source_step", "source")
    jacobians = xr.Dataset(
        {
            "sample_id": ("sample", ids),
            "component": (("sample", "target_step", "target"), rng.normal(size=steps)),
            "length": ("sample", np.full(len(ids), num_steps)),
            "jacobian": (("sample", "environment_gradient", *of_pairs), rng.normal(size=pairs)),
        },
        {"environment_gradient": ["passed", "cut"]},
        {"grad_timestep": 0, "projection_data_hash": projection.data_hash},
    )
    provenance = collect_provenance({}, 0, {"generated_dataset": dataset.hash})
    write_results(folder / JACOBIAN_NAME, jacobians, provenance)


def test_episodes_and_components_of_the_jacobians_are_used_as_far_as_both_files_have_them(
    planted_datasets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    dataset = RolloutDataset(planted_datasets.simulated)
    rows = RolloutRows(dataset, dataset.num_episodes)
    projection = HiddenProjection("pca", 3).fit(rows.read_hidden(0, rows.num_rows))
    projection.save(tmp_path / "projection")
    write_jacobians(tmp_path, dataset, projection)
    inputs = CrossInputs(dataset.folder, tmp_path / "projection", jacobians=tmp_path)
    settings = CrossSettings(5, max_lag=1, nulls=NullSettings(10, 10))
    plan = make_cross_plan(inputs, settings)
    assert f"--num_components 3: {tmp_path / JACOBIAN_NAME} has 2" in capsys.readouterr().out
    assert plan.stack.values.shape[2] == len(plan.deviation) == 2
    assert plan.jacobians is not None
    assert plan.jacobians.sample_id.tolist() == rows.episode_ids[:5].tolist()
    path = compute_cross_dynamics(plan, {}, tmp_path, StageReport("cross"))
    consistency = make_consistency_plan(
        ConsistencyInputs(cross=path.parent, jacobians=tmp_path), ConsistencySettings()
    )
    assert len(consistency.jacobian) == len(consistency.unit) == 5
    # Jacobians are in the unit of the file's means, whose components differ in scale.
    assert consistency.cross["component_deviation"].std() > 0
    for variant, name in enumerate(("passed", "cut")):
        means = lag_means(consistency.jacobian[:, variant], consistency.length, [0, 1]).mean(0)
        expected = consistency.cross["causation"].sel(group=ALL, environment_gradient=name)
        np.testing.assert_allclose(means, expected, rtol=1e-4)


def test_real_rollouts_go_without_what_samples_have(planted_datasets, tmp_path, monkeypatch):
    """Behaviours and Jacobians of samples lie in the folders that are looked in by default."""
    monkeypatch.chdir(tmp_path)
    samples, real = (RolloutDataset(getattr(planted_datasets, n)) for n in ("simulated", "real"))
    projection = HiddenProjection("pca", 3).fit(real.read_field("agent_hidden"))
    projection.save(tmp_path / "projection")
    behaviour, jacobians = CrossInputs.behaviour, CrossInputs.jacobians
    assert behaviour is not None
    assert jacobians is not None
    for folder in (behaviour, jacobians):
        folder.mkdir(parents=True)
    write_jacobians(jacobians, samples, projection)
    behaviours = xr.Dataset(
        {"sample_cluster": ("sample", np.arange(samples.num_episodes) % 2)},
        {"sample": samples.episodes["episode_id"].to_numpy()},
    )
    provenance = collect_provenance({}, 0, {"generated_dataset": samples.hash})
    write_results(behaviour / BEHAVIOUR_NAME, behaviours, provenance)
    inputs = CrossInputs(real.folder, tmp_path / "projection")
    settings = CrossSettings(max_lag=2)
    with pytest.raises(UserError, match="--jacobians None goes without"):
        make_cross_plan(inputs, settings)
    with pytest.raises(UserError, match="--behaviour None goes without"):
        make_cross_plan(replace(inputs, jacobians=None), settings)
    plan = make_cross_plan(replace(inputs, behaviour=None, jacobians=None), settings)
    assert [group.name for group in plan.groups] == [ALL]
    assert plan.jacobians is None
    assert len(plan.stack.values) == real.num_episodes
    of_samples = make_cross_plan(replace(inputs, generated_data_dir=samples.folder), settings)
    assert len(of_samples.groups) == 3
    assert of_samples.jacobians is not None


def test_a_behaviour_of_few_episodes_agrees_by_no_test(cross, tmp_path):
    """Its numbers are kept; three source episodes are as few as have no correlation tested."""
    few = cross["num_units"].where(cross["group"] != "1", 3)
    plan = consistency_plan(cross.assign(num_units=few))
    path = analyse_consistency(plan, {}, tmp_path, StageReport("few"))
    with read_results(path) as results:
        at = {"lag": 1, "null": "components"}
        assert results["agreement"].sel(group="1", lag=1).notnull().all()
        assert results["agreement_p"].sel(group="1", **at).isnull().all()
        assert results["agreement_p"].sel(group="0", **at).notnull().all()


def consistency_plan(cross):
    plan = planted_plan()
    assert plan.jacobians is not None
    return ConsistencyPlan(
        cross=cross,
        jacobian=plan.jacobians.jacobian,
        length=plan.jacobians.length,
        unit=plan.jacobians.unit,
        members={group.name: group.members for group in plan.groups},
        settings=ConsistencySettings(
            num_mantel_permutations=99, statements=StatementSettings(num_statements=30)
        ),
    )


def test_the_result_file_keeps_agreement_and_statements(cross, tmp_path):
    report = StageReport("consistency")
    path = analyse_consistency(consistency_plan(cross), {}, tmp_path, report)
    with read_results(path) as results:
        own = results.sel(dynamics="regression", environment_gradient="passed").sel(
            group="0", lag=1, measure="cosine"
        )
        # Samples of the other behaviour have the opposite gradient.
        assert float(own["agreement_p"].sel(null="labels")) < 0.05
        assert float(own["agreement"]) > float(own["agreement_null"].sel(null="labels"))
        assert results["agreement_p"].sel(group=ALL, null="labels").isnull().all()
        assert results.sizes["statement"] == 30
        assert json.loads(results.attrs["input_hashes"])["dataset"] == "d"
    assert (tmp_path / "causal_statements.csv").read_text().count("\n") == 31


def test_agreement_is_that_of_each_variants_own_gradients(cross, tmp_path):
    path = analyse_consistency(consistency_plan(cross), {}, tmp_path, StageReport("own"))
    with read_results(path) as results:
        for variant in ("passed", "cut"):
            for dynamics in ("correlation", "regression"):
                at = {"group": "1", "lag": 2}
                gradients = cross["causation"].sel(environment_gradient=variant, **at).values
                expected = agreement(cross[dynamics].sel(at).values, gradients[None])[0]
                found = results["agreement"].sel(
                    environment_gradient=variant, dynamics=dynamics, **at
                )
                np.testing.assert_allclose(found, expected)
        for null in ("components", "labels"):
            found = results[["agreement_p", "agreement_q"]].sel(null=null)
            expected = false_discovery_q(found["agreement_p"].values)
            np.testing.assert_array_equal(found["agreement_q"], expected)


def test_groups_are_dealt_jacobians_of_the_variant_that_is_compared(cross, tmp_path):
    """Without the environment, the opposite of what there is with it."""
    plan = consistency_plan(cross)
    jacobian = plan.jacobian.copy()
    jacobian[:, 1] = -jacobian[:, 0]
    path = analyse_consistency(
        replace(plan, jacobian=jacobian), {}, tmp_path, StageReport("opposite")
    )
    with read_results(path) as results:
        null = results["agreement_null"].sel(null="labels", measure="cosine", group="0")
        passed, cut = (null.sel(environment_gradient=name) for name in ("passed", "cut"))
        assert np.isfinite(passed.sel(lag=[1, 2])).all()
        np.testing.assert_allclose(cut, -passed, rtol=1e-6)


def test_labels_tell_nothing_where_all_samples_have_the_same_gradients(cross, tmp_path):
    """Whatever samples a group is dealt, its mean at each lag is the same, and agrees as well."""
    plan = consistency_plan(cross)
    alike = replace(plan, jacobian=plan.jacobian[:1].repeat(NUM, axis=0))
    path = analyse_consistency(alike, {}, tmp_path, StageReport("alike"))
    with read_results(path) as results:
        own = results.sel(environment_gradient="passed", group="0", lag=1, measure="cosine")
        assert (own["agreement"] > 0.5).all()
        null = own["agreement_null"].sel(null="labels")
        np.testing.assert_allclose(null, own["agreement"], atol=0.01)


@pytest.mark.medium
def test_figures_are_drawn_from_the_files_alone(cross, tmp_path):
    report = StageReport("figures")
    compute_cross_dynamics(planted_plan(), {}, tmp_path, report)
    analyse_consistency(consistency_plan(cross), {}, tmp_path, report)
    tables = plot_consistency(tmp_path, tmp_path, ConsistencyDrawing(5, dpi=60), report)
    assert all(picture.stat().st_size > 1000 for picture in tables)
    drawing = CrossDrawing(drawn_lags=(0, 1), max_drawn_groups=2, seriate=True, dpi=60)
    pictures = plot_cross_dynamics(tmp_path, tmp_path / "figures", drawing, report)
    assert len(pictures) == 4
    assert (tmp_path / "figures" / "contact_sheet.png").stat().st_size > 1000
    assert all(picture.stat().st_size > 1000 for picture in pictures)


def test_behaviours_that_are_left_out_are_told_in_lines_as_wide_as_the_figure(
    cross, tmp_path, monkeypatch
):
    drawn = {}
    monkeypatch.setattr(cross_figures, "read_results", lambda _: cross)
    monkeypatch.setattr(cross_figures, "save_figures", lambda found, *_, **__: drawn.update(found))
    drawing = CrossDrawing(drawn_lags=(1,), max_drawn_groups=1)
    plot_cross_dynamics(tmp_path, tmp_path, drawing, StageReport("figures"))
    told = drawn["behaviour_all"].get_supxlabel()
    expected = "no figure for behaviour 0, 1, of fewer episodes (--max_drawn_groups 1)"
    assert told.replace("\n", " ") == expected
    assert max(map(len, told.splitlines())) < len(expected)


def test_titles_of_matrices_tell_the_counts_of_their_own_group(cross):
    numbers = {
        "num_episodes": (60, 31, 29),
        "num_units": (50, 26, 24),
        "num_jacobians": (40, 21, 19),
        "num_jacobian_units": (30, 16, 14),
    }
    counted = cross.assign({name: ("group", list(found)) for name, found in numbers.items()})
    titles = {
        group: (
            f"{who} ({episodes} episodes from {units} independent units; "
            f"Jacobians of {jacobians} episodes from {jacobian_units} units)"
        )
        for group, who, episodes, units, jacobians, jacobian_units in zip(
            (ALL, "0", "1"),
            ("all episodes", "behaviour 0", "behaviour 1"),
            *numbers.values(),
            strict=True,
        )
    }
    for group, title in titles.items():
        told = draw_group(counted, group, [1], False).get_suptitle().replace("\n", " ")
        assert told.startswith(f"{title} ring:")
        assert "diagonal" not in told
    figure = draw_group(cross, ALL, [0, 1], False)
    told = figure.get_suptitle().replace("\n", " ")
    assert "at lag 0 above the diagonal only" in told
    without = cross.drop_vars("causation")
    assert "Jacobian" not in draw_group(without, "1", [1], False).get_suptitle()


def test_the_figure_of_extremes_tells_how_many_of_how_many(cross):
    """A tenth of 60 samples."""
    assert "at lag 1 of the 6 most extreme of 60 samples" in draw_extremes(cross).get_suptitle()


def test_a_file_without_causation_is_refused(cross, tmp_path):
    plan = planted_plan()
    compute_cross_dynamics(replace(plan, jacobians=None), {}, tmp_path, StageReport("cross"))
    with pytest.raises(UserError, match="has no cross-causation"):
        make_consistency_plan(ConsistencyInputs(cross=tmp_path), ConsistencySettings())


def test_real_rollouts_are_correlated_as_simulated_ones_are(
    planted_datasets, simulated_chain, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    rows = RolloutRows(RolloutDataset(planted_datasets.real), 30)
    hidden = rows.read_hidden(0, rows.num_rows)
    HiddenProjection("pca", 3).fit(hidden).save(tmp_path / "projection")
    inputs = CrossInputs(planted_datasets.real, tmp_path / "projection")
    plan = make_cross_plan(inputs, CrossSettings(max_lag=100))
    printed = capsys.readouterr().out
    assert "--max_lag 100: the longest episode allows" in printed
    assert "--num_components 16: the projection has 3" in printed
    assert [group.name for group in plan.groups] == [ALL]
    assert plan.jacobians is None
    assert plan.stack.length.tolist() == planted_datasets.lengths.tolist()
    clipped = make_cross_plan(inputs, CrossSettings(max_lag=1, clip=1.5))
    assert np.abs(clipped.stack.values).max() == 1.5 < np.abs(plan.stack.values).max()
    np.testing.assert_array_equal(clipped.deviation, plan.deviation)
    with pytest.raises(UserError, match="jacobian_analysis_precompute"):
        make_cross_plan(replace(inputs, jacobians=tmp_path / "nowhere"), CrossSettings())
    with pytest.raises(UserError, match="--extrema_threshold 0"):
        make_cross_plan(inputs, CrossSettings(extrema_threshold=0.0))
    with pytest.raises(UserError, match="--num_permutations 0"):
        make_cross_plan(inputs, CrossSettings(nulls=NullSettings(0)))
