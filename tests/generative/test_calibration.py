"""Calibration figures against scikit-learn, closed forms and planted forecasts."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score

from generative.calibration import RELIABILITY_EDGES, calibrate, order_pairs
from generative.event_forecasts import (
    EVENTS,
    FORECASTS,
    EventForecasts,
    EventRates,
    event_rates,
    measure_forecasts,
)
from generative.fidelity_windows import FidelityConfig, choose_windows
from generative.simulator import SimulationNoise
from rollouts.store import RolloutDataset

CONFIG = FidelityConfig(
    num_windows=4, horizon=3, num_samples=3, num_resamples=200, fidelity_batch_size=3
)
NAMES = list(FORECASTS)


def planted_forecasts(num_windows: int = 400, horizon: int = 2) -> EventForecasts:
    """`mode` gives the true probabilities, `single_sample` their fourth root."""
    rng = np.random.default_rng(0)
    shape = (len(EVENTS), num_windows, horizon + 1)
    probability = rng.beta(0.5, 3, shape)
    happened = rng.uniform(size=shape) < probability
    forecast = np.repeat(probability[:, None], len(FORECASTS), axis=1)
    forecast[:, NAMES.index("single_sample")] **= 0.25
    forecast[:, NAMES.index("base_rate")] = happened.mean()
    forecast[:, :, -20:, -1] = np.nan
    return EventForecasts(forecast, happened, np.arange(num_windows) // 4, np.array([False, True]))


def test_auroc_and_brier_score_equal_those_of_a_library():
    forecasts = planted_forecasts()
    found = calibrate(forecasts, CONFIG)
    assert found.spans == ["1", "2", "1 to 2"]
    for event, name, span in np.ndindex(2, len(NAMES), 3):
        rows = [np.s_[:, 1:2], np.s_[:, 2:3], np.s_[:, 1:]][span]
        forecast = forecasts.forecast[event, name][rows].ravel()
        is_row = np.isfinite(forecast)
        happened = forecasts.happened[event][rows].ravel()[is_row]
        assert found.num_rows[span] == is_row.sum()
        assert found.num_events[event, span] == happened.sum()
        expected = roc_auc_score(happened, forecast[is_row])
        assert found.auroc[event, name, span] == pytest.approx(expected)
        if event == 1:
            expected = brier_score_loss(happened, forecast[is_row])
            assert found.brier[event, name, span] == pytest.approx(expected)


def test_resampled_auroc_is_that_of_the_drawn_levels():
    """Written out: rows of a level that is drawn twice are there twice."""
    rng = np.random.default_rng(1)
    forecast = rng.integers(0, 4, 60) / 4
    happened, group = rng.uniform(size=60) < 0.3, rng.integers(0, 5, 60)
    pairs = order_pairs(forecast, happened, group, 5)
    weights = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 2, 0], [0, 0, 5, 0, 0]], float)
    found = pairs.auroc(weights)
    for drawn, value in zip(weights, found, strict=True):
        times = drawn[group].astype(int)
        expected = roc_auc_score(happened.repeat(times), forecast.repeat(times))
        assert value == pytest.approx(expected)
    no_event = order_pairs(forecast, np.zeros(60, bool), group, 5)
    assert np.isnan(no_event.auroc(weights)).all()


def test_what_is_no_probability_is_judged_by_its_order_alone():
    found = calibrate(planted_forecasts(), CONFIG)
    assert np.isnan(found.brier[0]).all()
    assert np.isnan(found.brier_skill[0]).all()
    assert np.isfinite(found.auroc[0]).all()
    assert found.reliability.count[0].sum() == 0


def test_the_base_rate_has_no_skill_and_true_probabilities_have():
    found = calibrate(planted_forecasts(), CONFIG)
    terminal = found.brier_skill[1]
    np.testing.assert_allclose(terminal[NAMES.index("base_rate")], 0)
    np.testing.assert_allclose(found.auroc[1, NAMES.index("base_rate")], 0.5)
    low = found.brier_skill_interval[0, 1, NAMES.index("mode"), -1]
    assert 0 < low < terminal[NAMES.index("mode"), -1]
    assert terminal[NAMES.index("single_sample"), -1] < 0


def test_reliability_shows_true_probabilities_on_the_diagonal_and_others_off_it():
    found = calibrate(planted_forecasts(2000), CONFIG).reliability
    assert found.count[1, 0].sum() == 2000 * 2 - 20
    for name, is_calibrated in (("mode", True), ("single_sample", False)):
        column = NAMES.index(name)
        low, high = found.frequency_interval[:, 1, column]
        mean = found.mean_forecast[1, column]
        many = found.count[1, column] > 60
        assert many.sum() >= 4
        inside = (low <= mean) & (mean <= high)
        if is_calibrated:
            assert inside[many].mean() > 0.7
        else:
            assert (mean > high)[many].mean() > 0.7
        edges = np.array(RELIABILITY_EDGES)
        filled = found.count[1, column] > 0
        assert (edges[:-1][filled] <= mean[filled]).all()
        assert (mean[filled] <= edges[1:][filled]).all()


def test_rates_of_events_are_counted(training_files):
    dataset = RolloutDataset(training_files.data)
    rates = event_rates(dataset)
    reward = dataset.read_field("reward")
    np.testing.assert_allclose(rates.share, [(reward > 0).mean(), 4 / dataset.num_rows])
    assert rates.reward_amount == reward.max()
    assert not rates.is_reward_binary


def test_what_the_recorder_or_the_clock_ended_is_no_end():
    """Of four episodes one was cut, one truncated."""
    episodes = pd.DataFrame(
        {"truncated": [False, True, False, False], "cut": [False, False, True, False]}
    )
    dataset = SimpleNamespace(
        iter_field=lambda name: iter([np.array([0.0, 5.0, 0.0]), np.zeros(17)]),
        episodes=episodes,
        num_rows=20,
    )
    rates = event_rates(cast(RolloutDataset, dataset))
    np.testing.assert_allclose(rates.share, [1 / 20, 2 / 20])
    assert (rates.reward_amount, rates.is_reward_binary) == (5.0, True)


@torch.no_grad()
def test_forecasts_are_those_of_simulate(small_simulator, training_files):
    """Row k of a window answers to simulated step k, whose action is the recorded one."""
    heldout = RolloutDataset(training_files.heldout)
    windows = choose_windows(heldout, 3, 5, 0)
    rates = EventRates(np.array([0.1, 0.2]), 4.0, True)
    found = measure_forecasts(small_simulator, windows, rates, CONFIG, "cpu")
    for index, episode_id in enumerate(windows.episode_id):
        rollout = heldout.read_episode(heldout.index_of(int(episode_id)))
        first = windows.start_row[index]
        rows = np.s_[first + 2 : first + 2 + CONFIG.horizon + 1]
        count = len(rollout.action[rows])
        latent = small_simulator.encode(torch.from_numpy(rollout.obs[first : first + 3])[:, None])
        actions = torch.from_numpy(rollout.action[rows].astype(np.int64))[:, None]
        noise = SimulationNoise(CONFIG.seed, torch.tensor([index * CONFIG.num_samples]))
        uniform = noise.initial(small_simulator.config.num_categoricals)
        for name, choice, draws in (("mode", "mode", None), ("single_sample", "sample", uniform)):
            steps = small_simulator.simulate(
                small_simulator.decode_initial(latent, choice, draws),
                count,
                actions=actions,
                latents=choice,
                noise=noise,
            )
            reward = torch.cat(steps.reward).numpy() / rates.reward_amount
            end = torch.cat(steps.terminal_logit).sigmoid().numpy()
            forecast = found.forecast[:, NAMES.index(name), index]
            np.testing.assert_allclose(forecast[0, :count], reward, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(forecast[1, :count], end, rtol=1e-4, atol=1e-5)
            assert np.isnan(forecast[:, count:]).all()
        np.testing.assert_array_equal(found.happened[0, index, :count], rollout.reward[rows] > 0)
        np.testing.assert_array_equal(found.happened[1, index, :count], rollout.done[rows])
    assert found.happened[1].any()
