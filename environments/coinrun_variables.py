"""What a CoinRun level asks of the agent at each step, as named numbers.

All are computed from one saved state. "Ahead" means to the right, where the coin is; the nearest
thing ahead is the first one to the right of the agent's centre, wherever it is vertically. The
agent sees 6.5 cells to each side of itself: what lies further away has a distance here but no
pixels in its frame.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from environments.game_steps import (
    GameSteps,
    Variable,
    nearest_entity,
    offsets_from_agent,
    steps_of_states,
)
from environments.procgen_state import GameState, StateFormatError

COIN, LAVA, WALL = 1, (17, 18), (15, 16)
"""Cell types of the grid; 100 is space, and 19 keeps enemies back without being drawn."""
ENEMY, SAW, CRATE = 5, 2, 20
"""Entity types; 0 is the agent, and 59 dust behind enemies, which touches nothing."""

START_X = 1.5
"""Cells: where the agent's centre is at the first frame of every level."""
SIGHT = 6.5
"""Cells from the agent's centre to the frame's edges."""

_TOUCHING = 0.02
"""Cells within which the agent's feet count as resting on a wall."""


VARIABLES: dict[str, Variable] = {
    "step": Variable("steps", "decisions taken in this episode before this frame"),
    "agent_x": Variable("cells", "agent's centre, from the level's left edge"),
    "agent_y": Variable("cells", "agent's centre, from the level's lower edge"),
    "agent_vx": Variable("cells/step", "agent's velocity to the right"),
    "agent_vy": Variable("cells/step", "agent's velocity upwards"),
    "on_ground": Variable("0 or 1", "the agent rests on a wall or a crate, so it can jump"),
    "on_crate": Variable("0 or 1", "the agent rests on a crate"),
    "facing_right": Variable("0 or 1", "the last action with a side pointed to the right"),
    "height_above_ground": Variable(
        "cells", "agent's feet above the first wall below its centre; crates and lava left out"
    ),
    "coin_dx": Variable("cells", "coin's centre to the right of the agent's"),
    "coin_dy": Variable("cells", "coin's centre above the agent's"),
    "coin_distance": Variable("cells", "straight line between the two centres"),
    "progress": Variable("1", "share of the way from the start to the coin, along x"),
    "wall_dx": Variable("cells", "agent's centre to the face of the next rise of the terrain"),
    "wall_height": Variable("cells", "height of that rise over the terrain before it"),
    "wall_top_dy": Variable("cells", "top of that rise above the agent's feet"),
    "drop_dx": Variable("cells", "agent's centre to the next fall of the terrain"),
    "drop_height": Variable("cells", "depth of that fall, to the wall below: through any lava"),
    "enemy_dx": Variable("cells", "nearest enemy ahead: its centre to the right of the agent's"),
    "enemy_dy": Variable("cells", "that enemy's centre above the agent's"),
    "enemy_vx": Variable("cells/step", "that enemy's own velocity to the right"),
    "saw_dx": Variable("cells", "nearest saw ahead: its centre to the right of the agent's"),
    "saw_dy": Variable("cells", "that saw's centre above the agent's"),
    "lava_dx": Variable("cells", "nearest lava ahead: its cell's centre right of the agent's"),
    "lava_dy": Variable("cells", "centre of the lava's top cell there above the agent's"),
    "crate_dx": Variable("cells", "nearest crate ahead: its centre to the right of the agent's"),
    "crate_dy": Variable("cells", "that crate's centre above the agent's"),
}
"""Columns of the table, in order. All are NaN where there is no such thing.

The terrain of a column is the wall that stands on the level's lower edge without a gap; platforms
that float in a pit are no part of it. It is followed as far as the coin's column.
"""

_NAN = float("nan")


