"""Fidelity figures against answers known beforehand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from generative.fidelity import (
    BASELINES,
    METHODS,
    FidelityConfig,
    WindowErrors,
    choose_windows,
    mean_frame,
    measure_fidelity,
    measure_windows,
    predict,
    summarise,
)
from rollouts.store import RolloutDataset

CONFIG = FidelityConfig(
    num_windows=7, horizon=3, num_samples=3, num_resamples=200, fidelity_batch_size=3
)


@pytest.fixture
def heldout(training_files) -> RolloutDataset:
    return RolloutDataset(training_files.heldout)


def test_baselines_equal_a_plain_computation(small_simulator, training_files, heldout):
    train = RolloutDataset(training_files.data)
    windows = measure_windows(small_simulator, heldout, mean_frame(train), CONFIG, "cpu")
    mean = np.concatenate([train.read_episode(i).obs for i in range(4)]).mean(axis=0) / 255
    for index, (episode, row) in enumerate(zip(windows.episode_id, windows.start_row, strict=True)):
        obs = heldout.read_episode(heldout.index_of(int(episode))).obs / 255
        for horizon in range(CONFIG.horizon + 1):
            target_row = row + 2 + horizon
            for method, prediction in (("mean_frame", mean), ("last_frame", obs[row + 2])):
                found = windows.errors[METHODS.index(method), index, horizon]
                if target_row >= len(obs):
                    assert np.isnan(found)
                else:
                    expected = np.square(prediction - obs[target_row]).mean()
                    assert found == pytest.approx(expected, rel=1e-4)


def test_rows_past_the_end_count_for_no_method(small_simulator, heldout):
    windows = measure_windows(small_simulator, heldout, torch.zeros(3, 64, 64), CONFIG, "cpu")
    missing = np.isnan(windows.errors)
    assert missing.any()
    assert (missing == missing[:1]).all()
    assert not missing[:, :, :2].any()


def test_the_batch_size_changes_nothing(small_simulator, heldout):
    small, whole = (
        measure_windows(
            small_simulator,
            heldout,
            torch.zeros(3, 64, 64),
            replace(CONFIG, fidelity_batch_size=size),
            "cpu",
        )
        for size in (1, 7)
    )
    np.testing.assert_allclose(small.errors, whole.errors, rtol=1e-5)


@torch.no_grad()
def test_predictions_are_those_of_simulate(small_simulator):
    latent = torch.nn.functional.normalize(torch.randn(2, 8), dim=-1)
    actions = torch.tensor([[0, 4], [1, 1], [2, 3]])
    images = predict(small_simulator, latent, small_simulator.one_hot_actions(actions))
    steps = small_simulator.simulate(small_simulator.decode_initial(latent), 3, actions=actions)
    torch.testing.assert_close(images, torch.stack(steps.images), rtol=0, atol=1.1 / 255)


def test_windows_leave_a_row_to_predict_and_spread_over_the_episodes(heldout):
    episodes, rows = choose_windows(heldout, 3, CONFIG)
    lengths = heldout.episodes["length"].to_numpy()[episodes]
    assert ((rows >= 0) & (rows + 3 < lengths)).all()
    assert set(np.bincount(episodes, minlength=3)) <= {2, 3}


def test_summary_of_known_errors():
    """Two levels of unlike size: the mean is over rows, the intervals over levels."""
    errors = np.ones((len(METHODS), 3, 2))
    errors[METHODS.index("mode")] = [[0.1, 0.2], [0.1, 0.2], [0.4, np.nan]]
    errors[METHODS.index("mean_frame")] = [[0.3, 0.3], [0.3, 0.3], [0.3, np.nan]]
    errors[:, 2, 1] = np.nan
    windows = WindowErrors(errors, np.array([7, 7, 9]), np.arange(3), np.zeros(3, np.int64))
    fidelity = summarise(windows, replace(CONFIG, num_resamples=4000))
    np.testing.assert_allclose(fidelity.mse_of("mode"), [0.2, 0.2])
    assert fidelity.beats("mean_frame", 1)
    difference = fidelity.difference[METHODS.index("mode"), BASELINES.index("mean_frame")]
    np.testing.assert_allclose(difference, [-0.1, -0.1])
    # With two levels, resampling draws only the first, only the second, or both.
    low, high = fidelity.mse_interval[:, METHODS.index("mode"), 0]
    np.testing.assert_allclose([low, high], [0.1, 0.4])
    assert fidelity.summary()["beats_mean_frame_at_each_horizon"]
    assert fidelity.summary()["num_levels"] == 2


def test_measurement_of_a_whole_dataset_is_reproducible(small_simulator, training_files, heldout):
    train = RolloutDataset(training_files.data)
    first, again = (measure_fidelity(small_simulator, heldout, train, CONFIG) for _ in range(2))
    np.testing.assert_array_equal(first.mse, again.mse)
    np.testing.assert_array_equal(first.mse_interval, again.mse_interval)
    assert first.mse_of("last_frame")[0] == 0.0
    assert all(method in first.table() for method in METHODS)
