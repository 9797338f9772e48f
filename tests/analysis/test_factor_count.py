"""The planted number of factors is chosen, whatever the noise."""

import numpy as np
import pytest

from analysis.factor_count import choose_factor_count
from experiment.errors import UserError

NUM_EPISODES, NUM_STEPS, NUM_UNITS = 12, 25, 24
EPISODE = np.repeat(np.arange(NUM_EPISODES), NUM_STEPS)


def plant(num_factors, noise, shape=0.5, seed=0):
    """The smaller the shape, the fewer units a factor is felt in."""
    rng = np.random.default_rng(seed)
    factors = rng.gamma(shape, size=(num_factors, NUM_UNITS))
    weights = rng.gamma(1.0, size=(len(EPISODE), num_factors))
    return weights @ factors + noise * rng.normal(size=(len(EPISODE), NUM_UNITS))


@pytest.mark.parametrize("num_factors", [2, 4])
def test_the_planted_number_of_factors_predicts_best(num_factors):
    """One more than planted, since subtracting the minimum adds a constant."""
    choice = choose_factor_count(plant(num_factors, 0.3), EPISODE, (1, 2, 3, 5, 9, 14), 400, 0)
    assert choice.best == num_factors + 1
    assert choice.error.min() < 0.1
    # More factors would describe shown rows better; they predict unseen units worse.
    assert choice.error[-1] > 1.5 * choice.error.min()


def test_what_an_episode_has_to_itself_is_not_predicted_from_its_other_steps():
    """Every episode is its own pattern: known of its steps, unknown of an episode held out."""
    rng = np.random.default_rng(1)
    patterns = rng.gamma(0.5, size=(NUM_EPISODES, NUM_UNITS))
    data = patterns[EPISODE] * rng.uniform(1.0, 2.0, (len(EPISODE), 1))
    of_episodes = choose_factor_count(data, EPISODE, (NUM_EPISODES,), 400, 0)
    of_steps = choose_factor_count(data, np.arange(len(EPISODE)), (NUM_EPISODES,), 400, 0)
    assert of_episodes.error[0] > 0.8
    assert of_steps.error[0] < 0.6


def test_a_factor_that_the_shown_units_hardly_tell_of_has_no_boundless_error():
    """Factors of one or two units: hidden, these are told by weights of 1e-30 elsewhere, if at all.

    Coefficients that are free to fit such weights have errors of a thousand times the variance.
    """
    sparse = choose_factor_count(plant(4, 0.1, 0.05, seed=1), EPISODE, (1, 2, 3, 5, 9, 24), 400, 0)
    assert sparse.error.max() < 2.0
    assert sparse.best == 5
    nothing_else = plant(4, 0.0, 0.01, seed=1)
    assert choose_factor_count(nothing_else, EPISODE, (2, 14, 24), 400, 0).error.max() < 30.0


def test_factors_that_no_row_has_are_no_trouble_however_large_the_hidden_states():
    """One factor makes these rows; what rounding leaves to 23 others differs from run to run."""
    choice = choose_factor_count(1e5 * plant(1, 0.0), EPISODE, (1, NUM_UNITS), 100, 0)
    assert choice.error[0] < 1e-4
    assert choice.error[1] < 1e-2


def test_factors_without_any_coefficient_are_no_trouble():
    """One unit moves, and nothing tells how: held out, it is predicted to be at its minimum."""
    data = np.zeros((len(EPISODE), NUM_UNITS))
    data[:, 0] = np.random.default_rng(0).random(len(EPISODE))
    choice = choose_factor_count(data, EPISODE, (NUM_UNITS,), 100, 0)
    moved = data[:, 0] - data[:, 0].min()
    np.testing.assert_allclose(choice.error, np.mean(moved**2) / np.var(moved), rtol=0.02)


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_the_unit_of_the_hidden_states_is_of_no_account(unit):
    data = plant(2, 0.3)
    candidates = (1, 2, 3, 5)
    choice, scaled = (
        choose_factor_count(x, EPISODE, candidates, 400, 0) for x in (data, unit * data)
    )
    assert scaled.best == choice.best == 3
    np.testing.assert_allclose(scaled.error, choice.error, rtol=1e-6)


def test_hidden_states_that_never_differ_from_zero_are_no_trouble():
    with np.errstate(invalid="ignore"):
        choice = choose_factor_count(np.zeros((len(EPISODE), 3)), EPISODE, (1,), 10, 0)
    assert np.isnan(choice.error).all()


@pytest.mark.parametrize(
    "still", [(0, 60), (41, 83), (119, 179)], ids=["first", "in the middle", "last"]
)
def test_the_offset_is_the_minimum_of_all_rows(still):
    """Two factors of coefficients a and 1 / a, but for one row each of two of three levels: 0.

    Over the other rows a unit of weights F and G has the minimum 2 √(FG), which the two factors do
    not describe: an offset that misses the still row of a training set leaves it to them.
    """
    rng = np.random.default_rng(2)
    level = np.repeat([0, 1, 2], 60)
    coefficient = np.exp(rng.uniform(-1.5, 1.5, len(level)))
    factors = np.exp(rng.uniform(-1.0, 1.0, (2, NUM_UNITS)))
    data = np.stack([coefficient, 1 / coefficient], axis=1) @ factors
    data[list(still)] = 0.0
    assert choose_factor_count(data, level, (2,), 400, 0).error[0] < 1e-4


def test_candidates_beyond_the_hidden_units_stand_for_all_of_them(capsys):
    choice = choose_factor_count(plant(2, 0.1), EPISODE, (2, 30, 40), 10, 0)
    assert choice.candidates == (2, NUM_UNITS)
    assert "--nmf_candidates 30: only 24 exist" in capsys.readouterr().out


def test_too_few_levels_are_refused():
    data = plant(2, 0.1)
    with pytest.raises(UserError, match="choosing needs 3 levels"):
        choose_factor_count(data, np.zeros(len(data), np.int64), (2,), 10, 0)
