"""Brings the real environment back to rows of recorded episodes, and proves that it is there.

A level and the actions taken in it determine an episode. So an episode is played again from its
first frame, with its recorded actions, and every frame, reward and end on the way is compared with
the recorded one.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.episode_slots import BranchPoint
from environments.factory import DEFAULT_NUM_THREADS, make_environment_from_spec
from environments.protocol import Transition, VectorEnvironment
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


class _Replay:
    """One episode to be played again up to the last of the rows that are asked for."""

    def __init__(self, dataset: RolloutDataset, episode_id: int, rows: Sequence[int]) -> None:
        index = dataset.index_of(episode_id)
        self.episode_id = episode_id
        self.level_seed = int(dataset.episodes["level_seed"].to_numpy()[index])
        self.rows = frozenset(rows)
        self.num_rows = max(rows) + 1
        self._dataset = dataset
        self._index = index
        self._start = int(dataset.episodes["offset"].to_numpy()[index])

    def recorded_rows(self) -> Iterator[_RecordedRow]:
        """Rows up to the last one asked for, read in pieces: whole episodes of frames are large."""
        stop = self._start + self.num_rows
        for start in range(self._start, stop, _ROWS_PER_READ):
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

    All episodes are played at once, one in each slot of an environment.

    Args:
        dataset: rollouts of the real environment.
        points: rows that exist.
        num_threads: threads that step the environments.

    Raises:
        UserError: an episode does not happen again; the first row that differs is named.
    """
    rows: dict[int, list[int]] = defaultdict(list)
    for point in points:
        rows[point.episode_id].append(point.row)
    replays = [_Replay(dataset, episode_id, rows[episode_id]) for episode_id in rows]
    environment = make_environment_from_spec(
        dataset.metadata.environment, len(replays), num_threads=num_threads
    )
    try:
        environment.start_level(range(len(replays)), [replay.level_seed for replay in replays])
        return dict(_play_again(environment, replays))
    finally:
        environment.close()


def _play_again(
    environment: VectorEnvironment, replays: list[_Replay]
) -> Iterator[tuple[SourceRow, BranchPoint]]:
    recorded_rows = [replay.recorded_rows() for replay in replays]
    for row in range(max(replay.num_rows for replay in replays)):
        current = {i: next(recorded_rows[i]) for i, r in enumerate(replays) if row < r.num_rows}
        frames = environment.observe().obs
        for index, recorded in current.items():
            replays[index].require_same_frame(recorded, frames[index])
        wanted = [index for index in current if row in replays[index].rows]
        states = environment.get_state(wanted) if wanted else []
        for index, state in zip(wanted, states, strict=True):
            source = SourceRow(replays[index].episode_id, row)
            yield (
                source,
                BranchPoint(
                    source_episode_id=source.episode_id,
                    source_row=row,
                    frame=current[index].obs,
                    environment_state=state,
                    agent_state=replays[index].agent_state(row),
                ),
            )
        _step(environment, replays, current)


def _step(
    environment: VectorEnvironment, replays: list[_Replay], current: dict[int, _RecordedRow]
) -> None:
    """Take the recorded actions of all episodes that go on, and compare what they led to."""
    going_on = {i: row for i, row in current.items() if row.row < replays[i].num_rows - 1}
    if not going_on:
        return
    actions = np.full(environment.num_envs, environment.spec.null_action, np.int32)
    actions[list(going_on)] = [recorded.action for recorded in going_on.values()]
    environment.send(actions)
    outcome = environment.observe()
    for index, recorded in going_on.items():
        replays[index].require_same_outcome(recorded, outcome, index)
