"""What the game itself knew at each step of an episode, in the form in which it is kept."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from environments.game_steps import CAMERA_COLUMNS, GameSteps, StateRecorder
from environments.game_variables import game_variables, variable_table
from environments.procgen_state import ENTITY_FIELDS, Camera, find_parts
from environments.protocol import EnvironmentSpec

ENTITY_COLUMNS = (
    *("type", "x", "y", "vx", "vy", "rx", "ry", "rotation"),
    *("image_type", "image_theme", "is_reflected", "use_abs_coords"),
    *("alpha", "health", "life_time", "will_erase"),
)
"""Columns of a trace's entities: of the 31 numbers those that say what is there and where."""
_KEPT = [ENTITY_FIELDS.index(name) for name in ENTITY_COLUMNS]


@dataclass(frozen=True)
class GameTables:
    """Names of the columns that traces of one game have."""

    variables: tuple[str, ...]
    entity_columns: tuple[str, ...] = ENTITY_COLUMNS
    camera_columns: tuple[str, ...] = CAMERA_COLUMNS


@dataclass(frozen=True, eq=False)
class GameTrace:
    """The game's own account of T steps; row t tells of the moment that `obs[t]` shows."""

    variables: NDArray[np.float32]
    """(T, number of variables) by `GameTables.variables`; NaN where there is no such thing."""
    camera: NDArray[np.float32]
    """(T, 8) by `CAMERA_COLUMNS`."""
    num_entities: NDArray[np.int32]
    """(T,) at least 1: the first is the agent."""
    entities: NDArray[np.float32]
    """(sum of `num_entities`, 16) by `ENTITY_COLUMNS`, step after step."""
    num_grid_changes: NDArray[np.int32]
    """(T,) cells that differ from the step before; 0 at the first."""
    grid_changes: NDArray[np.int32]
    """(sum of `num_grid_changes`, 3) row, column and new type, step after step."""
    grid: NDArray[np.int32]
    """(H, W) cell types at the first step; row 0 is the bottom."""

    @cached_property
    def _entity_stops(self) -> NDArray[np.int64]:
        return np.cumsum(self.num_entities, dtype=np.int64)

    def entities_at(self, row: int) -> NDArray[np.float32]:
        """(number of entities, 16) at one step."""
        stop = int(self._entity_stops[row])
        return self.entities[stop - int(self.num_entities[row]) : stop]

    def grid_at(self, row: int) -> NDArray[np.int32]:
        """(H, W) cell types at one step."""
        grid = self.grid.copy()
        for y, x, cell in self.grid_changes[: int(self.num_grid_changes[: row + 1].sum())]:
            grid[y, x] = cell
        return grid

    def camera_at(self, row: int) -> Camera:
        """What the frame of one step shows."""
        return Camera(*self.camera[row].tolist())


def game_tables(environment: EnvironmentSpec) -> GameTables | None:
    """The columns of an environment's traces; None for one that does not tell its state."""
    if environment.adapter != "procgen":
        return None
    return GameTables(variables=tuple(game_variables(environment.name)))


_TYPICAL_NUM_ENTITIES = {"bossfight": 70, "fruitbot": 50}
_TYPICAL_NUM_ENTITIES_ELSEWHERE = 8


def typical_num_entities(game: str) -> int:
    """About how many entities a state of a game has, to estimate what room they take."""
    return _TYPICAL_NUM_ENTITIES.get(game, _TYPICAL_NUM_ENTITIES_ELSEWHERE)


class GameTracer:
    """Follows one episode by its saved states."""

    def __init__(self) -> None:
        self._recorder = StateRecorder()

    def append(self, saved: bytes) -> None:
        """Add the state saved when the frame of the next row was shown."""
        self._recorder.append(find_parts(saved))

    def trace(self) -> GameTrace:
        """What was followed so far, at least one step."""
        return trace_of_steps(self._recorder.steps())


def trace_of_steps(steps: GameSteps) -> GameTrace:
    """What is kept of the states of an episode."""
    changes = steps.grid_changes
    return GameTrace(
        variables=variable_table(steps),
        camera=steps.camera,
        num_entities=steps.num_entities,
        entities=np.ascontiguousarray(steps.entities[:, _KEPT]),
        num_grid_changes=np.bincount(changes.step, minlength=len(steps)).astype(np.int32),
        grid_changes=changes.cell,
        grid=steps.grid,
    )
