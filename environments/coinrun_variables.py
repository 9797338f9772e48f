"""What a CoinRun level asks of the agent at each step, as named numbers.

All are computed from one saved state. "Ahead" means to the right, where the coin is; the nearest
thing ahead is the first one to the right of the agent's centre, wherever it is vertically. The
agent sees 6.5 cells to each side of itself: what lies further away has a distance here but no
pixels in its frame.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from environments.procgen_state import GameState

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


@dataclass(frozen=True)
class Variable:
    """One column of the table."""

    unit: str
    """`cells`, `cells/step`, `steps`, `0 or 1` or `1` (a pure number)."""
    meaning: str


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


def coinrun_variables(state: GameState, start_x: float = START_X) -> dict[str, float]:
    """The variables of one CoinRun state, by the names of `VARIABLES`.

    Args:
        state: a parsed state of CoinRun.
        start_x: where `progress` is 0, in cells.

    Raises:
        StateFormatError: a state of another game.
    """
    level = _level_of(state.grid)
    values = _agent_variables(state, level)
    x, y = values["agent_x"], values["agent_y"]
    feet = y - float(state.agent["ry"])
    values |= _coin_variables(x, y, level, start_x)
    values |= _terrain_variables(x, feet, level)
    values |= _entity_variables(state)
    values |= _lava_variables(x, y, level)
    return {name: values[name] for name in VARIABLES}


def coinrun_table(states: Iterable[GameState], start_x: float = START_X) -> NDArray[np.float32]:
    """(T, number of variables) of T states; columns by `VARIABLES`, else as `coinrun_variables`."""
    rows = [tuple(coinrun_variables(state, start_x).values()) for state in states]
    return np.array(rows, np.float32).reshape(len(rows), len(VARIABLES))


@dataclass(frozen=True, eq=False)
class _Level:
    """What a grid says for all steps of a level."""

    wall: NDArray[np.bool_]
    """(H, W)"""
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
        coin_x=coin_x,
        coin_y=coin_y,
        terrain=terrain,
        rises=np.flatnonzero(change > 0) + 1,
        # Column 0 is the level's left edge: the agent starts at its foot.
        drops=np.flatnonzero(change[1:] < 0) + 2,
        lava_x=lava_columns.astype(np.float64) + 0.5,
        lava_y=lava_top.astype(np.float64) + 0.5,
    )


def _centre_of_coin(grid: NDArray[np.int32]) -> tuple[float, float]:
    rows, columns = np.nonzero(grid == COIN)
    if not len(rows):
        return _NAN, _NAN
    return float(columns[0]) + 0.5, float(rows[0]) + 0.5


def _agent_variables(state: GameState, level: _Level) -> dict[str, float]:
    agent, coinrun = state.agent, state.coinrun
    x, y, vy = float(agent["x"]), float(agent["y"]), float(agent["vy"])
    feet, half_width = y - float(agent["ry"]), float(agent["rx"])
    on_wall = _rests_on_wall(level, x, feet, half_width)
    return {
        "step": state.step.step,
        "agent_x": x,
        "agent_y": y,
        "agent_vx": float(agent["vx"]),
        "agent_vy": vy,
        # The game's own `has_support` tells of the frame before.
        "on_ground": vy == 0 and (on_wall or coinrun.on_crate),
        "on_crate": coinrun.on_crate,
        "facing_right": coinrun.facing_right,
        "height_above_ground": _height_above_ground(level, x, feet),
    }


def _rests_on_wall(level: _Level, x: float, feet: float, half_width: float) -> bool:
    surface = round(feet)
    if surface < 1 or abs(feet - surface) > _TOUCHING:
        return False
    # The hair's breadth keeps walls out that the agent only stands beside.
    first, last = int(x - half_width + 1e-3), int(x + half_width - 1e-3)
    return bool(level.wall[surface - 1, first : last + 1].any())


def _height_above_ground(level: _Level, x: float, feet: float) -> float:
    below = level.wall[: max(int(feet + _TOUCHING), 0), int(x)]
    surfaces = np.flatnonzero(below) + 1
    return feet - float(surfaces[-1]) if len(surfaces) else _NAN


def _coin_variables(x: float, y: float, level: _Level, start_x: float) -> dict[str, float]:
    dx, dy = level.coin_x - x, level.coin_y - y
    return {
        "coin_dx": dx,
        "coin_dy": dy,
        "coin_distance": float(np.hypot(dx, dy)),
        "progress": (x - start_x) / (level.coin_x - start_x),
    }


def _terrain_variables(x: float, feet: float, level: _Level) -> dict[str, float]:
    names = ("wall_dx", "wall_height", "wall_top_dy", "drop_dx", "drop_height")
    values: dict[str, float] = dict.fromkeys(names, _NAN)
    rise = _first_beyond(level.rises, x)
    if rise is not None:
        top, before = int(level.terrain[rise]), int(level.terrain[rise - 1])
        values |= {"wall_dx": rise - x, "wall_height": top - before, "wall_top_dy": top - feet}
    drop = _first_beyond(level.drops, x)
    if drop is not None:
        depth = int(level.terrain[drop - 1]) - int(level.terrain[drop])
        values |= {"drop_dx": drop - x, "drop_height": depth}
    return values


def _first_beyond(columns: NDArray[np.int64], x: float) -> int | None:
    index = int(np.searchsorted(columns, x, side="right"))
    return int(columns[index]) if index < len(columns) else None


@dataclass(frozen=True)
class _Neighbour:
    dx: float = _NAN
    dy: float = _NAN
    vx: float = _NAN


def _entity_variables(state: GameState) -> dict[str, float]:
    entities, agent = state.entities, state.agent
    # In float64, as the positions of the coin and the terrain.
    dx = entities["x"].astype(np.float64) - float(agent["x"])
    dy = entities["y"].astype(np.float64) - float(agent["y"])
    # Next along x; of several in one place, such as a pile of crates, the nearest in height.
    order = np.where(dx >= 0, dx + 1e-6 * np.abs(dy), np.inf)

    def nearest_ahead(kind: int) -> _Neighbour:
        candidates = np.where(entities["type"] == kind, order, np.inf)
        index = int(np.argmin(candidates))
        if np.isinf(candidates[index]):
            return _Neighbour()
        return _Neighbour(float(dx[index]), float(dy[index]), float(entities["vx"][index]))

    enemy, saw, crate = nearest_ahead(ENEMY), nearest_ahead(SAW), nearest_ahead(CRATE)
    return {
        **{"enemy_dx": enemy.dx, "enemy_dy": enemy.dy, "enemy_vx": enemy.vx},
        **{"saw_dx": saw.dx, "saw_dy": saw.dy, "crate_dx": crate.dx, "crate_dy": crate.dy},
    }


def _lava_variables(x: float, y: float, level: _Level) -> dict[str, float]:
    index = int(np.searchsorted(level.lava_x, x))
    if index == len(level.lava_x):
        return {"lava_dx": _NAN, "lava_dy": _NAN}
    return {"lava_dx": float(level.lava_x[index]) - x, "lava_dy": float(level.lava_y[index]) - y}