def coinrun_columns(steps: GameSteps, start_x: float = START_X) -> dict[str, NDArray[np.float64]]:
    """(T,) variables of T steps of one CoinRun level, by the names of `VARIABLES`.

    Args:
        steps: states of CoinRun.
        start_x: where `progress` is 0, in cells.

    Raises:
        StateFormatError: states of another game.
    """
    if steps.game != "coinrun":
        raise StateFormatError(
            f"saved state, name of the game: found {steps.game}, expected coinrun"
        )
    level = _level_of(steps.grid)
    feet = steps.agent("y") - steps.agent("ry")
    values = {
        **_agent_variables(steps, level, feet),
        **_coin_variables(steps, level, start_x),
        **_terrain_variables(steps.agent("x"), feet, level),
        **_entity_variables(steps),
        **_lava_variables(steps, level),
    }
    return {name: values[name] for name in VARIABLES}


def coinrun_variables(state: GameState, start_x: float = START_X) -> dict[str, float]:
    """The variables of one state; otherwise as `coinrun_columns`."""
    columns = coinrun_columns(steps_of_states([state]), start_x)
    return {name: float(column[0]) for name, column in columns.items()}


@dataclass(frozen=True, eq=False)
class _Level:
    """What a grid says for all steps of a level."""

    wall: NDArray[np.bool_]
    """(H, W)"""
    surface_below: NDArray[np.int64]
    """(H + 1, W) height of the highest wall's top below each row; 0 where there is no wall."""
    coin_x: float
    coin_y: float
    terrain: NDArray[np.int64]
    """(W,) height of the wall that stands on the lower edge."""
    rises: NDArray[np.int64]
    """Columns that are higher than the one to their left, up to the coin's."""
    drops: NDArray[np.int64]
    """Columns that are lower than the one to their left."""
    lava_x: NDArray[np.float64]
    """Centres of the columns with lava."""
    lava_y: NDArray[np.float64]
    """Centre of the highest lava cell of each."""


def _level_of(grid: NDArray[np.int32]) -> _Level:
    return _read_level(grid.tobytes(), grid.shape[0])


@lru_cache(maxsize=256)
def _read_level(cells: bytes, height: int) -> _Level:
    """The grid stays the same all through a level, so that each is read once."""
    grid = np.frombuffer(cells, np.int32).reshape(height, -1)
    wall = np.isin(grid, WALL)
    coin_x, coin_y = _centre_of_coin(grid)
    # The first gap of each column; a row of gaps on top ends the columns that are wall all over.
    terrain = np.argmin(np.vstack([wall, np.zeros_like(wall[:1])]), axis=0)
    last = grid.shape[1] - 1 if np.isnan(coin_x) else int(coin_x)
    change = np.diff(terrain[: last + 1])
    lava = np.isin(grid, LAVA)
    lava_columns = np.flatnonzero(lava.any(axis=0))
    lava_top = height - 1 - np.argmax(lava[::-1], axis=0)[lava_columns]
    return _Level(
        wall=wall,
        surface_below=_surface_below(wall),
        coin_x=coin_x,
        coin_y=coin_y,
        terrain=terrain,
        rises=np.flatnonzero(change > 0) + 1,
        # Column 0 is the level's left edge: the agent starts at its foot.
        drops=np.flatnonzero(change[1:] < 0) + 2,
        lava_x=lava_columns.astype(np.float64) + 0.5,
        lava_y=lava_top.astype(np.float64) + 0.5,
    )


def _surface_below(wall: NDArray[np.bool_]) -> NDArray[np.int64]:
    tops = np.where(wall, np.arange(1, len(wall) + 1)[:, None], 0)
    return np.maximum.accumulate(np.vstack([np.zeros_like(tops[:1]), tops]), axis=0)


def _centre_of_coin(grid: NDArray[np.int32]) -> tuple[float, float]:
    rows, columns = np.nonzero(grid == COIN)
    if not len(rows):
        return _NAN, _NAN
    return float(columns[0]) + 0.5, float(rows[0]) + 0.5


def _agent_variables(
    steps: GameSteps, level: _Level, feet: NDArray[np.float64]
) -> dict[str, NDArray[Any]]:
    x, vy, on_crate = steps.agent("x"), steps.agent("vy"), steps.flag("on_crate")
    return {
        "step": steps.step,
        "agent_x": x,
        "agent_y": steps.agent("y"),
        "agent_vx": steps.agent("vx"),
        "agent_vy": vy,
        # The game's own `has_support` tells of the frame before.
        "on_ground": (vy == 0) & (_rests_on_wall(level, x, feet, steps.agent("rx")) | on_crate),
        "on_crate": on_crate,
        "facing_right": steps.flag("facing_right"),
        "height_above_ground": _height_above_ground(level, x, feet),
    }


