"""Rows of an episode that is being played: none is lost, and none changes afterwards."""

import numpy as np
import pytest

from agents.open_episode import EndedEpisode, EpisodeStart, OpenEpisode
from agents.player import DecisionRow
from rollouts.types import EpisodeInfo, Rollout

INFO = EpisodeInfo(episode_id=0, agent_hash="agent", agent_initial_state=np.zeros(2, np.float32))


def play(num_rows: int) -> Rollout:
    """Row t's frame, hidden state, value, action and reward tell t; the environment has one frame,
    which every step overwrites."""
    episode = OpenEpisode(EpisodeStart(0, level_seed=0))
    frame = np.zeros((4, 4, 3), np.uint8)
    for row in range(num_rows):
        frame[:] = row
        hidden = np.full(2, row, np.float32)
        episode.append(frame, DecisionRow(hidden, np.zeros(15, np.float32), row, row, 0.0))
        episode.rewards.append(row)
        episode.dones.append(row == num_rows - 1)
    frame[:] = 255
    return EndedEpisode(episode, INFO).rollout()


@pytest.mark.parametrize("num_rows", [1, 2, 31, 32, 33, 64, 65])
def test_rows_are_put_together_in_order_whatever_their_number(num_rows: int) -> None:
    rollout, rows = play(num_rows), np.arange(num_rows)
    assert rollout.obs.shape == (num_rows, 4, 4, 3)
    assert rollout.obs.dtype == np.uint8
    assert (rollout.obs == rows[:, None, None, None]).all()
    np.testing.assert_array_equal(rollout.agent_hidden, np.stack([rows, rows], axis=1))
    for found in (rollout.value, rollout.action, rollout.reward):
        np.testing.assert_array_equal(found, rows)
    np.testing.assert_array_equal(rollout.done, rows == num_rows - 1)
