"""A small deterministic world for tests: quick, and with a known answer to every question.

Each level is a 4 × 4 grid with a start, a goal and a hazard. The player moves in eight directions
with Procgen's action numbers. Entering the goal pays 10 and completes the level, entering the
hazard ends the episode, and so does the 24th decision. Everything is a pure function of the level
seed and the actions; a bar on the top row of the frame shows the number of decisions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from environments.procgen_adapter import MOVES, NULL_ACTION
from environments.protocol import TRAINING_LEVELS, EnvironmentSpec, Transition
from experiment.randomness import keyed_uniform

GRID_SIZE = 4
TIME_LIMIT = 24
GOAL_REWARD = 10.0
DEFAULT_FRAME_SIZE = 64

GOAL_COLOUR = (255, 220, 0)
HAZARD_COLOUR = (220, 0, 0)
PLAYER_COLOUR = (255, 255, 255)
BAR_COLOUR = (0, 255, 0)

_MOVE_X = np.array([-1, -1, -1, 0, 0, 0, 1, 1, 1] + [0] * 6)
_MOVE_Y = np.array([1, 0, -1, 1, 0, -1, 1, 0, -1] + [0] * 6)


def fake_spec(frame_size: int = DEFAULT_FRAME_SIZE) -> EnvironmentSpec:
    """Describe the fake world with square frames of `frame_size` pixels, a multiple of 4."""
    return EnvironmentSpec(
        adapter="fake",
        name="fake",
        obs_shape=(frame_size, frame_size, 3),
        num_actions=15,
        action_names=MOVES + tuple(f"null{action}" for action in range(9, 15)),
        null_action=NULL_ACTION,
        time_limit=TIME_LIMIT,
    )


@dataclass
class _Level:
    """Cells are (x, y), counted from the top left."""

    seed: int
    start: tuple[int, int]
    goal: tuple[int, int]
    hazard: tuple[int, int]
    background: tuple[int, int, int]


def _make_level(seed: int) -> _Level:
    uniform = keyed_uniform(0, "fake-level", seed, size=GRID_SIZE**2 + 3)
    cells = [divmod(int(cell), GRID_SIZE) for cell in np.argsort(uniform[3:])[:3]]
    red, green, blue = (int(32 + 96 * u) for u in uniform[:3])
    return _Level(seed, *cells, background=(red, green, blue))


class FakeEnvironment:
    """N slots of the fake world; see `VectorEnvironment` for the methods."""

    def __init__(
        self,
        spec: EnvironmentSpec,
        num_envs: int,
        seed: int = 0,
        start_level: int = 0,
        num_levels: int = 0,
    ):
        self.spec = spec
        self.num_envs = num_envs
        self._pending: NDArray[np.integer] | None = None
        # What the next level is drawn from; saved and restored with the rest.
        self._seed = np.full(num_envs, seed)
        self._lowest_level = np.full(num_envs, start_level)
        self._num_levels = np.full(num_envs, num_levels or TRAINING_LEVELS)
        self._stream = np.arange(num_envs)
        self._episode = np.zeros(num_envs, np.int64)

        self._x = np.zeros(num_envs, np.int64)
        self._y = np.zeros(num_envs, np.int64)
        self._length = np.zeros(num_envs, np.int64)
        self._reward = np.zeros(num_envs, np.float32)
        self._first = np.ones(num_envs, bool)
        self._complete = np.zeros(num_envs, bool)
        self._truncated = np.zeros(num_envs, bool)
        self._levels = [_make_level(0)] * num_envs
        for index in range(num_envs):
            self._begin(index, self._next_level(index))

    def observe(self) -> Transition:
        """See `VectorEnvironment.observe`."""
        if self._pending is not None:
            self._step(self._pending)
            self._pending = None
        return Transition(
            obs=np.stack([self._draw(index) for index in range(self.num_envs)]),
            reward=self._reward.copy(),
            first=self._first.copy(),
            level_seed=np.array([level.seed for level in self._levels], np.int64),
            level_complete=self._complete.copy(),
            truncated=self._truncated.copy(),
        )

    def send(self, actions: NDArray[np.integer]) -> None:
        """See `VectorEnvironment.send`."""
        self._finish_step()
        self._pending = np.array(actions)

    def start_level(self, indices: Sequence[int], level_seeds: Sequence[int]) -> None:
        """See `VectorEnvironment.start_level`."""
        self._finish_step()
        for index, level_seed in zip(indices, level_seeds, strict=True):
            self._begin(index, int(level_seed))
            self._reward[index] = 0
            self._complete[index] = self._truncated[index] = False

    def get_state(self, indices: Sequence[int] | None = None) -> list[bytes]:
        """See `VectorEnvironment.get_state`."""
        self._finish_step()
        columns = [*self._columns(), np.array([level.seed for level in self._levels])]
        rows = np.stack(columns, axis=1).astype(np.float64)
        return [row.tobytes() for row in (rows if indices is None else rows[list(indices)])]

    def set_state(self, states: Sequence[bytes | None]) -> None:
        """See `VectorEnvironment.set_state`."""
        self._finish_step()
        if len(states) != self.num_envs:
            raise ValueError(f"{len(states)} states for {self.num_envs} environments")
        for index, state in enumerate(states):
            if state is None:
                continue
            *values, level_seed = np.frombuffer(state)
            for column, value in zip(self._columns(), values, strict=True):
                column[index] = value
            self._levels[index] = _make_level(int(level_seed))

    def render(self, index: int) -> NDArray[np.uint8]:
        """(512, 512, 3) frame: the one that `observe` shows, enlarged."""
        self._finish_step()
        factor = max(512 // self.spec.obs_shape[0], 1)
        return self._draw(index).repeat(factor, axis=0).repeat(factor, axis=1)

    def close(self) -> None:
        """Nothing to free."""

    def _columns(self) -> tuple[NDArray, ...]:
        return (
            self._seed,
            self._lowest_level,
            self._num_levels,
            self._stream,
            self._episode,
            self._x,
            self._y,
            self._length,
            self._reward,
            self._first,
            self._complete,
            self._truncated,
        )

    def _finish_step(self) -> None:
        if self._pending is not None:
            self.observe()

    def _step(self, actions: NDArray[np.integer]) -> None:
        self._x = np.clip(self._x + _MOVE_X[actions], 0, GRID_SIZE - 1)
        self._y = np.clip(self._y + _MOVE_Y[actions], 0, GRID_SIZE - 1)
        self._length = self._length + 1
        at_goal = self._at([level.goal for level in self._levels])
        at_hazard = self._at([level.hazard for level in self._levels])
        at_limit = self._length >= TIME_LIMIT
        self._first = at_goal | at_hazard | at_limit
        self._complete = at_goal
        self._truncated = at_limit & ~at_goal & ~at_hazard
        self._reward = np.where(at_goal, GOAL_REWARD, 0).astype(np.float32)
        for index in np.flatnonzero(self._first).tolist():
            self._begin(index, self._next_level(index))

    def _at(self, cells: list[tuple[int, int]]) -> NDArray[np.bool_]:
        x, y = np.array(cells).T
        return (self._x == x) & (self._y == y)

    def _next_level(self, index: int) -> int:
        uniform = keyed_uniform(
            int(self._seed[index]), "fake-next-level", self._stream[index], self._episode[index]
        )
        self._episode[index] += 1
        return int(self._lowest_level[index] + np.floor(uniform[0] * self._num_levels[index]))

    def _begin(self, index: int, level_seed: int) -> None:
        self._levels[index] = level = _make_level(level_seed)
        self._x[index], self._y[index] = level.start
        self._length[index] = 0
        self._first[index] = True

    def _draw(self, index: int) -> NDArray[np.uint8]:
        level, size = self._levels[index], self.spec.obs_shape[0]
        frame = np.empty(self.spec.obs_shape, np.uint8)
        frame[:] = level.background
        cell_size = size // GRID_SIZE
        player = (int(self._x[index]), int(self._y[index]))
        for (x, y), colour in (
            (level.goal, GOAL_COLOUR),
            (level.hazard, HAZARD_COLOUR),
            (player, PLAYER_COLOUR),
        ):
            top, left = y * cell_size, x * cell_size
            frame[top : top + cell_size, left : left + cell_size] = colour
        frame[0, : self._length[index] * size // TIME_LIMIT] = BAR_COLOUR
        return frame
