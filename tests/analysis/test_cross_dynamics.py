"""Cross-correlation and cross-causation on worlds whose causes are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest, ttest_1samp

from analysis.cross_causation import (
    extreme_samples,
    seriate,
    summarise_effects,
)
from analysis.cross_correlation import (
    NULLS,
    NullSettings,
    clip_coordinates,
    correlate,
    deal_membership,
    group_series,
    lagged_correlation,
    permute_pairing,
    pooled_p_values,
    regress,
    shift_in_time,
)
from analysis.episode_stacks import CoordinateStack
from analysis.false_discovery import false_discovery_q, lagged_families
from analysis.jacobian_means import lag_means, step_means

NUM, STEPS, SIZE, LAG = 80, 12, 4, 2
SETTINGS = NullSettings(num_permutations=60, num_resamples=100, seed=0)


def stack_of(values, length=None, unit=None):
    values = np.asarray(values, np.float32)
    if length is None:
        length = np.full(len(values), values.shape[1])
    values = np.where((np.arange(values.shape[1]) < length[:, None])[:, :, None], values, 0)
    ids = np.arange(len(values))
    return CoordinateStack(values.astype(np.float32), length, ids, ids if unit is None else unit)


def planted(seed=0, strength=1.0):
    """Component 0 drives component 1 after LAG steps; all else is independent noise."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(NUM, STEPS, SIZE))
    values[:, LAG:, 1] += strength * values[:, :-LAG, 0]
    return values


def slow_correlation(values, length, lag):
    """One pair of steps after the other."""
    size = values.shape[2]
    mean = np.zeros(values.shape[1:])
    for t in range(values.shape[1]):
        if (length > t).any():
            mean[t] = values[length > t, t].mean(axis=0)
    x, y = [], []
    for n in range(len(values)):
        for t in range(length[n] - lag):
            x.append(values[n, t] - mean[t])
            y.append(values[n, t + lag] - mean[t + lag])
    x, y = np.array(x), np.array(y)
    return np.array(
        [
            [
                (x[:, i] @ y[:, j]) / np.sqrt((x[:, i] @ x[:, i]) * (y[:, j] @ y[:, j]))
                for j in range(size)
            ]
            for i in range(size)
        ]
    )


@pytest.mark.parametrize("lag", [0, 1, 5])
def test_correlation_equals_the_slow_reference_for_episodes_of_any_length(lag):
    rng = np.random.default_rng(1)
    length = rng.integers(1, STEPS + 1, NUM)
    stack = stack_of(planted(), length)
    series = group_series(stack, np.arange(NUM))
    found = correlate(series, series, lag)
    expected = slow_correlation(stack.values.astype(float), length, lag)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    if lag == 0:
        np.testing.assert_allclose(np.diag(found), 1.0)


def test_regression_finds_the_transition_where_correlation_does_not():
    """x(t + 1) = A x(t) + noise, whose components are correlated at every lag."""
    transition = np.array([[0.9, 0.0], [0.5, 0.2]])
    rng = np.random.default_rng(0)
    values = np.zeros((3000, 30, 2))
    for t in range(1, 30):
        values[:, t] = values[:, t - 1] @ transition.T + rng.normal(size=(3000, 2))
    series = group_series(stack_of(values[:, 15:]), np.arange(3000))
    for lag in (1, 3):
        expected = np.linalg.matrix_power(transition, lag).T
        np.testing.assert_allclose(regress(series, lag, 1e-6), expected, atol=0.02)
    # Component 1 does nothing to 0, yet they are correlated.
    assert correlate(series, series, 1)[1, 0] > 0.4


def test_a_course_that_all_episodes_share_is_no_correlation():
    shared = np.cumsum(np.ones((STEPS, SIZE)), axis=0) * 5
    values = planted(strength=0.0)
    plain, with_course = (
        correlate(s, s, 1)
        for s in (group_series(stack_of(v), np.arange(NUM)) for v in (values, values + shared))
    )
    np.testing.assert_allclose(plain, with_course, atol=1e-5)


