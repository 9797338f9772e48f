"""Rows and returns of recordings end where their episodes do."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.paired_rows import (
    ActionGroups,
    Outputs,
    occupancy,
    read_pair_rows,
    row_differences,
)
from environments.fake import fake_spec
from rollouts.store import RolloutDataset, RolloutWriter


def test_a_simulated_rollout_has_no_rows_and_no_rewards_after_its_predicted_end(
    planted_datasets, tmp_path
) -> None:
    planted = RolloutDataset(planted_datasets.simulated)
    ends = {0: 3, 1: 9}
    rewards = np.arange(10, dtype=np.float32)
    with RolloutWriter(tmp_path, planted.metadata) as writer:
        for index, end in ends.items():
            done = np.arange(10) >= end
            writer.write(replace(planted.read_episode(index), done=done, reward=rewards))
    rows = read_pair_rows(RolloutDataset(tmp_path), num_rows=6)
    assert rows.is_row.sum(axis=1).tolist() == [4, 6]
    assert rows.episode_return.tolist() == [0 + 1 + 2 + 3, 45]
    assert np.isnan(rows.outputs.hidden[0, 4:]).all()
    first = planted.read_episode(0)
    np.testing.assert_allclose(rows.outputs.value[0, :4], first.value[:4])
    assert rows.is_done.tolist() == [1, 1]


def test_real_rollouts_are_read_to_their_last_row(planted_datasets) -> None:
    real = RolloutDataset(planted_datasets.real)
    rows = read_pair_rows(real, num_rows=40)
    assert rows.is_row.sum(axis=1).tolist() == planted_datasets.lengths.tolist()
    assert rows.episode_return == pytest.approx(np.full(30, 10.0))


def test_pairs_are_sorted_by_id_in_whatever_order_they_were_recorded(
    planted_datasets, tmp_path
) -> None:
    planted = RolloutDataset(planted_datasets.simulated)
    ends = {2: 9, 0: 3, 1: 10}
    with RolloutWriter(tmp_path, planted.metadata) as writer:
        for index, end in ends.items():
            done, reward = np.arange(10) >= end, np.full(10, index, np.float32)
            writer.write(replace(planted.read_episode(index), done=done, reward=reward))
    rows = read_pair_rows(RolloutDataset(tmp_path), num_rows=3)
    recorded = [planted.read_episode(index) for index in range(3)]
    assert rows.is_done.tolist() == [1, 0, 1]
    assert rows.episode_return.tolist() == [0, 10, 20]
    np.testing.assert_allclose(rows.outputs.value, [one.value[:3] for one in recorded])
    np.testing.assert_array_equal(rows.state, [one.agent_hidden[:3] for one in recorded])


def test_actions_that_do_nothing_are_one_group() -> None:
    names = ("left", "null_1", "null", "right", "null_3")
    environment = replace(fake_spec(), num_actions=5, action_names=names, null_action=2)
    groups = ActionGroups.of(environment)
    assert groups.names == ("left", "null", "right")
    np.testing.assert_array_equal(
        groups.membership, [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    )


class Twice:
    """Components are twice the hidden state."""

    def transform(self, states):
        return 2.0 * states


def test_differences_to_the_twin_have_their_closed_form() -> None:
    """One row of three actions, the last two alike; components are twice the hidden state."""
    twin_probs, changed_probs = np.array([0.5, 0.25, 0.25]), np.array([0.125, 0.125, 0.75])

    def outputs(probs, value, hidden):
        return Outputs(
            np.log(probs)[None, None], np.full((1, 1), value), np.full((1, 1, 1), hidden)
        )

    groups = ActionGroups(("first", "others"), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    found = row_differences(
        outputs(changed_probs, 5.0, 1.0), outputs(twin_probs, 3.0, -0.5), groups, Twice()
    )
    divergence = 0.5 * np.log(4.0) + 0.25 * np.log(2.0) + 0.25 * np.log(1.0 / 3.0)
    np.testing.assert_allclose(found[:, 0, 0], [2.0, divergence, -0.375, 0.375, 3.0])


def test_occupancy_is_the_share_of_an_episodes_own_rows() -> None:
    """Four rows in clusters 0, 1, 1, 2; and two in cluster 2, whose other rows do not exist."""
    cluster = np.array([[0, 1, 1, 2], [2, 2, 0, 0]])
    is_row = np.array([[True, True, True, True], [True, True, False, False]])
    found = occupancy(cluster, is_row, num_clusters=4)
    np.testing.assert_allclose(found, [[0.25, 0.0], [0.5, 0.0], [0.25, 1.0], [0.0, 0.0]])
