"""Replays against the recorded episodes and against the fake world stepped by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.images import to_float_images
from environments.fake import FakeEnvironment, fake_spec
from experiment.errors import UserError
from generative.reality import ReplayPlan, has_reality, record_replays, require_source_of
from rollouts.store import RolloutDataset
from rollouts.types import Rollout


class Push:
    """Adds a constant to the state."""

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        return proposed + 0.25

    def describe(self) -> dict[str, object]:
        return {"kind": "push"}


def make_plan(fake_chain, samples: Path, **changes) -> ReplayPlan:
    settings = {"interventions": {"[]": None}, "num_envs": 3, "num_threads": 0, **changes}
    source = RolloutDataset(fake_chain.data)
    return ReplayPlan(RolloutDataset(samples), source, fake_chain.agent, **settings)


def replay(fake_chain, samples: Path, folder: Path, **changes) -> dict[int, Rollout]:
    record_replays(make_plan(fake_chain, samples, **changes), folder)
    dataset = RolloutDataset(folder)
    rollouts = (dataset.read_episode(index) for index in range(dataset.num_episodes))
    return {rollout.info.episode_id: rollout for rollout in rollouts}


def samples_of(folder: Path) -> list[Rollout]:
    dataset = RolloutDataset(folder)
    return [dataset.read_episode(index) for index in range(dataset.num_episodes)]


def source_of(fake_chain, sample: Rollout) -> Rollout:
    dataset = RolloutDataset(fake_chain.data)
    return dataset.read_episode(dataset.index_of(sample.info.source_episode_id))


def step_by_hand(level: int, actions: NDArray) -> list[NDArray]:
    """Frames of the fake world until the episode ends, one per action."""
    world = FakeEnvironment(fake_spec(), 1)
    world.start_level([0], [level])
    frames = []
    for action in actions:
        frames.append(world.observe().obs[0])
        world.send(np.array([action]))
        if world.observe().first[0]:
            break
    return frames


def test_replays_of_recorded_actions_are_the_recorded_episodes(fake_chain, tmp_path):
    folder = fake_chain.record("recorded_actions", recorded_actions=True)
    found = replay(fake_chain, folder, tmp_path / "replays")
    samples = samples_of(folder)
    assert sorted(found) == [sample.info.episode_id for sample in samples]
    for sample in samples:
        rollout, source = found[sample.info.episode_id], source_of(fake_chain, sample)
        rows = np.s_[sample.info.source_row : sample.info.source_row + len(sample)]
        for name in ("obs", "action", "reward", "done"):
            np.testing.assert_array_equal(getattr(rollout, name), getattr(source, name)[rows])
        np.testing.assert_allclose(rollout.agent_hidden, source.agent_hidden[rows], atol=1e-5)
        assert rollout.info.level_seed == source.info.level_seed


def test_replays_of_the_agents_own_actions_are_the_world_stepped_by_hand(fake_chain, tmp_path):
    folder = fake_chain.record("own_actions", max_samples=24, agent_actions="sample")
    found = replay(fake_chain, folder, tmp_path / "replays")
    ended = 0
    for sample in samples_of(folder):
        rollout, source = found[sample.info.episode_id], source_of(fake_chain, sample)
        row = sample.info.source_row
        actions = np.concatenate([source.action[:row], sample.action])
        frames = step_by_hand(source.info.level_seed, actions)[row:]
        np.testing.assert_array_equal(rollout.obs, np.stack(frames))
        np.testing.assert_array_equal(rollout.action, sample.action[: len(rollout)])
        assert len(rollout) == len(sample) or rollout.done[-1]
        ended += len(rollout) < len(sample)
    assert ended, "no episode ended early: this tells nothing of ends"


def test_replays_of_intervened_samples_have_the_intervention(fake_chain, tmp_path):
    folder = fake_chain.record("pushed", max_samples=2)
    found = replay(fake_chain, folder, tmp_path / "replays", interventions={"[]": Push()})
    policy = fake_chain.agent.policy
    for rollout in found.values():
        state = torch.from_numpy(rollout.info.agent_initial_state)[None]
        for frame, hidden in zip(rollout.obs, rollout.agent_hidden, strict=True):
            with torch.no_grad():
                embedding = policy.embed(to_float_images(frame[None]))
                state = policy.advance(embedding, state) + 0.25
            np.testing.assert_allclose(state[0].numpy(), hidden, atol=1e-5)


def test_a_larger_recording_keeps_the_replays_that_are_there(fake_chain, tmp_path):
    few = fake_chain.record("growing", max_samples=3)
    replay(fake_chain, few, tmp_path / "replays")
    (shard,) = (tmp_path / "replays").glob("*.h5")
    before = shard.stat().st_mtime_ns
    more = fake_chain.record("growing", max_samples=8)
    assert len(replay(fake_chain, more, tmp_path / "replays")) == 8
    assert shard.stat().st_mtime_ns == before
    again = sorted((tmp_path / "replays").glob("*.h5"))
    replay(fake_chain, more, tmp_path / "replays")
    assert sorted((tmp_path / "replays").glob("*.h5")) == again


def test_replays_of_other_samples_are_refused(fake_chain, tmp_path):
    replay(fake_chain, fake_chain.record("first", max_samples=2), tmp_path / "replays")
    other = fake_chain.record("second", max_samples=2, seed=5)
    with pytest.raises(UserError, match=r"--replay_dir.*other samples"):
        replay(fake_chain, other, tmp_path / "replays")


def test_samples_without_a_window_have_no_reality(fake_chain, tmp_path):
    random = RolloutDataset(fake_chain.record("random", initialisation="random", max_samples=2))
    assert not has_reality(random).any()
    record_replays(make_plan(fake_chain, random.folder), tmp_path / "replays")
    assert not (tmp_path / "replays").exists()


def test_the_source_must_be_the_one_that_set_the_samples_up(fake_chain, tmp_path):
    samples = RolloutDataset(fake_chain.record("of_data", max_samples=2))
    require_source_of(samples, RolloutDataset(fake_chain.data), "--data_dir")
    with pytest.raises(UserError, match=r"--data_dir.*windows of rollouts"):
        require_source_of(samples, samples, "--data_dir")


def test_replays_tell_where_they_begin_and_what_was_done(fake_chain, tmp_path):
    folder = fake_chain.record("told", max_samples=2)
    found = replay(fake_chain, folder, tmp_path / "replays")
    for sample in samples_of(folder):
        info = found[sample.info.episode_id].info
        assert info.initialisation == "branched"
        for name in ("interventions", "source_episode_id", "source_row"):
            assert getattr(info, name) == getattr(sample.info, name)