def test_correlation_does_not_depend_on_how_many_steps_there_are():
    """r = a / sqrt(1 + a²) for x_1(t + LAG) = a x_0(t) + noise, whatever the number of pairs."""
    rng = np.random.default_rng(2)
    for num_steps in (6, 24):
        values = rng.normal(size=(4000, num_steps, 2))
        values[:, LAG:, 1] += values[:, :-LAG, 0]
        series = group_series(stack_of(values), np.arange(4000))
        assert correlate(series, series, LAG)[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.02)


@pytest.mark.parametrize("num_steps", [6, 24])
def test_stationary_series_have_one_correlation_per_lag_whatever_their_number_of_steps(num_steps):
    """x(t + 1) = φ x(t) + noise has r = φ^k at lag k, from T − k pairs of any T."""
    phi, num = 0.8, 4000
    rng = np.random.default_rng(3)
    values = rng.normal(size=(num, num_steps, 1))
    for t in range(1, num_steps):
        values[:, t] = phi * values[:, t - 1] + np.sqrt(1 - phi**2) * values[:, t]
    series = group_series(stack_of(values), np.arange(num))
    found = [correlate(series, series, lag)[0, 0] for lag in range(num_steps)]
    np.testing.assert_allclose(found, phi ** np.arange(num_steps), atol=0.06)
    np.testing.assert_allclose(found[:5], phi ** np.arange(5), atol=0.03)


def test_correlation_is_one_on_the_diagonal_of_lag_zero_and_never_beyond_one():
    """Random walks of heavy-tailed steps, of any length, with a copy and a mirror image."""
    rng = np.random.default_rng(4)
    walk = rng.standard_t(1.5, size=(NUM, STEPS, SIZE)).cumsum(axis=1)
    values = np.concatenate([walk, walk[:, :, :1], -walk[:, :, :1]], axis=2)
    length = np.concatenate([np.full(20, STEPS), rng.integers(1, STEPS + 1, NUM - 20)])
    series = group_series(stack_of(values, length), np.arange(NUM))
    for lag in range(STEPS):
        found = correlate(series, series, lag)
        assert np.nanmax(np.abs(found)) <= 1 + 1e-9
    at_zero = correlate(series, series, 0)
    np.testing.assert_allclose(np.diag(at_zero), 1.0)
    assert at_zero[0, SIZE] == pytest.approx(1.0)
    assert at_zero[0, SIZE + 1] == pytest.approx(-1.0)


def test_a_planted_lagged_cause_is_recovered_and_nothing_else():
    # Of few components, only many permutations make a p-value that survives the adjustment.
    many = replace(SETTINGS, num_permutations=600)
    found = lagged_correlation(stack_of(planted(seed=1)), np.arange(NUM), range(5), many)
    families = lagged_families(range(5), SIZE)
    for null in ("pairing", "time_shift"):
        q = false_discovery_q(found.p_values[null], families)
        assert np.argwhere(q < 0.01).tolist() == [[LAG, 0, 1]]
    low, high = found.interval[:, LAG, 0, 1]
    assert low < found.correlation[LAG, 0, 1] < high
    assert high - low < 0.2
    assert found.num_pairs.tolist() == [NUM * (STEPS - lag) for lag in range(5)]


def test_a_component_that_does_not_vary_has_neither_a_correlation_nor_an_interval():
    values = planted()
    values[:, :, 1] = 0.0
    found = lagged_correlation(stack_of(values), np.arange(NUM), [0, 1], SETTINGS)
    is_known = ~np.isnan(found.correlation)
    assert (is_known == (np.arange(SIZE) != 1)[:, None] & (np.arange(SIZE) != 1)).all()
    assert (~np.isnan(found.interval) == is_known).all()


