"""CoinRun's variables: by hand on one level, by slow loops on many, and by what the game does."""

from math import hypot, isnan, nan
from pathlib import Path

import numpy as np
import pytest

from environments.coinrun_variables import (
    SIGHT,
    START_X,
    VARIABLES,
    coinrun_columns,
    coinrun_variables,
)
from environments.game_steps import steps_of_states
from environments.procgen_state import ENTITY_FIELDS, GameState, StateFormatError, parse_state

LEVEL = 21
"""Hard mode. From the start the ground, 1 cell high, runs to column 5; there it rises to 5 cells,
at column 10 to 9; it falls to 7 at column 14 and rises to 11 at column 19. Columns 20 to 25 are
lava up to 5 cells, with a platform at column 22, 11 cells up. The coin is at column 28 on ground 11
cells high."""


def states_of(env) -> list[GameState]:
    return [parse_state(saved) for saved in env.get_state()]


def table_of(states: list[GameState]) -> np.ndarray:
    """A row per state, which may be of different levels."""
    return np.array([list(coinrun_variables(state).values()) for state in states])


def with_agent_at(state: GameState, x: float, feet: float) -> GameState:
    """The same state, the agent standing elsewhere."""
    x_column, y_column, ry_column = (ENTITY_FIELDS.index(name) for name in ("x", "y", "ry"))
    words = np.frombuffer(state.parts.entities, "<f4").copy()
    words[x_column], words[y_column] = x, feet + words[ry_column]
    return GameState(state.parts._replace(entities=words.tobytes()))


@pytest.fixture
def known_level(make_env) -> GameState:
    env = make_env("coinrun", 1, distribution_mode="hard")
    env.start_level([0], [LEVEL])
    return states_of(env)[0]


def expect(values: dict[str, float], **expected: float) -> None:
    found = {name: values[name] for name in expected}
    assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_the_first_frame_of_a_known_level(known_level) -> None:
    expect(
        coinrun_variables(known_level),
        **{"step": 0, "agent_x": 1.5, "agent_y": 1.5787, "agent_vx": 0, "agent_vy": 0},
        **{"on_ground": 1, "on_crate": 0, "facing_right": 1, "height_above_ground": 0},
        **{"coin_dx": 27, "coin_dy": 11.5 - 1.5787, "coin_distance": hypot(27, 11.5 - 1.5787)},
        **{"progress": 0, "wall_dx": 3.5, "wall_height": 4, "wall_top_dy": 4},
        **{"drop_dx": 12.5, "drop_height": 2},
        **{"enemy_dx": 5, "enemy_dy": 5.5 - 1.5787, "enemy_vx": -0.15},
        **{"saw_dx": 10, "saw_dy": 9.5 - 1.5787, "crate_dx": 7, "crate_dy": 5.5 - 1.5787},
        **{"lava_dx": 19, "lava_dy": 4.5 - 1.5787},
    )


def test_further_along_a_known_level(known_level) -> None:
    expect(
        coinrun_variables(with_agent_at(known_level, 12.5, feet=9)),
        **{"on_ground": 1, "height_above_ground": 0, "progress": 11 / 27},
        **{"wall_dx": 6.5, "wall_height": 4, "wall_top_dy": 2, "drop_dx": 1.5, "drop_height": 2},
        **{"enemy_dx": nan, "enemy_dy": nan, "enemy_vx": nan, "crate_dx": nan, "crate_dy": nan},
        **{"saw_dx": 5, "saw_dy": 7.5 - 9.5787, "lava_dx": 8, "lava_dy": 4.5 - 9.5787},
    )


def test_over_lava_on_a_platform_and_at_the_coin(known_level) -> None:
    expect(
        coinrun_variables(with_agent_at(known_level, 21.25, feet=12)),
        **{"on_ground": 0, "height_above_ground": 11, "lava_dx": 0.25, "lava_dy": 4.5 - 12.5787},
        **{"wall_dx": 4.75, "wall_height": 10, "wall_top_dy": -1, "drop_dx": nan},
    )
    expect(
        coinrun_variables(with_agent_at(known_level, 22.5, feet=11)),
        **{"on_ground": 1, "height_above_ground": 0},
    )
    expect(
        coinrun_variables(with_agent_at(known_level, 28.5, feet=11)),
        **{"coin_dx": 0, "coin_dy": 11.5 - 11.5787, "progress": 1, "lava_dx": nan, "wall_dx": nan},
    )


