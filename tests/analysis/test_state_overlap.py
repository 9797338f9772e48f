"""Clouds that are alike are not told apart, others are."""

import numpy as np
import pytest
import xarray as xr

from analysis import state_overlap
from analysis.show_hx_overlap import OverlapConfig, show_overlap
from analysis.state_overlap import States, read_states, tell_apart, tell_halves_apart
from experiment.errors import UserError
from experiment.report import StageReport

NUM_EPISODES, NUM_STEPS = 150, 6


def make_states(shift):
    """Every episode has a place of its own; simulated ones are moved by `shift`."""
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(2 * NUM_EPISODES), NUM_STEPS)
    places = rng.normal(size=(2 * NUM_EPISODES, 4))
    scores = places[episode] + 0.1 * rng.normal(size=(len(episode), 4))
    is_simulated = episode >= NUM_EPISODES
    scores[is_simulated, 2] += shift
    return States(scores.astype(np.float32), episode, is_simulated)


def test_what_is_alike_is_not_told_apart_though_every_episode_has_its_place():
    found = tell_apart(make_states(0.0), 60, 0)
    assert found.lower < 0.5 < found.upper


def test_what_is_moved_is_told_apart_as_far_as_it_is_moved():
    found = tell_apart(make_states(2.0), 60, 0)
    # Two normal clouds at a distance of d deviations: Φ(d / √2).
    assert found.area == pytest.approx(0.92, abs=0.05)
    assert found.lower > 0.8


def test_halves_of_the_real_episodes_are_alike():
    control = tell_halves_apart(make_states(5.0), 60, 0)
    assert control.lower < 0.5 < control.upper


def test_what_is_told_of_an_episode_is_learnt_from_others():
    """With as many components as episodes, a classifier that has seen some rows of each tells all
    of the others."""
    rng = np.random.default_rng(0)
    num_episodes = 60
    episode = np.repeat(np.arange(num_episodes), NUM_STEPS)
    scores = rng.normal(size=(num_episodes, num_episodes))[episode]
    scores += 0.1 * rng.normal(size=scores.shape)
    alike = States(scores.astype(np.float32), episode, episode % 2 == 1)
    assert tell_apart(alike, 20, 0).area < 0.7
    by_row = States(alike.scores, np.arange(len(episode)), alike.is_simulated)
    assert tell_apart(by_row, 20, 0).area > 0.9


def test_the_control_divides_real_episodes_and_no_rows(monkeypatch):
    told = []
    monkeypatch.setattr(
        state_overlap, "_separability", lambda scores, half, unit, *_: told.append((half, unit))
    )
    tell_halves_apart(make_states(0.0), 20, 0)
    ((half, unit),) = told
    assert np.unique(unit).tolist() == list(range(NUM_EPISODES))
    share = np.bincount(unit, half) / NUM_STEPS
    assert sorted(share) == [0.0] * (NUM_EPISODES // 2) + [1.0] * (NUM_EPISODES // 2)
    assert 0 < share[: NUM_EPISODES // 2].sum() < NUM_EPISODES // 2


def test_samples_of_real_episodes_do_not_make_the_area_more_certain():
    """Each simulated state repeated eight times, the copies in the unit of the first."""
    once = make_states(1.0)
    again = np.repeat(np.arange(len(once.unit)), 8)
    copies = States(once.scores[again], once.unit[again], once.is_simulated[again])
    one, eight = (tell_apart(states, 100, 0) for states in (once, copies))
    assert eight.upper - eight.lower == pytest.approx(one.upper - one.lower, rel=0.15)


def test_rows_of_both_sources_are_read_with_their_units():
    results = xr.Dataset(
        {
            "source": ("row", np.repeat([0, 1], [6, 4])),
            "unit": ("row", np.array([0, 0, 1, 1, 2, 2, 0, 0, 7, 7])),
            "episode_index": ("row", np.array([0, 0, 1, 1, 2, 2, 0, 0, 1, 1])),
            "done": ("row", np.array([0, 1, 0, 1, 0, 1, 0, 0, 0, 1])),
            "pca": (("row", "pca_component"), np.arange(20.0).reshape(10, 2)),
        }
    )
    states = read_states(results, 50, 0)
    assert states.unit.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 7, 7]
    np.testing.assert_array_equal(states.scores, results["pca"])
    assert len(read_states(results, 3, 0).unit) == 6
    with pytest.raises(UserError, match="without simulated rollouts"):
        read_states(results.isel(row=slice(0, 6)), 50, 0)
    with pytest.raises(UserError, match="which rows are independent"):
        read_states(results.drop_vars("unit"), 50, 0)


def test_what_a_sample_does_after_its_end_is_left_out():
    results = xr.Dataset(
        {
            "source": ("row", [0, 0, 1, 1, 1, 1, 1]),
            "unit": ("row", [0, 0, 1, 1, 1, 1, 1]),
            "episode_index": ("row", [0, 0, 0, 0, 0, 0, 1]),
            "done": ("row", [0, 1, 0, 1, 0, 1, 0]),
            "pca": (("row", "pca_component"), np.arange(7.0)[:, None]),
        }
    )
    assert read_states(results, 50, 0).scores[:, 0].tolist() == [0, 1, 2, 3, 6]


def test_missing_analysis_is_named(tmp_path):
    config = OverlapConfig(input_dir=tmp_path, output_dir=tmp_path / "out")
    with pytest.raises(UserError, match=r"hidden_analysis\.nc: no such file; make it with"):
        show_overlap(config, StageReport("hx_overlap"))
    assert not (tmp_path / "out").exists()
