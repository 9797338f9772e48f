"""Brings the real environment back to rows of recorded episodes, and proves that it is there.

A level and the actions taken in it determine an episode. So an episode is played again with its
recorded actions, and every frame, reward and end on the way is compared with the recorded one. It
begins at the level's first frame, or where the dataset keeps states of the environment, at the last
one before the row that is asked for.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from agents.open_episode import BranchPoint
from environments.factory import DEFAULT_NUM_THREADS, make_environment_from_spec
from environments.protocol import Transition, VectorEnvironment
from environments.saved_states import find_foreign
from experiment.errors import UserError
from rollouts.store import RolloutDataset

_ROWS_PER_READ = 64


@dataclass(frozen=True, order=True)
class SourceRow:
    """One row of a recorded episode."""

    episode_id: int
    row: int


@dataclass(frozen=True, eq=False)
class _RecordedRow:
    row: int
    obs: NDArray[np.uint8]
    action: int
    reward: float
    done: bool


@dataclass(frozen=True)
class _Beginning:
    """From where on an episode is played again."""

    episode_id: int
    state_number: int | None
    """Which of the episode's saved states; None begins at the level's first frame."""


class _Replay:
    """One episode to be played again up to the last of the rows that are asked for."""

    def __init__(self, dataset: RolloutDataset, beginning: _Beginning, rows: Sequence[int]) -> None:
        self.episode_id = beginning.episode_id
        self._index = index = dataset.index_of(self.episode_id)
        self.level_seed = int(dataset.episodes["level_seed"].to_numpy()[index])
        self.rows = frozenset(rows)
        number = beginning.state_number
        self.state = None if number is None else dataset.read_saved_state(index, number)
        """Where it begins; None at the level's first frame."""
        self._first_row = 0 if number is None else int(dataset.saved_state_rows(index)[number])
        self.last_row = max(rows)
        self._dataset = dataset
        self._start = int(dataset.episodes["offset"].to_numpy()[index])
        if self.state is not None:
            foreign = find_foreign(dataset.metadata.environment, self.state)
            if foreign is not None:
                self._refuse_state(foreign)

    @property
    def num_rows(self) -> int:
        """Rows to be played."""
        return self.last_row - self._first_row + 1

    def recorded_rows(self) -> Iterator[_RecordedRow]:
        """Rows up to the last one asked for, read in pieces: whole episodes of frames are large."""
        stop = self._start + self.last_row + 1
        for start in range(self._start + self._first_row, stop, _ROWS_PER_READ):
            end = min(start + _ROWS_PER_READ, stop)
            fields = [
                self._dataset.read_field(name, start, end)
                for name in ("obs", "action", "reward", "done")
            ]
            for row, values in enumerate(zip(*fields, strict=True), start - self._start):
                yield _RecordedRow(row, *values)

    def agent_state(self, row: int) -> NDArray[np.float32]:
        """(state_dim,) the agent's state before the frame of that row."""
        if row == 0:
            return self._dataset.read_episode_field("agent_initial_state")[self._index]
        at = self._start + row
        return self._dataset.read_field("agent_hidden", at - 1, at)[0]

    def restore(self, environment: VectorEnvironment, index: int) -> None:
        """Put a slot of the environment where it begins."""
        states = [self.state if slot == index else None for slot in range(environment.num_envs)]
        try:
            environment.set_state(states)
        except (ValueError, TypeError) as error:
            self._refuse_state(str(error))

    def require_same_level(self, level_seed: int) -> None:
        """Of a saved state: its level must be the episode's."""
        if level_seed != self.level_seed:
            self._refuse_state(f"it is of level {level_seed}, expected {self.level_seed}")

    def _refuse_state(self, problem: str) -> NoReturn:
        raise UserError(
            f"--branch_from {self._dataset.folder}: the environment state saved at row "
            f"{self._first_row} of episode {self.episode_id} does not belong there: {problem}"
        )

    def require_same_frame(self, recorded: _RecordedRow, frame: NDArray[np.uint8]) -> None:
        if not np.array_equal(recorded.obs, frame):
            self._fail(recorded.row, "the frame differs from the recorded one")

    def require_same_outcome(self, recorded: _RecordedRow, outcome: Transition, index: int) -> None:
        if outcome.reward[index] != recorded.reward:
            found = f"{outcome.reward[index]:g}, recorded {recorded.reward:g}"
            self._fail(recorded.row, f"the reward is {found}")
        if outcome.first[index] != recorded.done:
            found = f"{bool(outcome.first[index])}, recorded {bool(recorded.done)}"
            self._fail(recorded.row, f"`done` is {found}")

    def _fail(self, row: int, difference: str) -> None:
        raise UserError(
            f"--branch_from {self._dataset.folder}: episode {self.episode_id} does not happen "
            f"again, so it cannot be branched: at row {row} {difference} (another version of the "
            "environment, or one that its level and actions do not determine)"
        )


