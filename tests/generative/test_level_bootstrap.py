import numpy as np

from generative.level_bootstrap import LevelBootstrap, percentile_interval


def test_resampled_sums_equal_those_of_the_drawn_levels():
    level = np.array([5, 3, 5, 9])
    values = np.random.default_rng(0).normal(size=(4, 2))
    bootstrap = LevelBootstrap(level, 20, seed=1)
    found = bootstrap.resample(bootstrap.sum_by_level(values))
    for draws, total in zip(bootstrap.weights, found, strict=True):
        times = dict(zip([3, 5, 9], draws, strict=True))
        expected = sum(times[one] * row for one, row in zip(level, values, strict=True))
        np.testing.assert_allclose(total, expected)
    np.testing.assert_array_equal(bootstrap.weights.sum(axis=1), 3)


def test_the_interval_of_a_mean_covers_it_at_the_nominal_rate():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        # Windows of a level are copies of one another: 40 independent values, not 200.
        value = np.repeat(rng.normal(size=40), 5)
        bootstrap = LevelBootstrap(np.repeat(np.arange(40), 5), 400, seed=trial)
        means = bootstrap.resample(bootstrap.sum_by_level(value)) / 200
        low, high = percentile_interval(means)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_resamples_without_a_value_are_left_out():
    resampled = np.array([[np.nan, np.nan], [1.0, np.nan], [3.0, np.nan]])
    low, high = percentile_interval(resampled)
    np.testing.assert_allclose([low[0], high[0]], [1.05, 2.95])
    assert np.isnan([low[1], high[1]]).all()