def test_what_only_tells_episodes_apart_survives_pairing_but_not_the_time_shift():
    rng = np.random.default_rng(3)
    offset = rng.normal(size=(NUM, 1, 1)) * 2
    values = rng.normal(size=(NUM, STEPS, SIZE)) + offset
    found = lagged_correlation(stack_of(values), np.arange(NUM), [1, 2], SETTINGS)
    off_diagonal = ~np.eye(SIZE, dtype=bool)
    assert (found.p_values["pairing"][:, off_diagonal] < 0.01).all()
    assert np.median(found.p_values["time_shift"][:, off_diagonal]) > 0.1


def test_p_values_are_uniform_where_nothing_is_related():
    p_values = []
    for seed in range(6):
        stack = stack_of(planted(seed, strength=0.0))
        found = lagged_correlation(stack, np.arange(NUM), [1, 2], SETTINGS)
        p_values.append(found.p_values["pairing"].ravel())
    assert kstest(np.concatenate(p_values), "uniform").pvalue > 1e-3


def test_p_values_of_samples_that_share_their_source_do_not_pretend_to_be_certain():
    """Components are unrelated, but up to eight samples of a unit are much alike."""
    null, naive = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        unit = np.repeat(np.arange(24), rng.integers(1, 9, 24))
        shared = rng.normal(size=(24, STEPS, SIZE))[unit]
        stack = stack_of(shared + 0.3 * rng.normal(size=shared.shape), unit=unit)
        everyone = np.arange(len(unit))
        for found, units in ((null, unit), (naive, everyone)):
            given = replace(stack, unit=units)
            p_values = lagged_correlation(given, everyone, [1, 2], SETTINGS).p_values["pairing"]
            found.append(p_values.ravel())
    assert np.mean(np.concatenate(null) < 0.05) < 0.09
    assert np.mean(np.concatenate(naive) < 0.05) > 0.3


def test_a_group_that_differs_is_told_from_one_with_shuffled_labels():
    values = planted(strength=0.0)
    values[:30, LAG:, 1] += 1.5 * values[:30, :-LAG, 0]
    everyone = np.arange(NUM)
    stack = stack_of(values)
    true = lagged_correlation(stack, everyone[:30], [LAG], SETTINGS, everyone)
    shuffled = np.random.default_rng(5).permutation(NUM)[:30]
    wrong = lagged_correlation(stack, shuffled, [LAG], SETTINGS, everyone)
    assert true.p_values["labels"][0, 0, 1] < 0.01
    assert wrong.p_values["labels"][0, 0, 1] > 0.05


def test_few_units_have_no_p_values():
    few = lagged_correlation(stack_of(planted()), np.arange(3), [1], SETTINGS)
    many_of_few = lagged_correlation(
        stack_of(planted(), unit=np.arange(NUM) % 3), np.arange(NUM), [1], SETTINGS
    )
    for found in (few, many_of_few):
        assert np.isnan(found.p_values["pairing"]).all()
        assert np.isfinite(found.correlation).all()


def test_repeated_episodes_of_one_unit_make_nothing_more_certain():
    """Eight copies of every episode tell what one does: the same intervals and p-values."""
    values, everyone = planted(strength=0.2), np.arange(NUM)
    unit = np.repeat(everyone, 8)
    copies = stack_of(values[unit], unit=unit)
    once = lagged_correlation(stack_of(values), everyone[:30], [0, LAG], SETTINGS, everyone)
    repeated = lagged_correlation(
        copies, np.flatnonzero(unit < 30), [0, LAG], SETTINGS, np.arange(len(unit))
    )
    np.testing.assert_allclose(repeated.correlation, once.correlation, rtol=1e-5)
    np.testing.assert_allclose(repeated.interval, once.interval, rtol=1e-4, atol=1e-5)
    assert repeated.p_values.keys() == once.p_values.keys() == NULLS.keys()
    for null, p_values in once.p_values.items():
        np.testing.assert_allclose(repeated.p_values[null], p_values, atol=0.01)
    naive = lagged_correlation(
        stack_of(values[unit]), np.flatnonzero(unit < 30), [0, LAG], SETTINGS
    )
    widths = [np.diff(one.interval, axis=0)[0, 1, 0, 1] for one in (naive, once)]
    assert widths[0] < 0.5 * widths[1]


