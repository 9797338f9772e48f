"""Fidelity figures against answers known beforehand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.images import to_float_images
from generative.fidelity import (
    BASELINES,
    METHODS,
    REFERENCES,
    WindowScores,
    measure_fidelity,
    measure_windows,
    summarise,
)
from generative.fidelity_windows import (
    ChosenWindows,
    FidelityConfig,
    choose_windows,
    frame_statistics,
    other_windows,
    window_pairs,
)
from generative.predictions import decode, imagined_states
from generative.scores import SCORES, squared_error
from generative.simulator import SimulationNoise
from projections.hidden import HiddenProjection
from rollouts.store import RolloutDataset

CONFIG = FidelityConfig(
    num_windows=7,
    horizon=3,
    num_samples=3,
    num_resamples=200,
    num_calibration_windows=9,
    fidelity_batch_size=3,
)
PREDICTIONS = list(METHODS)


BLACK = torch.zeros(3, 64, 64)


@pytest.fixture
def heldout(training_files) -> RolloutDataset:
    return RolloutDataset(training_files.heldout)


@pytest.fixture
def chosen(heldout) -> ChosenWindows:
    return choose_windows(heldout, 3, CONFIG.num_windows, CONFIG.seed)


def test_baselines_equal_a_plain_computation(small_simulator, training_files, heldout, chosen):
    train = RolloutDataset(training_files.data)
    statistics = frame_statistics(train)
    windows = measure_windows(small_simulator, chosen, statistics.mean, CONFIG, "cpu")
    frames = np.concatenate([train.read_episode(i).obs for i in range(4)]) / 255
    mean = frames.mean(axis=0)
    assert statistics.squared_deviation == pytest.approx(np.square(frames - mean).mean())
    for index, (episode, row) in enumerate(zip(windows.episode_id, windows.start_row, strict=True)):
        obs = heldout.read_episode(heldout.index_of(int(episode))).obs / 255
        for horizon in range(CONFIG.horizon + 1):
            target_row = row + 2 + horizon
            for method, prediction in (("mean_frame", mean), ("last_frame", obs[row + 2])):
                found = windows.scores[0, PREDICTIONS.index(method), index, horizon]
                if target_row >= len(obs):
                    assert np.isnan(found)
                else:
                    expected = np.square(prediction - obs[target_row]).mean()
                    assert found == pytest.approx(expected, rel=1e-4)


def test_rows_past_the_end_count_for_no_method(small_simulator, chosen):
    windows = measure_windows(small_simulator, chosen, BLACK, CONFIG, "cpu")
    missing = np.isnan(windows.scores)
    assert missing.any()
    assert (missing == missing[:1, :1]).all()
    assert not missing[..., :2].any()


def test_the_batch_size_changes_nothing(small_simulator, chosen):
    small, whole = (
        measure_windows(
            small_simulator, chosen, BLACK, replace(CONFIG, fidelity_batch_size=size), "cpu"
        )
        for size in (1, 7)
    )
    np.testing.assert_allclose(small.scores, whole.scores, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_predictions_are_those_of_simulate(small_simulator):
    latent = torch.nn.functional.normalize(torch.randn(2, 8), dim=-1)
    actions = torch.tensor([[0, 4], [1, 1], [2, 3]])
    one_hot = small_simulator.one_hot_actions(actions)
    images = decode(small_simulator, imagined_states(small_simulator, latent, one_hot))
    steps = small_simulator.simulate(small_simulator.decode_initial(latent), 3, actions=actions)
    torch.testing.assert_close(images, torch.stack(steps.images), rtol=0, atol=1.1 / 255)


def test_windows_leave_a_row_to_predict_and_spread_over_the_episodes(heldout, chosen):
    episodes, rows = chosen.episode, chosen.start_row
    lengths = heldout.episodes["length"].to_numpy()[episodes]
    assert ((rows >= 0) & (rows + 3 < lengths)).all()
    assert set(np.bincount(episodes, minlength=3)) <= {2, 3}


def test_other_windows_are_of_other_episodes():
    episodes = np.array([3, 3, 5, 3, 4])
    others = other_windows(episodes)
    np.testing.assert_array_equal(others, [2, 2, 3, 4, 0])
    assert (episodes[others] != episodes).all()
    np.testing.assert_array_equal(other_windows(np.array([7, 7])), [1, 0])


def test_the_frames_of_another_episode_are_those_of_the_other_window(
    small_simulator, heldout, chosen
):
    windows = measure_windows(small_simulator, chosen, BLACK, CONFIG, "cpu")
    episodes = np.array([heldout.index_of(int(episode)) for episode in windows.episode_id])
    for index, other in enumerate(other_windows(episodes)):
        own = heldout.read_episode(int(episodes[index])).obs / 255
        shown = heldout.read_episode(int(episodes[other])).obs / 255
        for horizon in range(1, CONFIG.horizon + 1):
            row = windows.start_row[index] + 2 + horizon
            if row < len(own):
                # After its end the other episode's last frame is held.
                at = min(windows.start_row[other] + 2 + horizon, len(shown) - 1)
                expected = np.square(shown[at] - own[row]).mean()
                found = windows.scores[0, PREDICTIONS.index("other_episode"), index, horizon]
                assert found == pytest.approx(expected, rel=1e-4)
    rows = windows.start_row[other_windows(episodes)] + 2 + CONFIG.horizon
    lengths = heldout.episodes["length"].to_numpy()[episodes[other_windows(episodes)]]
    assert (rows >= lengths).any()


@torch.no_grad()
def test_actions_and_samples_make_the_predictions_that_are_named_after_them(
    small_simulator, chosen
):
    windows = measure_windows(small_simulator, chosen, BLACK, CONFIG, "cpu")
    (pairs,) = window_pairs(chosen, small_simulator, CONFIG.horizon, CONFIG.num_windows, "cpu")
    latent = small_simulator.encode(pairs.own.initial_frames)
    truth = to_float_images(pairs.own.frames)
    own, other = (small_simulator.one_hot_actions(w.action) for w in (pairs.own, pairs.other))

    def images(actions, *drawn):
        return decode(small_simulator, imagined_states(small_simulator, latent, actions, *drawn))

    numbers = pairs.ids * CONFIG.num_samples
    samples = [
        images(own, "sample", SimulationNoise(CONFIG.seed, numbers + sample))
        for sample in range(CONFIG.num_samples)
    ]
    of_samples = torch.stack([squared_error(sample, truth) for sample in samples])
    expected = {
        "mode": squared_error(images(own), truth),
        "shuffled_actions": squared_error(images(other), truth),
        "mean_of_samples": squared_error(torch.stack(samples).mean(0), truth),
        "single_sample": of_samples.mean(0),
    }
    found = {}
    for method, errors in expected.items():
        found[method] = windows.scores[0, PREDICTIONS.index(method)]
        wanted = np.where(np.isnan(found[method]), np.nan, errors.T.numpy())
        np.testing.assert_allclose(found[method], wanted, rtol=5e-5)
    for method in ("shuffled_actions", "mean_of_samples", "single_sample"):
        assert np.nanmax(np.abs(found[method] / found["mode"] - 1)) > 2e-4, method


def test_summary_of_known_scores():
    """Two levels of unlike size: the mean is over rows, the intervals over levels."""
    scores = np.ones((len(SCORES), len(METHODS), 3, 2))
    scores[0, PREDICTIONS.index("mode")] = [[0.1, 0.2], [0.1, 0.2], [0.4, np.nan]]
    scores[0, PREDICTIONS.index("mean_frame")] = [[0.3, 0.3], [0.3, 0.3], [0.3, np.nan]]
    scores[:, :, 2, 1] = np.nan
    windows = WindowScores(scores, np.array([7, 7, 9]), np.arange(3), np.zeros(3, np.int64))
    fidelity = summarise(windows, replace(CONFIG, num_resamples=4000))
    np.testing.assert_allclose(fidelity.mean_of("mse", "mode"), [0.2, 0.2])
    np.testing.assert_allclose(fidelity.mean_of("ssim", "mode"), [1.0, 1.0])
    assert fidelity.beats("mean_frame", 1)
    mode, baseline = PREDICTIONS.index("mode"), BASELINES.index("mean_frame")
    np.testing.assert_allclose(fidelity.difference[0, mode, baseline], [-0.1, -0.1])
    # With two levels, resampling draws only the first, only the second, or both.
    low, high = fidelity.interval[:, 0, mode, 0]
    np.testing.assert_allclose([low, high], [0.1, 0.4])
    control = REFERENCES.index("shuffled_actions")
    np.testing.assert_allclose(fidelity.difference[0, mode, control], [0.2 - 1, 0.2 - 1])
    assert fidelity.summary()["beats_mean_frame_at_each_horizon"]
    assert fidelity.summary()["num_levels"] == 2


def test_measurement_of_a_whole_dataset_is_reproducible(small_simulator, training_files, heldout):
    train = RolloutDataset(training_files.data)
    first, again = (measure_fidelity(small_simulator, heldout, train, CONFIG) for _ in range(2))
    np.testing.assert_array_equal(first.mean, again.mean)
    np.testing.assert_array_equal(first.interval, again.interval)
    assert first.mean_of("mse", "last_frame")[0] == 0.0
    assert first.mean_of("ssim", "last_frame")[0] == pytest.approx(1.0)
    assert all(word in first.table() for word in (*METHODS, *SCORES))


def test_the_decoded_state_shares_the_image_scores_and_differs_in_the_agents_eyes(
    small_simulator, chosen
):
    windows = measure_windows(small_simulator, chosen, BLACK, CONFIG, "cpu")
    mode, decoded = (
        windows.scores[:, PREDICTIONS.index(m)] for m in ("mode", "mode_decoded_state")
    )
    names = list(SCORES)
    for name in ("mse", "psnr", "ssim"):
        np.testing.assert_array_equal(mode[names.index(name)], decoded[names.index(name)])
    assert np.nanmax(np.abs(mode - decoded)[names.index("hidden_cosine")]) > 0.01


def test_component_errors_of_unit_axes_are_those_of_the_hidden_state(small_simulator, chosen):
    """With the identity as projection, coordinates are the hidden units themselves."""
    projection = HiddenProjection("pca", 6).fit(np.random.default_rng(0).normal(size=(50, 6)))
    projection.linear_, projection.origin_ = np.eye(6), np.zeros(6)
    windows = measure_windows(small_simulator, chosen, BLACK, CONFIG, "cpu", projection)
    assert windows.components is not None
    truth = windows.components.truth
    for index, (episode, row) in enumerate(zip(windows.episode_id, windows.start_row, strict=True)):
        hidden = chosen.dataset.read_episode(chosen.dataset.index_of(int(episode))).agent_hidden
        count = min(CONFIG.horizon + 1, len(hidden) - row - 2)
        np.testing.assert_allclose(truth[index, :count], hidden[row + 2 : row + 2 + count])
        assert np.isnan(truth[index, count:]).all()
    # Frame 0 of a repeated last frame is the truth, yet these hidden states were made up: only
    # the shape of the errors is known, and that they are missing where the truth is.
    errors = windows.components.squared_error
    assert (np.isnan(errors) == np.isnan(truth)[None]).all()
    fidelity = summarise(windows, CONFIG)
    assert fidelity.components is not None
    assert fidelity.components.r2.shape == (len(METHODS), CONFIG.horizon + 1, 6)