def restore_points(
    dataset: RolloutDataset, points: Sequence[SourceRow], num_threads: int = DEFAULT_NUM_THREADS
) -> dict[SourceRow, BranchPoint]:
    """Play recorded episodes again and save the environment's state at the rows asked for.

    All are played at once, one in each slot of an environment; an episode that is asked for at
    rows with different saved states before them, once for each of these.

    Args:
        dataset: rollouts of the real environment.
        points: rows that exist.
        num_threads: threads that step the environments.

    Raises:
        UserError: an episode does not happen again, the first row that differs is named; or a
            saved state is damaged, or not of its row.
    """
    rows: dict[_Beginning, list[int]] = defaultdict(list)
    for point in points:
        rows[_beginning_of(dataset, point)].append(point.row)
    replays = [_Replay(dataset, beginning, rows[beginning]) for beginning in rows]
    environment = make_environment_from_spec(
        dataset.metadata.environment, len(replays), num_threads=num_threads
    )
    try:
        _begin(environment, replays)
        return dict(_play_again(environment, replays))
    finally:
        environment.close()


def _beginning_of(dataset: RolloutDataset, point: SourceRow) -> _Beginning:
    rows = dataset.saved_state_rows(dataset.index_of(point.episode_id))
    number = int(np.searchsorted(rows, point.row, side="right")) - 1
    return _Beginning(point.episode_id, number if number >= 0 else None)


def _begin(environment: VectorEnvironment, replays: list[_Replay]) -> None:
    fresh = {i: replay.level_seed for i, replay in enumerate(replays) if replay.state is None}
    if fresh:
        environment.start_level(list(fresh), list(fresh.values()))
    if len(fresh) == len(replays):
        return
    for index, replay in enumerate(replays):
        if replay.state is not None:
            replay.restore(environment, index)
    level_seeds = environment.observe().level_seed
    for index, replay in enumerate(replays):
        if replay.state is not None:
            replay.require_same_level(int(level_seeds[index]))


def _play_again(
    environment: VectorEnvironment, replays: list[_Replay]
) -> Iterator[tuple[SourceRow, BranchPoint]]:
    recorded_rows = [replay.recorded_rows() for replay in replays]
    for step in range(max(replay.num_rows for replay in replays)):
        current = {i: next(recorded_rows[i]) for i, r in enumerate(replays) if step < r.num_rows}
        frames = environment.observe().obs
        for index, recorded in current.items():
            replays[index].require_same_frame(recorded, frames[index])
        wanted = [i for i, recorded in current.items() if recorded.row in replays[i].rows]
        states = environment.get_state(wanted) if wanted else []
        for index, state in zip(wanted, states, strict=True):
            source = SourceRow(replays[index].episode_id, current[index].row)
            yield (
                source,
                BranchPoint(
                    source_episode_id=source.episode_id,
                    source_row=source.row,
                    frame=current[index].obs,
                    environment_state=state,
                    agent_state=replays[index].agent_state(source.row),
                ),
            )
        _step(environment, replays, current)


def _step(
    environment: VectorEnvironment, replays: list[_Replay], current: dict[int, _RecordedRow]
) -> None:
    """Take the recorded actions of all episodes that go on, and compare what they led to."""
    going_on = {i: row for i, row in current.items() if row.row < replays[i].last_row}
    if not going_on:
        return
    actions = np.full(environment.num_envs, environment.spec.null_action, np.int32)
    actions[list(going_on)] = [recorded.action for recorded in going_on.values()]
    environment.send(actions)
    outcome = environment.observe()
    for index, recorded in going_on.items():
        replays[index].require_same_outcome(recorded, outcome, index)
