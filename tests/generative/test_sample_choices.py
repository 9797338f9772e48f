"""Starts between windows and from files; actions that the agent does not choose."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.checkpoint import LoadedAgent
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from generative import sample_videos
from generative.checkpoint import LoadedSimulator
from generative.sample_actions import RecordedActions, distinct_actions, manual_actions
from generative.sample_starts import GivenStarts, InformedStarts, InterpolatedStarts
from generative.sampling import SamplingConfig, SamplingPlan, record_samples, simulate_samples
from rollouts.store import RolloutDataset
from rollouts.video import read_video

SPEC = EnvironmentSpec(
    adapter="fake",
    name="fake",
    obs_shape=(64, 64, 3),
    num_actions=5,
    action_names=("left", "right", "wait", "null3", "null4"),
    null_action=2,
    time_limit=None,
)
CONFIG = SamplingConfig(max_samples=6, num_sim_steps=4, batch_size=4, seed=3)


@pytest.fixture
def simulator(small_simulator) -> LoadedSimulator:
    return LoadedSimulator(small_simulator, SPEC, "simulator-hash", Path("simulator"), 0)


@pytest.fixture
def windows(training_files, simulator) -> InformedStarts:
    return InformedStarts(RolloutDataset(training_files.data), simulator, CONFIG.seed)


def plan_of(simulator: LoadedSimulator, source, actions=None) -> SamplingPlan:
    policy = simulator.simulator.agent
    agent = LoadedAgent(policy, SPEC, "agent-hash", Path("agent"), 0)
    return SamplingPlan(simulator, agent, source, CONFIG, actions)


def test_a_way_leads_from_one_window_to_another_at_even_angles(simulator, windows):
    source = InterpolatedStarts(windows, 5)
    with torch.no_grad():
        found = source.starts(simulator.simulator, np.arange(5, 10)).latent
        ends = windows.starts(simulator.simulator, np.array([2, 3])).latent
    torch.testing.assert_close(found[[0, -1]], ends)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(5))
    cosines = (found[1:] * found[:-1]).sum(-1)
    torch.testing.assert_close(cosines, cosines[:1].expand(4))


def test_interpolated_samples_do_not_depend_on_the_batch(simulator, windows):
    source = InterpolatedStarts(windows, 3)
    with torch.no_grad():
        together = source.starts(simulator.simulator, np.arange(6)).latent
        alone = source.starts(simulator.simulator, np.array([4])).latent
    torch.testing.assert_close(alone[0], together[4])


def test_the_points_of_a_way_are_shown_side_by_side(simulator, windows, tmp_path, monkeypatch):
    """A way whose last points are not recorded is left out until they are."""
    shown, draw = [], sample_videos.draw_side_by_side
    monkeypatch.setattr(
        sample_videos,
        "draw_side_by_side",
        lambda dataset, ids: shown.append(ids.tolist()) or draw(dataset, ids),
    )

    def record(name, max_samples, actions=None):
        plan = plan_of(simulator, InterpolatedStarts(windows, 3), actions)
        config = replace(CONFIG, max_samples=max_samples, interpolation_points=3)
        record_samples(replace(plan, config=config), tmp_path / name)
        shown.clear()
        return [path.name for path in sample_videos.write_sample_videos(tmp_path / name, 4)]

    samples = [f"sample_{number:05d}.mp4" for number in range(4)]
    assert record("ways", 5) == [*samples, "way_00000.mp4"]
    assert shown == [[[0, 1, 2]]]
    assert record("ways", 7) == ["way_00001.mp4"]
    assert shown == [[[0, 1, 2]], [[3, 4, 5]]]
    frames = read_video(tmp_path / "ways" / "videos" / "way_00001.mp4")
    assert frames.shape == (CONFIG.num_sim_steps, 256, 3 * 256, 3)
    first = read_video(tmp_path / "ways" / "videos" / "sample_00003.mp4")
    assert np.abs(frames[:, :, :256].astype(int) - first).mean() < 2
    # Copies that hold another action each are below each other.
    record("copies", 9, manual_actions(("each",), SPEC))
    assert shown == [[[0, 3, 6], [1, 4, 7], [2, 5, 8]]]


def test_latents_in_a_file_are_the_starts_in_its_order(simulator, tmp_path):
    latents = np.eye(8, dtype=np.float64)[:3]
    np.save(tmp_path / "latents.npy", latents)
    source = GivenStarts(tmp_path / "latents.npy", simulator)
    assert source.num_available == 3
    starts = source.starts(simulator.simulator, np.array([2, 0]))
    np.testing.assert_array_equal(starts.latent.numpy(), latents[[2, 0]])
    assert (starts.source_episode_id == -1).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones((2, 7)), r"found \(2, 7\), expected \(N, 8\)"),
        (np.ones((2, 8)), "away from those that can occur"),
        (np.full((2, 8), np.nan), "away from those that can occur"),
        (np.ones((0, 8)), "0 latents"),
        (np.array([object()]), r"not a \.npy file of numbers"),
    ],
)
def test_a_file_of_anything_else_is_refused(simulator, tmp_path, content, message):
    np.save(tmp_path / "latents.npy", content)
    with pytest.raises(UserError, match=message):
        GivenStarts(tmp_path / "latents.npy", simulator)


def test_recorded_actions_are_those_after_the_window_and_then_none(
    simulator, windows, training_files
):
    dataset = RolloutDataset(training_files.data)
    starts = windows.starts(simulator.simulator, np.arange(6))
    actions = RecordedActions(windows, SPEC).actions(np.arange(6), starts, 4)
    for column in range(6):
        episode = dataset.read_episode(dataset.index_of(int(starts.source_episode_id[column])))
        recorded = episode.action[starts.source_row[column] :][:4]
        expected = [*recorded, *[2] * (4 - len(recorded))]
        np.testing.assert_array_equal(actions[:, column], expected)


def test_only_one_action_that_does_nothing_counts_as_different():
    assert distinct_actions(SPEC) == (0, 1, 2)


def test_each_start_has_a_copy_for_every_action_and_shares_all_else(simulator, windows, tmp_path):
    plan = plan_of(simulator, windows, manual_actions(("each",), SPEC))
    plan = replace(plan, config=replace(CONFIG, latents="sample"))
    samples = simulate_samples(plan, np.arange(6))
    taken = torch.stack(samples.steps.action).argmax(-1)
    assert taken.tolist() == [[0, 1, 2, 0, 1, 2]] * 4
    first, other = torch.stack(samples.steps.stoch)[:, :3], torch.stack(samples.steps.stoch)[:, 3:]
    # Nothing has been done before the first row, so copies of one start are alike there.
    assert (first[0] == first[0, :1]).all()
    assert (first[0] != other[0]).any()
    record_samples(plan, tmp_path / "samples")
    recorded = RolloutDataset(tmp_path / "samples")
    rollouts = [recorded.read_episode(recorded.index_of(i)) for i in range(6)]
    assert {r.info.source_episode_id for r in rollouts[:3]} == {rollouts[0].info.source_episode_id}
    assert all((r.behaviour_log_prob == 0).all() for r in rollouts)
    assert [set(r.action.tolist()) for r in rollouts[:3]] == [{0}, {1}, {2}]


def test_the_last_listed_action_is_held(simulator, windows):
    listed = manual_actions(("right", "0"), SPEC)
    samples = simulate_samples(plan_of(simulator, windows, listed), np.arange(2))
    assert torch.stack(samples.steps.action).argmax(-1).tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("word", ["5", "jump", "-1", "each"])
def test_an_action_that_does_not_exist_is_refused(word):
    with pytest.raises(UserError, match=f"--manual_actions {word}: expected"):
        manual_actions(("left", word), SPEC)


def test_the_batch_fits_without_being_asked_for(simulator, windows):
    plan = plan_of(simulator, windows)
    assert plan.batch_size == 4
    small = replace(plan, config=replace(CONFIG, batch_size=None))
    assert small.batch_size == 64
    long = replace(plan, config=replace(CONFIG, batch_size=None, num_sim_steps=2000))
    assert 1 <= long.batch_size < 16
