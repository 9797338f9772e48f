"""Partial correlations and their tests by level."""

import numpy as np
import pytest

from analysis.partial_correlations import (
    correlate,
    partial_correlations,
)

NUM_LEVELS, ROWS_PER_LEVEL = 60, 20
LEVEL = np.repeat(np.arange(NUM_LEVELS), ROWS_PER_LEVEL)
NUM_ROWS = len(LEVEL)


def test_one_variable_given_equals_the_closed_form():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3))
    r = np.corrcoef(data.T)
    closed_form = (r[1, 2] - r[0, 1] * r[0, 2]) / np.sqrt((1 - r[0, 1] ** 2) * (1 - r[0, 2] ** 2))
    assert partial_correlations(r, 1)[0, 1] == pytest.approx(closed_form)
    assert partial_correlations(r, 0)[1, 2] == pytest.approx(r[1, 2])


def test_many_variables_given_equal_correlation_of_residuals():
    rng = np.random.default_rng(1)
    data = rng.normal(size=(NUM_ROWS, 8)) @ rng.normal(size=(8, 8))
    components, variables, covariates = data[:, :3], data[:, 3:5].copy(), data[:, 5:]
    variables[::5, 1] = np.nan
    table = correlate(components, variables, covariates, LEVEL, 10, 50, 0)
    for column in range(2):
        rows = np.isfinite(variables[:, column])
        given = np.column_stack([np.ones(rows.sum()), covariates[rows]])

        def residual(values, given=given):
            return values - given @ np.linalg.lstsq(given, values, rcond=None)[0]

        for k in range(3):
            pair = components[rows, k], variables[rows, column]
            assert table.plain[k, column] == pytest.approx(np.corrcoef(*pair)[0, 1])
            slow = np.corrcoef(residual(pair[0]), residual(pair[1]))[0, 1]
            assert table.partial[k, column] == pytest.approx(slow, abs=1e-6)


def test_what_both_owe_to_time_is_taken_out():
    rng = np.random.default_rng(2)
    step = np.tile(np.arange(ROWS_PER_LEVEL), NUM_LEVELS)[:, None].astype(float)
    component, variable = (step + 3 * rng.normal(size=(NUM_ROWS, 1)) for _ in range(2))
    table = correlate(component, np.column_stack([variable, step]), step, LEVEL, 10, 500, 0)
    assert table.plain[0, 0] > 0.7
    assert abs(table.partial[0, 0]) < 0.1
    assert table.q_value[0, 0] > 0.05
    # Time itself cannot be held fixed when it is what is asked for.
    assert table.partial[0, 1] == pytest.approx(table.plain[0, 1])


def test_values_that_are_the_levels_own_are_found_as_seldom_as_promised():
    """Rows that repeat their level are no evidence: tested by row, most pairs would be 'found'."""
    rng = np.random.default_rng(3)
    components = rng.normal(size=(NUM_LEVELS, 12)).repeat(ROWS_PER_LEVEL, axis=0)
    variables = rng.normal(size=(NUM_LEVELS, 15)).repeat(ROWS_PER_LEVEL, axis=0)
    nothing = np.zeros((NUM_ROWS, 0))
    by_level = correlate(components, variables, nothing, LEVEL, 10, 300, 0)
    by_row = correlate(components, variables, nothing, np.arange(NUM_ROWS), 10, 100, 0)
    assert 0.01 < np.mean(by_level.p_value < 0.05) < 0.12
    assert np.mean(by_row.p_value < 0.05) > 0.5
    assert np.mean(by_level.q_value < 0.05) < 0.02
    inside = (by_level.interval[0] < 0) & (by_level.interval[1] > 0)
    assert np.mean(inside) > 0.88


def test_a_planted_pair_is_found_among_many():
    rng = np.random.default_rng(4)
    components, variables = rng.normal(size=(NUM_ROWS, 8)), rng.normal(size=(NUM_ROWS, 10))
    variables[:, 6] += 0.5 * components[:, 3]
    table = correlate(components, variables, np.zeros((NUM_ROWS, 0)), LEVEL, 10, 300, 0)
    found = np.argwhere(table.q_value < 0.01).tolist()
    assert [3, 6] in found
    assert len(found) <= 2
    assert table.interval[0, 3, 6] < table.partial[3, 6] < table.interval[1, 3, 6]


def test_variables_of_few_levels_are_not_tested():
    rng = np.random.default_rng(6)
    variables = rng.normal(size=(NUM_ROWS, 2))
    variables[LEVEL >= 9, 0] = np.nan
    variables[:, 1] = 4.0
    table = correlate(rng.normal(size=(NUM_ROWS, 2)), variables, variables[:, :0], LEVEL, 10, 20, 0)
    for values in (table.plain, table.partial, table.p_value, table.q_value):
        assert np.isnan(values).all()