def test_membership_is_dealt_by_whole_units_and_never_to_none():
    unit = np.array([0, 0, 0, 1, 1, 2, 3])
    is_member = np.array([1, 1, 1, 0, 0, 0, 0], bool)
    rng = np.random.default_rng(0)
    dealt = np.stack([deal_membership(is_member, unit, rng) for _ in range(60)])
    assert (dealt.sum(axis=1) >= 2).all()
    assert (dealt[:, 0] == dealt[:, 1]).all()
    assert (dealt[:, 3] == dealt[:, 4]).all()
    assert {tuple(row) for row in dealt.tolist()} == {tuple(unit == number) for number in (0, 1)}


def test_nulls_move_whole_episodes_and_shift_within_their_length():
    length = np.arange(1, STEPS + 1)
    values = np.arange(STEPS * STEPS).reshape(STEPS, STEPS, 1) + 1.0
    series = group_series(stack_of(values, length), np.arange(STEPS))
    rng = np.random.default_rng(0)
    shifted = shift_in_time(series, rng)
    for n in range(STEPS):
        before, after = series.values[n, : length[n], 0], shifted.values[n, : length[n], 0]
        assert sorted(before) == sorted(after)
        assert not shifted.values[n, length[n] :].any()
        if length[n] > 2:
            assert not np.array_equal(before, after)
    paired = permute_pairing(series, rng)
    rows = {tuple(row) for row in series.values[:, :, 0]}
    assert {tuple(row) for row in paired.values[:, :, 0]} == rows


def test_outward_p_values_do_not_count_what_is_weaker_than_the_null():
    rng = np.random.default_rng(0)
    draws = 0.5 + 0.01 * rng.normal(size=(100, 1, 2, 2))
    observed = np.array([[[0.9, 0.1], [0.5, -0.9]]])
    outward, both = (pooled_p_values(observed, draws, o)[0] for o in (True, False))
    assert outward[0, 0] < 0.01
    assert outward[0, 1] == 1.0
    assert both[0, 1] < 0.01
    assert outward[1, 1] < 0.01


def test_clipping_standardises_and_bounds():
    values = planted()
    values[0, 0, 0] = 1000.0
    clipped = clip_coordinates(stack_of(values, np.full(NUM, STEPS - 1)), 3.0)
    assert clipped.values.max() == 3.0
    assert not clipped.values[:, -1].any()


def linear_jacobians(num, num_steps, matrix, noise=0.0, seed=0):
    """J[t + k, :, t, :] = matrix^k for every sample, and noise per sample."""
    size = len(matrix)
    rng = np.random.default_rng(seed)
    jacobian = np.zeros((num, num_steps, size, num_steps, size))
    for target in range(num_steps):
        for source in range(target + 1):
            power = np.linalg.matrix_power(matrix, target - source)
            jacobian[:, target, :, source] = power + noise * rng.normal(size=(num, size, size))
    return jacobian


def test_lag_means_are_powers_of_the_transition_with_source_first():
    matrix = np.array([[0.5, 0.0], [0.8, 0.2]])
    jacobian = linear_jacobians(5, 6, matrix)
    # What lies after the end of an episode is not looked at.
    length = np.array([6, 6, 3, 1, 6])
    jacobian[2, 3:] = 1e9
    found = lag_means(jacobian, length, [0, 1, 3, 9])
    np.testing.assert_allclose(found[0, 1], matrix.T)
    np.testing.assert_allclose(found[2, 1], matrix.T)
    np.testing.assert_allclose(found[4, 2], np.linalg.matrix_power(matrix, 3).T)
    assert np.isnan(found[3, 1:]).all()
    assert np.isnan(found[2, 2]).all()
    assert np.isnan(found[:, 3]).all()
    by_step = step_means(jacobian, length)
    np.testing.assert_allclose(by_step[1, 4], np.linalg.matrix_power(matrix, 3).T)


