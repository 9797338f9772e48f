"""Probes find planted codes, and find nothing where nothing is planted."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from analysis.probe_scores import LevelScorer
from analysis.probe_tables import (
    LabelledRows,
    ProbeSettings,
    fit_narrowing,
    fit_probes,
    judge_probes,
    leave_out_rare,
    read_simulated,
)
from analysis.probe_targets import ProbeTargets, probe_targets
from analysis.probes import (
    PerceptronSettings,
    fit_linear,
    level_folds,
    mean_predictions,
    perceptron_predictions,
    shuffle_levels,
)
from analysis.ridge import fit_ridge
from environments.game_steps import Variable

NUM_LEVELS, ROWS_PER_LEVEL, NUM_FEATURES = 40, 25, 8
LEVEL = np.repeat(np.arange(NUM_LEVELS) * 7 + 3, ROWS_PER_LEVEL)
SETTINGS = ProbeSettings(
    num_folds=4,
    num_shuffles=10,
    num_resamples=200,
    perceptron=PerceptronSettings(mlp_units=8, mlp_epochs=3),
)


def make_targets(*columns, binary=()):
    names = tuple(f"v{i}" for i in range(len(columns)))
    is_binary = np.array([i in binary for i in range(len(columns))])
    return ProbeTargets(names, ("",) * len(names), np.stack(columns, axis=1), is_binary)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(len(LEVEL), NUM_FEATURES)).astype(np.float32)


def linear_scores(features, targets, level=LEVEL, num_folds=4):
    fold = level_folds(level, num_folds, seed=0)
    prediction = fit_linear(features, targets, fold).predict(features, fold)
    return LevelScorer(targets.values, level, 200, 0).score(prediction)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_linear_code_is_found_with_the_r2_that_its_noise_leaves(features, share):
    rng = np.random.default_rng(1)
    signal = features @ rng.normal(size=NUM_FEATURES)
    noise = rng.normal(size=len(signal)) * np.sqrt(signal.var() * (1 - share) / share)
    score = linear_scores(features, make_targets(5.0 + signal + noise))
    assert score.mean[0] == pytest.approx(share, abs=0.05)
    assert score.interval[0, 0] < share < score.interval[1, 0]


def test_a_yes_or_no_code_is_found_as_sure_as_its_probabilities_are(features):
    rng = np.random.default_rng(2)
    probability = 1 / (1 + np.exp(-3 * features[:, 0]))
    answer = (rng.random(len(probability)) < probability).astype(float)
    score = linear_scores(features, make_targets(answer, binary=[0]))
    best = 1 - np.mean((answer - probability) ** 2) / answer.var()
    assert score.mean[0] == pytest.approx(best, abs=0.02)


def test_levels_are_never_divided(features):
    fold = level_folds(LEVEL, 4, seed=0)
    assert sorted(np.unique(fold)) == [0, 1, 2, 3]
    assert all(len(np.unique(fold[level == LEVEL])) == 1 for level in np.unique(LEVEL))


def test_what_identifies_the_level_does_not_help():
    """Fitted on rows of the same levels, one-hot levels would tell a level's own value wholly."""
    rng = np.random.default_rng(3)
    of_level = rng.normal(size=NUM_LEVELS)
    identity = np.eye(NUM_LEVELS, dtype=np.float32)[np.repeat(np.arange(NUM_LEVELS), 25)]
    target = make_targets(of_level.repeat(ROWS_PER_LEVEL))
    assert linear_scores(identity, target).mean[0] < 0.05
    by_row = level_folds(np.arange(len(LEVEL)), 4, seed=0)
    prediction = fit_linear(identity, target, by_row).predict(identity, by_row)
    assert r2_score(target.values, prediction) > 0.95


