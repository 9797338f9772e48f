"""The states of an episode as arrays over its steps, which the variables are computed from."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from environments.procgen_state import (
    ENTITY_DTYPE,
    ENTITY_FIELDS,
    FLAG_TAILS,
    Camera,
    GameState,
    SavedParts,
    entity_table,
    grid_cells,
)

CAMERA_COLUMNS = tuple(Camera.__dataclass_fields__)
"""Columns of a camera table."""


@dataclass(frozen=True)
class Variable:
    """One column of the table of variables."""

    unit: str
    """`cells`, `cells/step`, `radians`, `steps`, `0 or 1` or `1` (a pure number)."""
    meaning: str


@dataclass(frozen=True, eq=False)
class GridChanges:
    """Cells of a level's grid that became something else, in the order in which they did."""

    step: NDArray[np.int64]
    """(M,) first step that shows the new cell; ascends."""
    cell: NDArray[np.int32]
    """(M, 3) row, column, new type."""


@dataclass(frozen=True, eq=False)
class GameSteps:
    """T successive states of one game and one level."""

    game: str
    step: NDArray[np.int64]
    """(T,) decisions taken before."""
    num_entities: NDArray[np.int32]
    """(T,) at least 1: the first is the agent."""
    entities: NDArray[np.float32]
    """(sum of `num_entities`, 31) by `ENTITY_FIELDS`, step after step."""
    camera: NDArray[np.float32]
    """(T, 8) by `CAMERA_COLUMNS`."""
    flags: NDArray[np.bool_]
    """(T, number of flags) by `FLAG_TAILS` of the game; no columns for a game without any."""
    grid: NDArray[np.int32]
    """(H, W) at the first step."""
    grid_changes: GridChanges

    def __len__(self) -> int:
        return len(self.step)

    @cached_property
    def first_entity(self) -> NDArray[np.int64]:
        """(T,) row of each step's agent in `entities`."""
        return np.cumsum(self.num_entities, dtype=np.int64) - self.num_entities

    @cached_property
    def step_of_entity(self) -> NDArray[np.int64]:
        """(N,) index of the step that each row of `entities` belongs to."""
        return np.repeat(np.arange(len(self)), self.num_entities)

    def column(self, name: str) -> NDArray[np.float32]:
        """(N,) one field of all entities."""
        return self.entities[:, ENTITY_FIELDS.index(name)]

    def agent(self, name: str) -> NDArray[np.float64]:
        """(T,) one field of the agent."""
        return self.column(name)[self.first_entity].astype(np.float64)

    def flag(self, name: str) -> NDArray[np.bool_]:
        """(T,) what the game's own tail says."""
        return self.flags[:, list(FLAG_TAILS[self.game]).index(name)]


def steps_of_states(states: Iterable[GameState]) -> GameSteps:
    """Put states of one game and level, at least one of them, into arrays."""
    recorder = StateRecorder()
    for state in states:
        recorder.append(state.parts)
    return recorder.steps()


class StateRecorder:
    """Collects the states of an episode, and of the grid only what changes."""

    def __init__(self) -> None:
        self._last: SavedParts | None = None
        self._step: list[int] = []
        self._entities: list[bytes] = []
        self._camera: list[tuple[float, ...]] = []
        self._flags: list[tuple[bool, ...]] = []
        self._first_grid: NDArray[np.int32] | None = None
        self._changes: list[tuple[int, NDArray[np.int32]]] = []

    def append(self, parts: SavedParts) -> None:
        """Add the state of the next step."""
        self._follow_grid(parts)
        self._last = parts
        self._step.append(parts.num_steps)
        self._entities.append(parts.entities)
        self._camera.append(parts.camera)
        self._flags.append(parts.flags)

    def _follow_grid(self, parts: SavedParts) -> None:
        if self._last is None:
            self._first_grid = grid_cells(parts)
            return
        if parts.grid == self._last.grid and parts.grid_shape == self._last.grid_shape:
            return
        before, grid = grid_cells(self._last), grid_cells(parts)
        if grid.shape != before.shape:
            raise ValueError(f"grid: found {grid.shape}, expected {before.shape}")
        rows, columns = np.nonzero(grid != before)
        cells = np.stack([rows, columns, grid[rows, columns]], axis=1).astype(np.int32)
        self._changes.append((len(self._step), cells))

    def steps(self) -> GameSteps:
        """What was collected; raises `ValueError` where nothing was."""
        if self._last is None or self._first_grid is None:
            raise ValueError("no state was collected")
        cells = [cell for _, cell in self._changes]
        counts = np.array([len(cell) for cell in cells], np.int64)
        changed = np.repeat(np.array([step for step, _ in self._changes], np.int64), counts)
        num_entities = np.array([len(table) for table in self._entities]) // ENTITY_DTYPE.itemsize
        return GameSteps(
            game=self._last.game,
            step=np.array(self._step, np.int64),
            num_entities=num_entities.astype(np.int32),
            entities=entity_table(b"".join(self._entities)),
            camera=np.array(self._camera, np.float32),
            flags=np.array(self._flags, np.bool_).reshape(len(self._step), -1),
            grid=self._first_grid,
            grid_changes=GridChanges(
                step=changed,
                cell=np.concatenate([np.zeros((0, 3), np.int32), *cells]),
            ),
        )


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest thing of a kind at each of T steps; NaN where there is none."""

    dx: NDArray[np.float64]
    """(T,) cells, to the right of the agent's centre."""
    dy: NDArray[np.float64]
    """(T,) cells, above it."""
    vx: NDArray[np.float64]
    """(T,) its own velocity."""
    vy: NDArray[np.float64]


def nearest_entity(
    steps: GameSteps, chosen: NDArray[np.bool_], distance: NDArray[np.float64]
) -> Nearest:
    """The chosen entity of least distance at each step; of equal ones the first in the table.

    Args:
        steps: T steps with N entities in all.
        chosen: (N,) which entities count.
        distance: (N,) what is least for the nearest.
    """
    rows = np.flatnonzero(chosen)
    rows = rows[np.lexsort((distance[rows], steps.step_of_entity[rows]))]
    owners, first = np.unique(steps.step_of_entity[rows], return_index=True)
    rows = rows[first]
    values = np.full((4, len(steps)), np.nan)
    values[0, owners] = steps.column("x")[rows] - steps.agent("x")[owners]
    values[1, owners] = steps.column("y")[rows] - steps.agent("y")[owners]
    values[2, owners], values[3, owners] = steps.column("vx")[rows], steps.column("vy")[rows]
    return Nearest(*values)


def offsets_from_agent(steps: GameSteps) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) and (N,) cells by which every entity lies to the right of its step's agent and above."""
    owner = steps.step_of_entity
    dx = steps.column("x").astype(np.float64) - steps.agent("x")[owner]
    dy = steps.column("y").astype(np.float64) - steps.agent("y")[owner]
    return dx, dy
