"""Environments stepped together, and the rows of the episode that runs in each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.player import NOT_GIVEN, DecisionRow, GivenActions, Player, join_rows
from environments.game_trace import GameTracer
from environments.protocol import VectorEnvironment
from experiment.errors import UserError
from rollouts.saved_states import pack_states
from rollouts.types import EpisodeInfo, Rollout


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


@dataclass
class _OpenEpisode:
    """Rows of an episode so far; the last one may lack its reward and done."""

    start: EpisodeStart
    tracer: GameTracer | None = None
    save_state_every: int | None = None
    saved_states: list[bytes] = field(default_factory=list)
    frames: list[NDArray[Any]] = field(default_factory=list)
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
        # A copy: a view would keep the whole batch in memory until the episode ends.
        self.frames.append(frame.copy())
        self.decisions.append(decision)

    def finish(self, info: EpisodeInfo) -> Rollout:
        every = self.save_state_every
        return Rollout(
            obs=np.stack(self.frames),
            **vars(join_rows(self.decisions)),
            reward=np.array(self.rewards, np.float32),
            done=np.array(self.dones, bool),
            info=info,
            game=None if self.tracer is None else self.tracer.trace(),
            **({} if every is None else vars(pack_states(self.saved_states, every))),
        )


class EpisodeSlots:
    """Environments stepped together, and the episode that runs in each.

    The owner calls in turn `collect`, `begin_episodes` and `act`, and closes `environment`.

    Args:
        environment: where the episodes are played.
        player: who decides.
        agent_hash: goes into every rollout.
        with_state: keep what the game itself knows at each step; for Procgen only.
        save_state_every: keep the environment's whole state at every so many rows.
    """

    def __init__(
        self,
        environment: VectorEnvironment,
        player: Player,
        agent_hash: str,
        with_state: bool = False,
        save_state_every: int | None = None,
    ) -> None:
        self.environment = environment
        self.num_steps = 0
        self._player = player
        self._agent_hash = agent_hash
        self._state = player.initial_state(environment.num_envs)
        self._initial_state = player.initial_state(1)[0].float().cpu().numpy()
        self._episodes: list[_OpenEpisode | None] = [None] * environment.num_envs
        self._awaits_step = False
        self._with_state = with_state
        self._save_state_every = save_state_every

    @property
    def is_playing(self) -> bool:
        """Whether any episode runs."""
        return any(episode is not None for episode in self._episodes)

    @property
    def num_free(self) -> int:
        """Number of slots without an episode."""
        return self._episodes.count(None)

    def collect(self) -> Iterator[Rollout]:
        """Complete the rows that await their outcome; yield the episodes that ended."""
        if not self._awaits_step:
            return
        self._awaits_step = False
        outcome = self.environment.observe()
        rewards, dones = outcome.reward.tolist(), outcome.first.tolist()
        for index, episode in enumerate(self._episodes):
            if episode is None:
                continue
            episode.rewards.append(rewards[index])
            episode.dones.append(dones[index])
            if dones[index]:
                self._episodes[index] = None
                info = replace(
                    self._info(episode),
                    level_complete=bool(outcome.level_complete[index]),
                    truncated=bool(outcome.truncated[index]),
                )
                yield episode.finish(info)
            elif episode.is_at_its_limit:
                self._episodes[index] = None
                yield episode.finish(replace(self._info(episode), cut=True))

    def cut(self) -> Iterator[Rollout]:
        """Complete the rows that await their outcome, then yield every episode begun."""
        yield from self.collect()
        for index, episode in enumerate(self._episodes):
            self._episodes[index] = None
            if episode is not None and len(episode) > 0:
                yield episode.finish(replace(self._info(episode), cut=True))

    def begin_episodes(self, starts: Sequence[EpisodeStart]) -> None:
        """Put episodes, at most `num_free` of them, into free slots.

        Raises:
            UserError: the environment does not show a branch point's frame.
        """
        if not starts:
            return
        free = [index for index, episode in enumerate(self._episodes) if episode is None]
        placed = dict(zip(free, starts, strict=False))
        whole = {index: start for index, start in placed.items() if start.branch is None}
        if whole:
            self.environment.start_level(list(whole), [s.level_seed for s in whole.values()])
        branches = {index: s.branch for index, s in placed.items() if s.branch is not None}
        if branches:
            self._restore(branches)
        for index, start in placed.items():
            tracer = GameTracer() if self._with_state else None
            self._episodes[index] = _OpenEpisode(start, tracer, self._save_state_every)

    def _restore(self, branches: Mapping[int, Branch]) -> None:
        """Put environment and agent of the given slots where their branches begin."""
        states: list[bytes | None] = [None] * self.environment.num_envs
        for index, branch in branches.items():
            states[index] = branch.point.environment_state
            self._state[index] = torch.as_tensor(branch.point.agent_state).to(self._state)
        self.environment.set_state(states)
        frames = self.environment.observe().obs
        for index, branch in branches.items():
            if not np.array_equal(frames[index], branch.point.frame):
                raise UserError(
                    f"--branch_from: restoring the environment at row {branch.point.source_row} of "
                    f"episode {branch.point.source_episode_id} does not show the recorded frame"
                )

    def act(self) -> None:
        """Decide in every slot that plays, and start the step."""
        playing = [(i, e) for i, e in enumerate(self._episodes) if e is not None]
        if not playing:
            return
        indices = np.array([index for index, _ in playing])
        frames = self.environment.observe().obs[indices]
        states = self._states_to_keep(dict(playing))
        decision = self._player.decide(
            frames,
            self._state[indices],
            np.array([episode.start.noise_id for _, episode in playing], np.int64),
            np.array([episode.next_row for _, episode in playing], np.int64),
            _given_actions([episode for _, episode in playing]),
            np.array([len(episode) for _, episode in playing], np.int64),
        )
        self._state[indices] = decision.state
        actions = np.full(self.environment.num_envs, self.environment.spec.null_action, np.int32)
        actions[indices] = decision.action
        self.environment.send(actions)
        self._awaits_step = True
        self.num_steps += len(playing)
        for (index, episode), frame, row in zip(playing, frames, decision.rows(), strict=True):
            if episode.is_to_be_saved:
                episode.saved_states.append(states[index])
            episode.append(frame, row)
        # Read while the environments step.
        for index, episode in playing:
            if episode.tracer is not None:
                episode.tracer.append(states[index])

    def _states_to_keep(self, playing: Mapping[int, _OpenEpisode]) -> dict[int, bytes]:
        """By slot, the environment's states of the next decisions, where they are needed."""
        indices = [i for i, e in playing.items() if self._with_state or e.is_to_be_saved]
        states = self.environment.get_state(indices) if indices else []
        return dict(zip(indices, states, strict=True))

    def _info(self, episode: _OpenEpisode) -> EpisodeInfo:
        start, branch = episode.start, episode.start.branch
        info = EpisodeInfo(
            episode_id=start.episode_id,
            agent_hash=self._agent_hash,
            agent_initial_state=self._initial_state,
            level_seed=start.level_seed,
            interventions=start.interventions,
            twin_of=start.twin_of,
        )
        if branch is None:
            return info
        return replace(
            info,
            initialisation="branched",
            agent_initial_state=branch.point.agent_state,
            source_episode_id=branch.point.source_episode_id,
            source_row=branch.point.source_row,
        )


def _given_actions(episodes: Sequence[_OpenEpisode]) -> GivenActions | None:
    """What is settled about the next decision of each; None where nothing is."""
    given = [episode.given_action() for episode in episodes]
    if all(action == NOT_GIVEN for action, _ in given):
        return None
    actions, log_probs = zip(*given, strict=True)
    return GivenActions(np.array(actions, np.int32), np.array(log_probs, np.float32))
