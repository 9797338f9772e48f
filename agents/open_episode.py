"""An episode that is being played: where it begins, and the rows that it has so far."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.player import NOT_GIVEN, DecisionRow, join_rows
from environments.game_trace import GameTracer
from rollouts.saved_states import pack_states
from rollouts.types import EpisodeInfo, Rollout

_FRAMES_PER_BLOCK = 32


@dataclass(frozen=True, eq=False)
class BranchPoint:
    """A row of a recorded episode, and all that is needed to go on from it."""

    source_episode_id: int
    source_row: int
    frame: NDArray[np.uint8]
    """(H, W, C) recorded frame of that row, which the restored environment has to show."""
    environment_state: bytes
    """As `VectorEnvironment.get_state` tells it when that frame is shown."""
    agent_state: NDArray[np.float32]
    """(state_dim,) recurrent state before that frame."""


@dataclass(frozen=True, eq=False)
class Branch:
    """How an episode goes on from a branch point."""

    point: BranchPoint
    noise_id: int
    """What keys the draws of its actions, with seed and row of the source episode."""
    action: NDArray[np.int32]
    """(K,) settled actions of its first K rows; `NOT_GIVEN` where the agent chooses."""
    log_prob: NDArray[np.float32]
    """(K,) their log-probabilities; read only where the action is given."""
    max_rows: int | None = None
    """It is cut after as many rows."""


@dataclass(frozen=True, eq=False)
class EpisodeStart:
    """Where an episode begins, and what is settled about it beforehand."""

    episode_id: int
    level_seed: int
    branch: Branch | None = None
    """None begins at the level's first frame."""
    interventions: tuple[dict[str, Any], ...] = ()
    twin_of: int = -1

    @property
    def first_row(self) -> int:
        """Row of the source episode, or of the episode itself, at which it begins."""
        return 0 if self.branch is None else self.branch.point.source_row

    @property
    def noise_id(self) -> int:
        """What keys its draws."""
        return self.episode_id if self.branch is None else self.branch.noise_id


class _Frames:
    """Frames of one episode so far, each copied: a view would keep the whole batch in memory."""

    def __init__(self) -> None:
        self._blocks: list[NDArray[Any]] = []
        self._num_frames = 0

    def append(self, frame: NDArray[Any]) -> None:
        row = self._num_frames % _FRAMES_PER_BLOCK
        if row == 0:
            self._blocks.append(np.empty((_FRAMES_PER_BLOCK, *frame.shape), frame.dtype))
        self._blocks[-1][row] = frame
        self._num_frames += 1

    def join(self) -> NDArray[Any]:
        """(T, ...) all of them, at least one."""
        num_whole, num_more = divmod(self._num_frames, _FRAMES_PER_BLOCK)
        whole, begun = self._blocks[:num_whole], self._blocks[num_whole:]
        return np.concatenate([*whole, *(block[:num_more] for block in begun)])


@dataclass
class OpenEpisode:
    """Rows of an episode so far; the last one may lack its reward and done."""

    start: EpisodeStart
    tracer: GameTracer | None = None
    save_state_every: int | None = None
    saved_states: list[bytes] = field(default_factory=list)
    frames: _Frames = field(default_factory=_Frames)
    decisions: list[DecisionRow] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    dones: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.decisions)

    @property
    def next_row(self) -> int:
        """Index of the next decision, in the source episode where there is one."""
        return self.start.first_row + len(self)

    @property
    def is_at_its_limit(self) -> bool:
        """Whether it is a branch that has all the rows it may have."""
        return self.start.branch is not None and len(self) == self.start.branch.max_rows

    @property
    def is_to_be_saved(self) -> bool:
        """Whether the environment's state belongs to the next decision's row."""
        return bool(self.save_state_every and len(self) and len(self) % self.save_state_every == 0)

    def given_action(self) -> tuple[int, float]:
        """Settled action of the next decision and its log-probability."""
        branch = self.start.branch
        if branch is None or len(self) >= len(branch.action):
            return NOT_GIVEN, 0.0
        return int(branch.action[len(self)]), float(branch.log_prob[len(self)])

    def append(self, frame: NDArray[Any], decision: DecisionRow) -> None:
        """Add what was seen and decided; the frame is copied."""
        self.frames.append(frame)
        self.decisions.append(decision)


@dataclass(frozen=True, eq=False)
class EndedEpisode:
    """An episode to which no row will be added."""

    episode: OpenEpisode
    info: EpisodeInfo

    def rollout(self) -> Rollout:
        """Put its rows together, which takes time and as much memory again."""
        episode, every = self.episode, self.episode.save_state_every
        return Rollout(
            obs=episode.frames.join(),
            **vars(join_rows(episode.decisions)),
            reward=np.array(episode.rewards, np.float32),
            done=np.array(episode.dones, bool),
            info=self.info,
            game=None if episode.tracer is None else episode.tracer.trace(),
            **({} if every is None else vars(pack_states(episode.saved_states, every))),
        )
