"""Environments stepped together, and the rows of the episode that runs in each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.player import Decision, Player
from environments.protocol import VectorEnvironment
from rollouts.types import EpisodeInfo, Rollout


@dataclass(frozen=True)
class EpisodeStart:
    """Where an episode begins."""

    episode_id: int
    level_seed: int


@dataclass
class _OpenEpisode:
    """Rows of an episode so far; the last one may lack its reward and done."""

    start: EpisodeStart
    decided: dict[str, list[Any]] = field(
        default_factory=lambda: {
            "obs": [],
            "agent_hidden": [],
            "action_logits": [],
            "value": [],
            "action": [],
            "behaviour_log_prob": [],
        }
    )
    rewards: list[float] = field(default_factory=list)
    dones: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.decided["action"])

    def append(self, frame: NDArray[np.uint8], decision: Decision, index: int) -> None:
        # Copies: a view would keep the whole batch in memory until the episode ends.
        self.decided["obs"].append(frame.copy())
        self.decided["agent_hidden"].append(decision.agent_hidden[index].copy())
        self.decided["action_logits"].append(decision.action_logits[index].copy())
        for name in ("value", "action", "behaviour_log_prob"):
            self.decided[name].append(getattr(decision, name)[index])

    def finish(self, info: EpisodeInfo) -> Rollout:
        return Rollout(
            **{name: np.stack(rows) for name, rows in self.decided.items()},
            reward=np.array(self.rewards, np.float32),
            done=np.array(self.dones, bool),
            info=info,
        )


class EpisodeSlots:
    """Environments stepped together, and the episode that runs in each.

    The owner calls in turn `collect`, `begin_episodes` and `act`, and closes `environment`.
    """

    def __init__(self, environment: VectorEnvironment, player: Player, agent_hash: str) -> None:
        self.environment = environment
        self.num_steps = 0
        self._player = player
        self._agent_hash = agent_hash
        self._state = player.initial_state(environment.num_envs)
        self._initial_state = player.initial_state(1)[0].float().cpu().numpy()
        self._episodes: list[_OpenEpisode | None] = [None] * environment.num_envs
        self._awaits_step = False

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
        for index, episode in enumerate(self._episodes):
            if episode is None:
                continue
            episode.rewards.append(float(outcome.reward[index]))
            episode.dones.append(bool(outcome.first[index]))
            if outcome.first[index]:
                self._episodes[index] = None
                info = replace(
                    self._info(episode),
                    level_complete=bool(outcome.level_complete[index]),
                    truncated=bool(outcome.truncated[index]),
                )
                yield episode.finish(info)

    def cut(self) -> Iterator[Rollout]:
        """Complete the rows that await their outcome, then yield every episode begun."""
        yield from self.collect()
        for index, episode in enumerate(self._episodes):
            self._episodes[index] = None
            if episode is not None and len(episode) > 0:
                yield episode.finish(replace(self._info(episode), cut=True))

    def begin_episodes(self, starts: Sequence[EpisodeStart]) -> None:
        """Put episodes, at most `num_free` of them, into free slots."""
        if not starts:
            return
        free = [index for index, episode in enumerate(self._episodes) if episode is None]
        slots = free[: len(starts)]
        self.environment.start_level(slots, [start.level_seed for start in starts])
        for index, start in zip(slots, starts, strict=True):
            self._episodes[index] = _OpenEpisode(start)

    def act(self) -> None:
        """Decide in every slot that plays, and start the step."""
        playing = [(i, e) for i, e in enumerate(self._episodes) if e is not None]
        if not playing:
            return
        indices = np.array([index for index, _ in playing])
        frames = self.environment.observe().obs[indices]
        decision = self._player.decide(
            frames,
            self._state[indices],
            np.array([episode.start.episode_id for _, episode in playing], np.int64),
            np.array([len(episode) for _, episode in playing], np.int64),
        )
        self._state[indices] = decision.state
        actions = np.full(self.environment.num_envs, self.environment.spec.null_action, np.int32)
        actions[indices] = decision.action
        self.environment.send(actions)
        self._awaits_step = True
        self.num_steps += len(playing)
        for position, (_, episode) in enumerate(playing):
            episode.append(frames[position], decision, position)

    def _info(self, episode: _OpenEpisode) -> EpisodeInfo:
        return EpisodeInfo(
            episode_id=episode.start.episode_id,
            agent_hash=self._agent_hash,
            agent_initial_state=self._initial_state,
            level_seed=episode.start.level_seed,
        )