def test_one_cell_to_the_right_is_one_cell_less_to_all_that_lies_ahead(known_level) -> None:
    near = coinrun_variables(with_agent_at(known_level, 3.25, feet=2.5))
    far = coinrun_variables(with_agent_at(known_level, 2.25, feet=2.5))
    for name in VARIABLES:
        if name.endswith("_dx"):
            assert far[name] - near[name] == pytest.approx(1, abs=1e-5)
        elif name not in ("agent_x", "coin_distance", "progress"):
            assert far[name] == near[name]
    assert near["progress"] - far["progress"] == pytest.approx(1 / 27)


def test_one_cell_up_is_one_cell_less_to_all_that_lies_above(known_level) -> None:
    low = coinrun_variables(with_agent_at(known_level, 3.25, feet=2.5))
    high = coinrun_variables(with_agent_at(known_level, 3.25, feet=3.5))
    for name in VARIABLES:
        if name.endswith("_dy"):
            assert low[name] - high[name] == pytest.approx(1, abs=1e-5)
    assert high["height_above_ground"] - low["height_above_ground"] == pytest.approx(1, abs=1e-5)


def slow_variables(state: GameState) -> dict[str, float]:
    """The variables by loops over cells and entities."""
    height, width = state.grid.shape
    agent = state.agent
    x, y, feet = float(agent["x"]), float(agent["y"]), float(agent["y"]) - float(agent["ry"])

    def is_wall(column: int, row: int) -> bool:
        return state.grid[row, column] in (15, 16)

    terrain = []
    for column in range(width):
        top = 0
        while top < height and is_wall(column, top):
            top += 1
        terrain.append(top)
    coins = [(c, r) for r in range(height) for c in range(width) if state.grid[r, c] == 1]
    coin_column, coin_row = coins[0]
    values = dict.fromkeys(VARIABLES, nan)
    values |= {"coin_dx": coin_column + 0.5 - x, "coin_dy": coin_row + 0.5 - y}
    values["progress"] = 1 - values["coin_dx"] / (coin_column + 0.5 - 1.5)
    for column in range(coin_column, 1, -1):
        change = terrain[column] - terrain[column - 1]
        if change > 0 and column > x:
            values |= {"wall_dx": column - x, "wall_height": change}
            values["wall_top_dy"] = terrain[column] - feet
        if change < 0 and column > x:
            values |= {"drop_dx": column - x, "drop_height": -change}
    for column in range(width - 1, -1, -1):
        for row in range(height):
            if state.grid[row, column] in (17, 18) and column + 0.5 >= x:
                values |= {"lava_dx": column + 0.5 - x, "lava_dy": row + 0.5 - y}
    for row in range(height):
        if is_wall(int(x), row) and row + 1 <= feet + 0.01:
            values["height_above_ground"] = feet - (row + 1)
    for name, kind in (("enemy", 5), ("saw", 2), ("crate", 20)):
        ahead = [e for e in state.entities if e["type"] == kind and e["x"] >= agent["x"]]
        if ahead:
            nearest = min(ahead, key=lambda e: (float(e["x"]), abs(float(e["y"]) - y)))
            values |= {f"{name}_dx": nearest["x"] - x, f"{name}_dy": nearest["y"] - y}
    return {name: float(value) for name, value in values.items()}


BY_LOOPS = [
    *("coin_dx", "coin_dy", "progress", "wall_dx", "wall_height", "wall_top_dy", "drop_dx"),
    *("drop_height", "lava_dx", "lava_dy", "height_above_ground"),
    *("enemy_dx", "enemy_dy", "saw_dx", "saw_dy", "crate_dx", "crate_dy"),
]


@pytest.mark.parametrize("mode", ["easy", "hard"])
def test_variables_equal_slow_loops_on_many_levels(make_env, mode) -> None:
    env = make_env("coinrun", 40, distribution_mode=mode)
    rng = np.random.default_rng(0)
    seen: dict[str, int] = dict.fromkeys(BY_LOOPS, 0)
    for _ in range(2):
        for state in states_of(env):
            found, slow = coinrun_variables(state), slow_variables(state)
            for name in BY_LOOPS:
                assert found[name] == pytest.approx(slow[name], abs=1e-5, nan_ok=True), name
                seen[name] += not isnan(slow[name])
        for _ in range(25):
            env.send(rng.choice([7, 8], 40))
            env.observe()
    assert min(seen.values()) > 0