def test_repeated_samples_of_one_unit_leave_students_interval_as_it_was():
    values = np.random.default_rng(0).normal(0.4, 1.0, size=(20, 3))
    values[4:, 2] = np.nan
    unit = np.repeat(np.arange(20), 8)
    once, repeated = summarise_effects(values, np.arange(20)), summarise_effects(values[unit], unit)
    for name in ("mean", "interval", "p_value", "positive_share"):
        np.testing.assert_allclose(getattr(repeated, name), getattr(once, name))
    naive = summarise_effects(values[unit], np.arange(len(unit)))
    assert (np.diff(naive.interval, axis=0) < 0.5 * np.diff(once.interval, axis=0)).all()


def test_intervals_of_correlated_samples_hold_what_they_promise():
    """Samples of a unit share half of their variance; of 95% intervals of zero 95% hold zero."""
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    shared = rng.normal(size=(40, 1000))[unit]
    values = shared + rng.normal(size=(len(unit), 1000))

    def coverage(unit):
        low, high = summarise_effects(values, unit).interval
        return np.mean((low < 0) & (high > 0))

    assert 0.91 < coverage(unit) < 0.97
    assert coverage(np.arange(len(unit))) < 0.85


def test_effects_equal_students_test_and_skip_missing_samples():
    values = np.random.default_rng(0).normal(0.4, 1.0, size=(20, 3))
    values[4:, 2] = np.nan
    found = summarise_effects(values, np.arange(20))
    for column in range(3):
        known = values[np.isfinite(values[:, column]), column]
        expected = ttest_1samp(known, 0.0)
        interval = expected.confidence_interval()
        assert found.mean[column] == pytest.approx(known.mean())
        assert found.p_value[column] == pytest.approx(expected[1])
        np.testing.assert_allclose(found.interval[:, column], [interval.low, interval.high])
        assert found.positive_share[column] == pytest.approx((known > 0).mean())
    assert np.isnan(summarise_effects(np.ones((5, 1)), np.arange(5)).p_value).all()
    assert np.isnan(summarise_effects(values[:2], np.arange(2)).p_value).all()


@pytest.mark.parametrize(
    ("num", "share", "count"),
    [(1, 0.02, 0), (2, 0.02, 1), (60, 0.02, 1), (100, 0.02, 2), (5, 0.5, 2)],
)
def test_extremes_are_as_many_at_either_end_and_never_both(num, share, count):
    coordinate = np.random.default_rng(0).permutation(num).astype(float)
    ends = extreme_samples(coordinate, share)
    assert len(ends.low) == len(ends.high) == count
    assert not set(ends.low) & set(ends.high)
    if count:
        assert set(coordinate[ends.low]) == set(range(count))
        assert set(coordinate[ends.high]) == set(range(num - count, num))


def test_seriation_puts_related_components_side_by_side():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(500, 2))
    values = common[:, [0, 1, 0, 1, 0, 1]] + 0.3 * rng.normal(size=(500, 6))
    order = seriate(np.corrcoef(values.T))
    assert sorted(order) == list(range(6))
    assert {tuple(sorted(order[:3])), tuple(sorted(order[3:]))} == {(0, 2, 4), (1, 3, 5)}


def test_seriation_finds_the_order_along_a_line_whatever_the_signs():
    """Components on a line are the more alike, up to their signs, the nearer they are."""
    rng = np.random.default_rng(1)
    places = rng.permutation(np.cumsum(rng.uniform(0.1, 1.0, 12)))
    sign = rng.choice([-1.0, 1.0], 12)
    order = seriate(np.outer(sign, sign) * np.exp(-np.abs(places[:, None] - places)))
    steps = np.diff(places[order])
    assert (steps > 0).all() or (steps < 0).all()
