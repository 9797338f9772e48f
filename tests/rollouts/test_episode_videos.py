"""Videos of the episodes of a dataset."""

import numpy as np
import pytest

from rollouts import episode_videos
from rollouts.episode_videos import draw_episode, draw_side_by_side, write_episode_videos
from rollouts.video import StepOverlay, draw_overlay, read_video

SCALE = 256 // 8


@pytest.mark.parametrize("simulated", [False, True])
def test_every_row_is_drawn_with_what_happened_in_it(
    make_rollout, write_rollouts, monkeypatch, simulated
) -> None:
    monkeypatch.setattr(episode_videos, "_ROWS_PER_READ", 3)
    rollouts = [make_rollout(4, 2, simulated=simulated), make_rollout(7, 8, simulated=simulated)]
    dataset = write_rollouts(rollouts)
    drawn, wanted = list(draw_episode(dataset, 7)), rollouts[1]
    names = dataset.metadata.environment.action_names
    assert len(drawn) == 8
    for row, frame in enumerate(drawn):
        overlay = StepOverlay(
            action_name=names[wanted.action[row]],
            value=float(wanted.value[row]),
            reward=float(wanted.reward[row]),
            terminal_prob=float(wanted.terminal_prob[row]) if simulated else None,
        )
        np.testing.assert_array_equal(frame, draw_overlay(wanted.obs[row], overlay, SCALE))


def test_episodes_are_drawn_in_rows_and_columns(make_rollout, write_rollouts) -> None:
    dataset = write_rollouts([make_rollout(e, 3) for e in range(6)])
    grid = np.array([[4, 0, 2], [1, 5, 3]])
    drawn = list(draw_side_by_side(dataset, grid))
    assert [frame.shape for frame in drawn] == [(2 * 256, 3 * 192, 3)] * 3
    for (row, column), episode in np.ndenumerate(grid):
        rows, columns = slice(256 * row, 256 * (row + 1)), slice(192 * column, 192 * (column + 1))
        for frame, alone in zip(drawn, draw_episode(dataset, int(episode)), strict=True):
            np.testing.assert_array_equal(frame[rows, columns], alone)


def test_videos_that_are_there_stay_and_absent_episodes_are_left_out(
    make_rollout, write_rollouts
) -> None:
    folder = write_rollouts([make_rollout(e, 3) for e in (0, 2)]).folder
    first = folder / "videos" / "episode_00000000.mp4"
    assert write_episode_videos(folder, [0, 1]) == [first]
    kept = first.stat().st_mtime_ns
    last = folder / "videos" / "episode_00000002.mp4"
    assert write_episode_videos(folder, range(9)) == [last]
    assert first.stat().st_mtime_ns == kept
    assert read_video(last).shape == (3, 256, 192, 3)


def test_a_killed_drawing_leaves_no_video(make_rollout, write_rollouts, monkeypatch) -> None:
    folder = write_rollouts([make_rollout(0, 3)]).folder

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(episode_videos, "draw_overlay", fail)
    with pytest.raises(KeyboardInterrupt):
        write_episode_videos(folder, [0])
    assert list((folder / "videos").iterdir()) == []
