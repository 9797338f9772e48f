"""The fake world's answers are known."""

import numpy as np

from environments.fake import (
    GOAL_COLOUR,
    GOAL_REWARD,
    GRID_SIZE,
    PLAYER_COLOUR,
    TIME_LIMIT,
)

LEFT, DOWN, NULL, UP, RIGHT = 1, 3, 4, 5, 7


def test_bar_on_the_top_row_counts_the_decisions(make_env) -> None:
    env = make_env("fake", 4)
    env.start_level(range(4), range(4))
    for step in range(TIME_LIMIT):
        bar = (env.observe().obs[:, 0] == (0, 255, 0)).all(axis=-1).sum(axis=1)
        np.testing.assert_array_equal(bar, step * 64 // TIME_LIMIT)
        env.send(np.full(4, NULL))
    assert env.observe().truncated.all()


def test_random_play_meets_all_three_endings(make_env) -> None:
    env = make_env("fake", 64)
    rng = np.random.default_rng(0)
    completed = truncated = died = 0
    for _ in range(100):
        env.send(rng.integers(0, 15, 64))
        outcome = env.observe()
        np.testing.assert_array_equal(outcome.reward, 10.0 * outcome.level_complete)
        completed += outcome.level_complete.sum()
        truncated += outcome.truncated.sum()
        died += (outcome.first & ~outcome.level_complete & ~outcome.truncated).sum()
    assert min(completed, truncated, died) > 10


def test_walking_to_the_goal_completes_the_level(make_env) -> None:
    env = make_env("fake", 1)
    env.start_level([0], [11])
    (goal_y, goal_x), (y, x) = (
        locate(env.observe().obs[0], c) for c in (GOAL_COLOUR, PLAYER_COLOUR)
    )
    walk = (
        [RIGHT] * (goal_x - x) + [LEFT] * (x - goal_x) + [DOWN] * (goal_y - y) + [UP] * (y - goal_y)
    )
    for action in walk:
        assert not env.observe().level_complete[0]
        env.send(np.array([action]))
    outcome = env.observe()
    assert outcome.level_complete[0]
    assert outcome.reward[0] == GOAL_REWARD


def locate(frame: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int]:
    """Cell (row, column) of the block of a colour."""
    rows, columns = np.nonzero((frame == colour).all(axis=-1))
    cell = len(frame) // GRID_SIZE
    return int(rows[-1] // cell), int(columns[-1] // cell)
