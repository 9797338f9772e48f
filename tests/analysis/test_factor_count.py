"""The planted number of factors is chosen, whatever the noise."""

import numpy as np
import pytest

from analysis.factor_count import choose_factor_count
from experiment.errors import UserError

NUM_EPISODES, NUM_STEPS, NUM_UNITS = 12, 25, 24
EPISODE = np.repeat(np.arange(NUM_EPISODES), NUM_STEPS)


def plant(num_factors, noise):
    rng = np.random.default_rng(0)
    factors = rng.gamma(0.5, size=(num_factors, NUM_UNITS))
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


def test_candidates_beyond_the_hidden_units_stand_for_all_of_them(capsys):
    choice = choose_factor_count(plant(2, 0.1), EPISODE, (2, 30, 40), 10, 0)
    assert choice.candidates == (2, NUM_UNITS)
    assert "--nmf_candidates 30: only 24 exist" in capsys.readouterr().out


def test_too_few_levels_are_refused():
    data = plant(2, 0.1)
    with pytest.raises(UserError, match="choosing needs 3 levels"):
        choose_factor_count(data, np.zeros(len(data), np.int64), (2,), 10, 0)