def test_on_ground_is_what_the_game_finds_at_the_next_step(make_env) -> None:
    env = make_env("coinrun", 48)
    rng = np.random.default_rng(0)
    outcomes = {(False, False): 0, (True, True): 0}
    for _ in range(60):
        before = states_of(env)
        env.send(rng.integers(0, 9, 48))
        for state, after in zip(before, states_of(env), strict=True):
            if not after.step.done:
                key = (bool(coinrun_variables(state)["on_ground"]), after.coinrun.has_support)
                outcomes[key] = outcomes.get(key, 0) + 1
    assert set(outcomes) == {(False, False), (True, True)}
    assert min(outcomes.values()) > 200


def test_distances_change_by_the_velocities(make_env) -> None:
    env = make_env("coinrun", 16)
    for _ in range(5):
        before = table_of(states_of(env))
        env.send(np.full(16, 7))
        after = table_of(states_of(env))
        column = {name: index for index, name in enumerate(VARIABLES)}
        moved = after[:, column["agent_x"]] - before[:, column["agent_x"]]
        np.testing.assert_allclose(moved, after[:, column["agent_vx"]], atol=1e-5)
        nearer = before[:, column["coin_dx"]] - after[:, column["coin_dx"]]
        np.testing.assert_allclose(nearer, moved, atol=1e-5)
        assert (after[:, column["step"]] == before[:, column["step"]] + 1).all()


def test_an_episode_that_reaches_the_coin_ends_with_progress_near_one(make_env) -> None:
    env = make_env("coinrun", 32)
    rng = np.random.default_rng(0)
    num_complete = 0
    progress = np.zeros(32)
    for _ in range(250):
        progress = table_of(states_of(env))[:, list(VARIABLES).index("progress")]
        env.send(np.where(rng.random(32) < 0.7, 8, 7))
        complete = env.observe().level_complete
        num_complete += complete.sum()
        # The agent touches the coin a cell before its centre, and moves half a cell in a step.
        assert (progress[complete] > 0.7).all()
    assert num_complete > 5
    assert (progress >= 0).all()


def test_all_steps_at_once_are_as_one_by_one(make_env) -> None:
    env = make_env("coinrun", 6, seed=3)
    rng = np.random.default_rng(0)
    episodes: list[list[GameState]] = [[] for _ in range(6)]
    for _ in range(60):
        for episode, state in zip(episodes, states_of(env), strict=True):
            if not episode or not state.step.done:
                episode.append(state)
        env.send(rng.choice([4, 5, 7, 8], 6))
        env.observe()
    for episode in episodes:
        same_level = [s for s in episode if s.step.level_seed == episode[0].step.level_seed]
        columns = coinrun_columns(steps_of_states(same_level))
        assert list(columns) == list(VARIABLES)
        np.testing.assert_array_equal(np.stack(list(columns.values()), 1), table_of(same_level))


def test_the_level_begins_where_progress_is_counted_from(known_level) -> None:
    assert known_level.agent["x"] == START_X
    assert known_level.camera.visibility == 2 * SIGHT


def test_progress_counts_from_the_start_that_is_given(known_level) -> None:
    moved = with_agent_at(known_level, 15, feet=9)
    assert coinrun_variables(moved, start_x=15)["progress"] == 0
    assert coinrun_variables(moved, start_x=1.5)["progress"] == pytest.approx(0.5)


def test_units_are_those_that_the_documentation_names() -> None:
    units = {variable.unit for variable in VARIABLES.values()}
    assert units == {"cells", "cells/step", "steps", "0 or 1", "1"}
    assert all(variable.unit == "cells" for name, variable in VARIABLES.items() if "_d" in name)


def test_states_of_other_games_are_refused(make_env) -> None:
    state = states_of(make_env("jumper", 1))[0]
    with pytest.raises(StateFormatError, match="found jumper, expected coinrun"):
        coinrun_variables(state)


def test_the_documentation_has_the_table_of_variables() -> None:
    page = (Path(__file__).parents[2] / "docs" / "game_state.md").read_text(encoding="utf-8")
    listed = [line for line in page.splitlines() if line.startswith("| `")]
    expected = [f"| `{name}` | {v.unit} | {v.meaning} |" for name, v in VARIABLES.items()]
    assert listed[-len(expected) :] == expected
