"""The control of false discoveries, and which tests it counts together."""

import numpy as np

from analysis.false_discovery import (
    BETWEEN,
    NOT_TESTED,
    OWN_PAST,
    SAME_STEP,
    false_discovery_q,
    lagged_families,
)


def test_adjusted_p_values_equal_the_written_out_procedure():
    p = np.array([[0.01, np.nan], [0.04, 0.03]])
    # Sorted 0.01, 0.03, 0.04 times 3 / rank, then the running minimum from the right.
    np.testing.assert_allclose(false_discovery_q(p), [[0.03, np.nan], [0.04, 0.04]])


def test_adjusted_p_values_equal_a_slow_reference():
    rng = np.random.default_rng(5)
    p_values = rng.random((6, 7)) ** 3
    p_values[2, 3] = np.nan
    tested = np.sort(p_values[np.isfinite(p_values)])
    expected = np.full(p_values.shape, np.nan)
    for index, p in np.ndenumerate(p_values):
        if np.isfinite(p):
            ranks = range(1, len(tested) + 1)
            rates = [tested[k - 1] * len(tested) / k for k in ranks if tested[k - 1] >= p]
            expected[index] = min(1.0, *rates)
    np.testing.assert_allclose(false_discovery_q(p_values), expected)


def test_families_are_adjusted_apart():
    p = np.array([[0.001, 0.01], [0.02, 0.03]])
    family = np.array([[0, 1], [1, NOT_TESTED]])
    np.testing.assert_allclose(false_discovery_q(p, family), [[0.001, 0.02], [0.02, np.nan]])
    # One set of families serves for the matrices of all groups.
    both = false_discovery_q(np.stack([p, p]), family)
    np.testing.assert_allclose(both[0], false_discovery_q(np.stack([p, p]), family)[1])
    np.testing.assert_allclose(both[:, 0, 0], 0.001)


def test_families_of_a_lagged_matrix():
    families = lagged_families([0, 3], 3)
    assert families[0].tolist() == [
        [NOT_TESTED, SAME_STEP, SAME_STEP],
        [NOT_TESTED, NOT_TESTED, SAME_STEP],
        [NOT_TESTED, NOT_TESTED, NOT_TESTED],
    ]
    assert (families[1] == OWN_PAST).tolist() == np.eye(3, dtype=bool).tolist()
    assert (families[1] == BETWEEN).sum() == 6


def test_components_that_persist_make_no_room_for_false_statements():
    """Nothing is related but every component to its own past, which is always found."""
    rng = np.random.default_rng(0)
    lags, size, repeats = [1, 2], 12, 300
    families = lagged_families(lags, size)
    is_pair = families == BETWEEN
    apart, together = 0, 0
    for _ in range(repeats):
        p_values = np.where(is_pair, rng.random(families.shape), 1e-9)
        apart += (false_discovery_q(p_values, families)[is_pair] < 0.05).any()
        together += (false_discovery_q(p_values)[is_pair] < 0.05).any()
    assert apart / repeats < 0.09
    assert together / repeats > 0.4