def test_other_levels_do_not_reach_a_fold(features):
    """Whatever the held-out levels hold, the probes that predict them stay the same."""
    fold, target = level_folds(LEVEL, 4, seed=0), features[:, :1].astype(float)
    disturbed, moved = target.copy(), features.copy()
    disturbed[fold == 2] = 100.0
    moved[fold == 2] *= -5
    first, second = fit_ridge(features, target, fold), fit_ridge(moved, disturbed, fold)
    np.testing.assert_allclose(first.weights[2], second.weights[2], rtol=1e-6)
    np.testing.assert_allclose(first.bias[2], second.bias[2], atol=1e-6)
    assert not np.allclose(first.weights[1], second.weights[1])


def test_ridge_equals_the_librarys_with_the_penalty_that_a_slow_search_finds(features):
    rng = np.random.default_rng(4)
    scales = np.array([1, 3, 0.1, 1, 10, 1, 1, 1])
    x = features * scales + 4
    y = (features[:, :3].sum(axis=1) + 3 * rng.normal(size=len(x)))[:, None]
    y[::7] = np.nan
    penalties, fold = (1e-3, 1e-1, 1.0, 10.0), level_folds(LEVEL, 4, seed=1)
    probes = fit_ridge(x, y, fold, penalties)
    known = np.isfinite(y[:, 0])

    def library(rows, penalty):
        scale = x[rows].std(axis=0)
        ridge = Ridge(penalty * rows.sum()).fit(x[rows] / scale, y[rows, 0])
        return ridge.coef_ / scale, ridge.intercept_

    for held_out in range(4):
        errors = []
        for penalty in penalties:
            error = 0.0
            for inner in set(range(4)) - {held_out}:
                weights, bias = library(known & ~np.isin(fold, [held_out, inner]), penalty)
                rows = known & (fold == inner)
                error += np.sum((y[rows, 0] - x[rows] @ weights - bias) ** 2)
            errors.append(error)
        best = penalties[int(np.argmin(errors))]
        weights, bias = library(known & (fold != held_out), best)
        assert probes.penalty[held_out, 0] == best
        np.testing.assert_allclose(probes.weights[held_out, :, 0], weights, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(probes.bias[held_out, 0], bias, rtol=1e-5)


def test_shuffled_levels_leave_nothing_to_find_and_keep_each_levels_values(features):
    target = features[:, :1] + 0.3 * np.random.default_rng(5).normal(size=(len(LEVEL), 1))
    target[LEVEL[0] == LEVEL] = np.nan
    shuffled = shuffle_levels(target, LEVEL, np.random.default_rng(0))
    np.testing.assert_array_equal(np.isnan(shuffled), np.isnan(target))
    levels = np.unique(LEVEL)[1:]
    blocks = {tuple(sorted(target[level == LEVEL, 0])) for level in levels}
    assert {tuple(sorted(shuffled[level == LEVEL, 0])) for level in levels} == blocks
    neighbours = {(a, b) for a, b in zip(target[:-1, 0], target[1:, 0], strict=True)}
    kept = [pair in neighbours for pair in zip(shuffled[:-1, 0], shuffled[1:, 0], strict=True)]
    assert np.mean(kept) > 0.85
    assert linear_scores(features, make_targets(target[:, 0])).mean[0] > 0.8
    assert linear_scores(features, make_targets(shuffled[:, 0])).mean[0] < 0.02


def test_time_does_not_tell_shuffled_values_of_episodes_of_one_length():
    step = np.tile(np.arange(ROWS_PER_LEVEL), NUM_LEVELS)[:, None].astype(np.float32)
    shuffled = shuffle_levels(step.astype(float), LEVEL, np.random.default_rng(0))
    assert linear_scores(step, make_targets(step[:, 0].astype(float))).mean[0] > 0.999
    assert linear_scores(step, make_targets(shuffled[:, 0])).mean[0] < 0.03


def test_a_perceptron_finds_what_is_not_linear_and_nothing_in_noise(features):
    bent = np.abs(features[:, 0]) * 2
    answer = (features[:, 1] * features[:, 2] > 0).astype(float)
    noise = np.random.default_rng(6).normal(size=len(LEVEL))
    targets = make_targets(bent, answer, noise, binary=[1])
    fold = level_folds(LEVEL, 4, seed=0)
    settings = PerceptronSettings(mlp_units=32, mlp_epochs=25, mlp_learning_rate=0.02)
    found = LevelScorer(targets.values, LEVEL, 20, 0).score(
        perceptron_predictions(features, targets, fold, settings, seed=0)
    )
    linear = linear_scores(features, targets)
    assert (linear.mean < 0.1).all()
    assert (found.mean[:2] > 0.4).all()
    assert found.mean[2] < 0.05


def test_a_mean_that_knows_other_levels_only_scores_no_better_than_nothing(features):
    fold = level_folds(LEVEL, 4, seed=0)
    targets = make_targets(features[:, 0].astype(float))
    prediction = mean_predictions(targets, fold)
    assert np.ptp(prediction[fold == 1, 0]) == 0
    assert prediction[fold == 1, 0][0] == pytest.approx(targets.values[fold != 1].mean())
    assert -0.01 < LevelScorer(targets.values, LEVEL, 20, 0).score(prediction).mean[0] <= 0


def test_r2_equals_the_librarys_and_its_interval_counts_levels_not_rows():
    rng = np.random.default_rng(7)
    truth = rng.normal(size=NUM_LEVELS).repeat(ROWS_PER_LEVEL)[:, None] + 100
    prediction = truth + 0.5 * rng.normal(size=NUM_LEVELS).repeat(ROWS_PER_LEVEL)[:, None]
    by_level = LevelScorer(truth, LEVEL, 2000, 0).score(prediction)
    by_row = LevelScorer(truth, np.arange(len(truth)), 2000, 0).score(prediction)
    assert by_level.mean[0] == pytest.approx(r2_score(truth, prediction))
    widths = np.diff([by_level.interval[:, 0], by_row.interval[:, 0]], axis=1)[:, 0]
    # Rows that repeat their level count for one, so the interval is √25 times as wide.
    assert widths[0] / widths[1] == pytest.approx(5, rel=0.4)


def test_a_table_has_every_control(features):
    rng = np.random.default_rng(8)
    found, absent = features[:, 0] + rng.normal(size=len(LEVEL)), rng.normal(size=len(LEVEL))
    rare = np.where(np.isin(LEVEL, np.unique(LEVEL)[:5]), 1.0, np.nan)
    targets = leave_out_rare(make_targets(found, absent, rare), LEVEL, 10)
    rows = LabelledRows({"code": features, "noise": features[:, 4:] * 2}, targets, LEVEL)
    table = judge_probes(rows, fit_probes(rows, SETTINGS, 0), SETTINGS, 0, ("noise", "absent"))
    assert table.representations == ("code", "noise")
    assert table.baselines == ("noise",)
    assert table.linear.mean[0, 0] == pytest.approx(0.5, abs=0.07)
    assert table.linear.mean[1, 0] < 0.05
    np.testing.assert_allclose(
        table.difference.mean[0, 0], table.linear.mean[0] - table.linear.mean[1]
    )
    assert table.difference.interval[0, 0, 0, 0] > 0.3
    assert (table.shuffled[:, :2] < 0.02).all()
    assert (table.shuffled_maximum >= table.shuffled)[:, :2].all()
    assert np.isnan(table.linear.mean[:, 2]).all()
    assert table.num_levels.tolist() == [NUM_LEVELS, NUM_LEVELS, 0]


def test_probes_of_real_decisions_read_simulated_ones_of_other_levels(features):
    """The code is kept at step 0 and lost at step 1."""
    target = make_targets(features[:, 0] * 2 + 1)
    fitted = fit_probes(LabelledRows({"code": features}, target, LEVEL), SETTINGS, 0)
    step = np.arange(len(LEVEL)) % 2
    lost = np.random.default_rng(9).permuted(features, axis=0)
    simulated = np.where(step[:, None] == 0, features, lost)
    real = LabelledRows({"code": features}, target, LEVEL)
    table = read_simulated(
        fitted, LEVEL, real, LabelledRows({"code": simulated}, target, LEVEL), step, SETTINGS, 0
    )
    assert table.score.mean.shape == (2, 1, 2, 1)
    assert (table.score.mean[0] > 0.99).all()
    assert table.score.mean[1, 0, 0, 0] > 0.99
    assert table.score.mean[1, 0, 1, 0] < -0.5
    assert table.num_rows.sum() == len(LEVEL)


def test_no_probe_reads_simulated_decisions_of_levels_that_it_was_fitted_on():
    """Values of the level itself, and features that tell the level: what is read is memory."""
    rng = np.random.default_rng(0)
    place = rng.normal(size=(NUM_LEVELS, 2 * NUM_LEVELS)).astype(np.float32)
    place = place.repeat(ROWS_PER_LEVEL, axis=0)
    targets = make_targets(rng.normal(size=NUM_LEVELS).repeat(ROWS_PER_LEVEL))
    rows = LabelledRows({"hidden": place}, targets, LEVEL)
    fitted = fit_probes(rows, SETTINGS, 0)
    # Rows in another order have other folds only if these are not those of their levels.
    order = rng.permutation(len(LEVEL))
    asked = LabelledRows(
        {"hidden": place[order]}, make_targets(targets.values[order, 0]), LEVEL[order]
    )
    step = np.zeros(len(LEVEL), np.int64)
    table = read_simulated(fitted, LEVEL, asked, asked, step, SETTINGS, 0)
    assert table.score.mean.max() < 0.2
    seen = fitted["hidden"].predict(place, (level_folds(LEVEL, 4, 0) + 1) % 4)
    assert r2_score(targets.values[:, 0], seen[:, 0]) > 0.4


def test_an_answer_that_few_levels_give_is_left_out():
    """A yes-or-no variable needs enough levels of either answer, a quantity enough of any."""
    number = np.searchsorted(np.unique(LEVEL), LEVEL)
    rarely, often = (number < count for count in (4, 5))
    seldom_known = np.where(number < 4, LEVEL, np.nan)
    targets = make_targets(rarely, often, ~rarely, LEVEL, seldom_known, binary=(0, 1, 2))
    kept = leave_out_rare(targets, LEVEL, min_levels=5)
    known = np.isfinite(kept.values).any(axis=0)
    assert known.tolist() == [False, True, False, True, False]
    np.testing.assert_array_equal(kept.values[:, known], targets.values[:, known])


def test_wide_features_become_their_principal_components(features):
    assert fit_narrowing(features, 8)(features) is features
    narrow = fit_narrowing(features, 3)(features)
    assert narrow.shape == (len(features), 3)
    np.testing.assert_allclose(np.cov(narrow.T), np.diag(np.diag(np.cov(narrow.T))), atol=1e-5)


def test_things_out_of_sight_are_left_out():
    table = {
        "agent_x": Variable("cells", ""),
        "saw_dx": Variable("cells", ""),
        "saw_dy": Variable("cells", ""),
        "saw_vx": Variable("cells/step", ""),
        "wall_dx": Variable("cells", ""),
        "wall_height": Variable("cells", ""),
    }
    nan = np.nan
    variables = np.array(
        [[1, 2, 2, 5, 9, 3], [2, 7, 0, 5, 1, 4], [3, 0, -7, 5, nan, nan], [4, nan, nan, nan, 6, 2]]
    )
    targets = probe_targets(variables, table, 6.5)
    assert targets.names == (*table, "saw_in_sight", "wall_in_sight")
    assert targets.is_binary.tolist() == [False] * 6 + [True, True]
    expected = [
        [1, 2, 2, 5, nan, nan, 1, 0],
        [2, nan, nan, nan, 1, 4, 0, 1],
        [3, nan, nan, nan, nan, nan, 0, 0],
        [4, nan, nan, nan, 6, 2, 0, 1],
    ]
    np.testing.assert_array_equal(targets.values, expected)