def _rests_on_wall(
    level: _Level, x: NDArray[np.float64], feet: NDArray[np.float64], half_width: NDArray[Any]
) -> NDArray[np.bool_]:
    surface = np.rint(feet).astype(np.int64)
    touching = (surface >= 1) & (np.abs(feet - surface) <= _TOUCHING)
    row = np.clip(surface - 1, 0, level.wall.shape[0] - 1)
    # The hair's breadth keeps walls out that the agent only stands beside. The agent is at most a
    # cell wide, so that it stands on no more than two.
    left, right = (_column(level, x + side * (half_width - 1e-3)) for side in (-1, 1))
    return touching & (level.wall[row, left] | level.wall[row, right])


def _column(level: _Level, x: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.clip(x.astype(np.int64), 0, level.wall.shape[1] - 1)


def _height_above_ground(
    level: _Level, x: NDArray[np.float64], feet: NDArray[np.float64]
) -> NDArray[np.float64]:
    rows_below = np.clip((feet + _TOUCHING).astype(np.int64), 0, level.wall.shape[0])
    surface = level.surface_below[rows_below, _column(level, x)]
    return np.where(surface > 0, feet - surface, np.nan)


def _coin_variables(
    steps: GameSteps, level: _Level, start_x: float
) -> dict[str, NDArray[np.float64]]:
    dx, dy = level.coin_x - steps.agent("x"), level.coin_y - steps.agent("y")
    return {
        "coin_dx": dx,
        "coin_dy": dy,
        "coin_distance": np.hypot(dx, dy),
        "progress": (steps.agent("x") - start_x) / (level.coin_x - start_x),
    }


def _terrain_variables(
    x: NDArray[np.float64], feet: NDArray[np.float64], level: _Level
) -> dict[str, NDArray[np.float64]]:
    rise, drop = _first_beyond(level.rises, x), _first_beyond(level.drops, x)
    terrain = np.append(level.terrain.astype(np.float64), np.nan)
    top = terrain[rise]
    return {
        "wall_dx": np.where(np.isnan(top), np.nan, rise - x),
        "wall_height": top - terrain[rise - 1],
        "wall_top_dy": top - feet,
        "drop_dx": np.where(np.isnan(terrain[drop]), np.nan, drop - x),
        "drop_height": terrain[drop - 1] - terrain[drop],
    }


def _first_beyond(columns: NDArray[np.int64], x: NDArray[np.float64]) -> NDArray[np.int64]:
    """First of the ascending columns to the right of each x; −1, the last index, without one."""
    return np.append(columns, -1)[np.searchsorted(columns, x, side="right")]


def _entity_variables(steps: GameSteps) -> dict[str, NDArray[np.float64]]:
    dx, dy = offsets_from_agent(steps)
    # Next along x; of several in one place, such as a pile of crates, the nearest in height.
    order, kind = dx + 1e-6 * np.abs(dy), steps.column("type")
    enemy, saw, crate = (
        nearest_entity(steps, (kind == wanted) & (dx >= 0), order) for wanted in (ENEMY, SAW, CRATE)
    )
    return {
        **{"enemy_dx": enemy.dx, "enemy_dy": enemy.dy, "enemy_vx": enemy.vx},
        **{"saw_dx": saw.dx, "saw_dy": saw.dy, "crate_dx": crate.dx, "crate_dy": crate.dy},
    }


def _lava_variables(steps: GameSteps, level: _Level) -> dict[str, NDArray[np.float64]]:
    index = np.searchsorted(level.lava_x, steps.agent("x"))
    return {
        "lava_dx": np.append(level.lava_x, np.nan)[index] - steps.agent("x"),
        "lava_dy": np.append(level.lava_y, np.nan)[index] - steps.agent("y"),
    }
