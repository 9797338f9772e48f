"""Environments stepped together, and the episode that runs in each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from agents.open_episode import Branch, EndedEpisode, EpisodeStart, OpenEpisode
from agents.player import NOT_GIVEN, GivenActions, Player
from environments.game_trace import GameTracer
from environments.protocol import VectorEnvironment
from experiment.errors import UserError
from rollouts.types import EpisodeInfo


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
        self._episodes: list[OpenEpisode | None] = [None] * environment.num_envs
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

    def collect(self) -> Iterator[EndedEpisode]:
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
                yield EndedEpisode(episode, info)
            elif episode.is_at_its_limit:
                self._episodes[index] = None
                yield EndedEpisode(episode, replace(self._info(episode), cut=True))

    def cut(self) -> Iterator[EndedEpisode]:
        """Complete the rows that await their outcome, then yield every episode begun."""
        yield from self.collect()
        for index, episode in enumerate(self._episodes):
            self._episodes[index] = None
            if episode is not None and len(episode) > 0:
                yield EndedEpisode(episode, replace(self._info(episode), cut=True))

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
            self._episodes[index] = OpenEpisode(start, tracer, self._save_state_every)

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
        frames = self.environment.observe().obs
        states = self._states_to_keep(dict(playing))
        decision = self._player.decide(
            frames if len(playing) == len(frames) else frames[indices],
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
        # While the environments step, which changes none of this.
        for (index, episode), row in zip(playing, decision.rows(), strict=True):
            if episode.is_to_be_saved:
                episode.saved_states.append(states[index])
            episode.append(frames[index], row)
            if episode.tracer is not None:
                episode.tracer.append(states[index])

    def _states_to_keep(self, playing: Mapping[int, OpenEpisode]) -> dict[int, bytes]:
        """By slot, the environment's states of the next decisions, where they are needed."""
        indices = [i for i, e in playing.items() if self._with_state or e.is_to_be_saved]
        states = self.environment.get_state(indices) if indices else []
        return dict(zip(indices, states, strict=True))

    def _info(self, episode: OpenEpisode) -> EpisodeInfo:
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


def _given_actions(episodes: Sequence[OpenEpisode]) -> GivenActions | None:
    """What is settled about the next decision of each; None where nothing is."""
    given = [episode.given_action() for episode in episodes]
    if all(action == NOT_GIVEN for action, _ in given):
        return None
    actions, log_probs = zip(*given, strict=True)
    return GivenActions(np.array(actions, np.int32), np.array(log_probs, np.float32))
