"""p-values from resampled estimates, against the test that they imitate."""

import numpy as np
import pytest
from scipy.stats import t as student_t

from experiment.resampling import bootstrap_p_values, resample_weights


def test_p_values_are_those_of_students_test() -> None:
    values = np.random.default_rng(0).normal([0.0, 0.4, 2.0], 1.0, size=(12, 3))
    weights = resample_weights(12, 20_000, 0)
    deviation = (weights @ values / 12).std(axis=0)
    found = bootstrap_p_values(values.mean(axis=0), deviation, 12)
    # The bootstrap divides by n where Student divides by n − 1.
    unbiased = bootstrap_p_values(values.mean(axis=0), deviation * np.sqrt(12 / 11), 12)
    statistic = np.abs(values.mean(axis=0)) / (values.std(axis=0, ddof=1) / np.sqrt(12))
    np.testing.assert_allclose(unbiased, 2 * student_t.sf(statistic, 11), rtol=0.1)
    assert (found < unbiased).all()


def test_what_is_always_zero_is_no_effect_and_one_unit_tells_nothing() -> None:
    assert bootstrap_p_values(np.zeros(2), np.zeros(2), 5).tolist() == [1.0, 1.0]
    assert bootstrap_p_values(np.ones(1), np.zeros(1), 5).tolist() == [0.0]
    assert np.isnan(bootstrap_p_values(np.ones(2), np.ones(2), 1)).all()


def test_few_units_promise_less() -> None:
    few, many = (float(bootstrap_p_values(np.array(2.5), np.array(1.0), n)) for n in (4, 4000))
    assert many == pytest.approx(0.0124, abs=2e-4)
    assert few > 0.08
