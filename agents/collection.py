"""Playing: what PPO needs from N environments, collected while they step in the background."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.execution import Execution
from agents.networks import RecurrentPolicy
from agents.ppo import PPOConfig, RolloutBatch, generalised_advantages, normalise
from environments.protocol import Transition, VectorEnvironment
from experiment.distributed import ALONE, Ranks
from experiment.randomness import keyed_uniform

EPISODES_REMEMBERED = 40
"""Finished episodes over which the log takes its statistics, as in the reference."""


_LARGEST_DRAW = 1 - 2.0**-24
"""The largest float32 below 1. One draw in 2^25 becomes 1 when it is rounded to float32, which
would be an action beyond the last."""


def sample_actions(logits: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution: (B, num_actions) logits, (B,) draws in [0, 1] → (B,)."""
    cumulative = logits.softmax(-1).cumsum(-1)
    uniform = uniform.clamp(max=_LARGEST_DRAW)
    # Scaling by the last entry keeps the draw in range when rounding leaves the sum below one.
    return (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1)


class RewardNormaliser:
    """Divides rewards by the running standard deviation of the discounted return.

    The deviation takes in a whole rollout before that rollout is divided by it.
    """

    def __init__(self, num_envs: int, gamma: float = 0.99, limit: float = 10.0) -> None:
        self.gamma = gamma
        self.limit = limit
        self.running_return = np.zeros(num_envs)
        self.count = 1e-4
        self.mean = 0.0
        self.variance = 1.0

    def __call__(self, reward: NDArray[np.float32], done: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(T, N) raw rewards and episode ends → (T, N) rewards for learning."""
        returns = np.empty(reward.shape)
        for t in range(len(reward)):
            self.running_return = self.gamma * self.running_return + reward[t]
            returns[t] = self.running_return
            self.running_return = np.where(done[t], 0.0, self.running_return)
        self._take_in(returns)
        scaled = reward / np.sqrt(self.variance + 1e-8)
        return np.clip(scaled, -self.limit, self.limit).astype(np.float32)

    def _take_in(self, returns: NDArray[np.float64]) -> None:
        """Merge mean and variance of two sets (Chan et al. 1979)."""
        total = self.count + returns.size
        shift = returns.mean() - self.mean
        squares = self.variance * self.count + returns.var() * returns.size
        squares += shift**2 * self.count * returns.size / total
        self.mean += float(shift) * returns.size / total
        self.variance = float(squares) / total
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "running_return": torch.from_numpy(self.running_return),
            "count": self.count,
            "mean": self.mean,
            "variance": self.variance,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.running_return = state["running_return"].numpy()
        self.count, self.mean, self.variance = state["count"], state["mean"], state["variance"]


class EpisodeStatistics:
    """Raw returns and lengths of the episodes that ended last."""

    def __init__(self, num_envs: int) -> None:
        self.num_episodes = 0
        self.returns: deque[float] = deque(maxlen=EPISODES_REMEMBERED)
        self.lengths: deque[int] = deque(maxlen=EPISODES_REMEMBERED)
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, np.int64)

    def add(self, reward: NDArray[np.float32], done: NDArray[np.bool_]) -> None:
        """Take in (T, N) raw rewards and episode ends."""
        for t in range(len(reward)):
            self._return += reward[t]
            self._length += 1
            for env in np.flatnonzero(done[t]):
                self.num_episodes += 1
                self.returns.append(float(self._return[env]))
                self.lengths.append(int(self._length[env]))
                self._return[env], self._length[env] = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "num_episodes": self.num_episodes,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "running_return": torch.from_numpy(self._return),
            "running_length": torch.from_numpy(self._length),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.num_episodes = state["num_episodes"]
        self.returns.extend(state["returns"])
        self.lengths.extend(state["lengths"])
        self._return = state["running_return"].numpy()
        self._length = state["running_length"].numpy()


@dataclass(frozen=True)
class Collected:
    """One rollout: what the learner eats, and what the log tells."""

    batch: RolloutBatch
    mean_value: float


@dataclass
class _Group:
    """Environments that step together while another group's actions are computed."""

    environment: VectorEnvironment
    slots: slice
    current: Transition
    state: Tensor


class _Buffer:
    """(T, N) storage that lives as long as the collector; frames stay bytes on the device."""

    def __init__(
        self, num_steps: int, num_envs: int, obs_shape: tuple[int, ...], device: torch.device
    ) -> None:
        shape = (num_steps, num_envs)
        self.obs = torch.empty(*shape, *obs_shape, dtype=torch.uint8, device=device)
        self.first = torch.empty(num_steps + 1, num_envs, dtype=torch.bool)
        self.timed_out = torch.empty(shape, dtype=torch.bool)
        self.action = torch.empty(shape, dtype=torch.int64, device=device)
        self.log_prob = torch.empty(shape, device=device)
        self.value = torch.empty(shape, device=device)
        self.reward = torch.empty(shape)


@dataclass
class PlayingTime:
    """Wall seconds since the collector was made."""

    environment: float = 0.0
    """Handing out actions and waiting for the frames that they lead to."""
    inference: float = 0.0
    """Choosing actions and values."""


class Collector:
    """Plays N environments with a policy, one rollout after the other.

    The environments form two groups, so that one steps while the policy decides for the other. A
    rollout begins with the very frame whose value ended the one before; the state carried over
    is that *before* this frame, so the recurrence sees every frame once.

    With several processes each plays its share of the environments; statistics of rewards,
    advantages and episodes are over all of them, and the same in every process.
    """

    def __init__(
        self,
        policy: RecurrentPolicy,
        groups: list[VectorEnvironment],
        config: PPOConfig,
        seed: int,
        execution: Execution | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Begin at the first frames.

        Args:
            policy: the same weights in every process.
            groups: this process's environments.
            config: `num_envs` counts the environments of all processes.
            seed: keys the draws of the actions.
            execution: how the network is run; by default as its device suggests.
            ranks: processes that play for the same learner.
        """
        self.policy = policy
        self.config = config
        self.seed = seed
        self.ranks = ranks
        self.execution = execution or Execution(policy)
        self.device = self.execution.device
        self.normaliser = RewardNormaliser(config.num_envs)
        self.statistics = EpisodeStatistics(config.num_envs)
        self.seconds = PlayingTime()
        sizes = [group.num_envs for group in groups]
        self._own = ranks.share(config.num_envs, "--num_envs")
        self._groups = [
            _Group(group, slice(stop - size, stop), group.observe(), policy.initial_state(size))
            for group, size, stop in zip(groups, sizes, accumulate(sizes), strict=True)
        ]
        obs_shape = groups[0].spec.obs_shape
        self._buffer = _Buffer(config.num_steps, sum(sizes), obs_shape, self.device)

    @torch.inference_mode()
    def collect(self, iteration: int) -> Collected:
        """Play `num_steps` decisions; `iteration` keys the draws of the actions."""
        initial_state = torch.cat([group.state for group in self._groups])
        uniform = self._draws(iteration)
        for t in range(self.config.num_steps):
            for group in self._groups:
                if t > 0:
                    self._receive(group, t)
                self._act(group, t, uniform[t, group.slots])
        for group in self._groups:
            self._receive(group, self.config.num_steps)
        return self._finish(initial_state)

    def _draws(self, iteration: int) -> Tensor:
        steps = iteration * self.config.num_steps + np.arange(self.config.num_steps)[:, None]
        uniform = keyed_uniform(self.seed, "action", np.asarray(self._own)[None], steps)
        return torch.from_numpy(uniform[..., 0].astype(np.float32)).to(self.device)

    def _act(self, group: _Group, t: int, uniform: Tensor) -> None:
        begin = time.perf_counter()
        buffer, slots = self._buffer, group.slots
        buffer.obs[t, slots] = torch.from_numpy(group.current.obs)
        buffer.first[t, slots] = torch.from_numpy(group.current.first)
        first = buffer.first[t, slots].to(self.device)
        output = self.execution.step(buffer.obs[t, slots], group.state, first)
        action = sample_actions(output.action_logits, uniform)
        sent = action.cpu().numpy()
        chosen = time.perf_counter()
        group.environment.send(sent)
        self.seconds.inference += chosen - begin
        self.seconds.environment += time.perf_counter() - chosen
        log_probs = output.action_logits.log_softmax(-1)
        buffer.action[t, slots] = action
        buffer.log_prob[t, slots] = log_probs.gather(-1, action[:, None]).squeeze(-1)
        buffer.value[t, slots] = output.value
        group.state = output.state

    def _receive(self, group: _Group, t: int) -> None:
        """Wait for the step that the action at t − 1 began."""
        begin = time.perf_counter()
        group.current = group.environment.observe()
        self.seconds.environment += time.perf_counter() - begin
        buffer, slots = self._buffer, group.slots
        buffer.reward[t - 1, slots] = torch.from_numpy(group.current.reward)
        buffer.timed_out[t - 1, slots] = torch.from_numpy(group.current.truncated)
        if t == self.config.num_steps:
            buffer.first[t, slots] = torch.from_numpy(group.current.first)

    def _finish(self, initial_state: Tensor) -> Collected:
        buffer, config = self._buffer, self.config
        advantage = generalised_advantages(
            self._take_in_rewards().to(self.device),
            buffer.value,
            buffer.first[1:].to(self.device),
            self._bootstrap(),
            config.gamma,
            config.gae_lambda,
            buffer.timed_out.to(self.device) if config.bootstrap_timeouts else None,
        )
        batch = RolloutBatch(
            obs=buffer.obs,
            first=buffer.first[:-1].to(self.device),
            initial_state=initial_state,
            action=buffer.action,
            log_prob=buffer.log_prob,
            value=buffer.value,
            advantage=self._normalised(advantage) if config.normalise_advantage else advantage,
            value_target=advantage + buffer.value,
        )
        return Collected(batch, float(self.ranks.concatenate(buffer.value, dim=1).mean()))

    def _take_in_rewards(self) -> Tensor:
        """Update the statistics of all environments; returns (T, N) own rewards to learn from."""
        reward, done = self._buffer.reward, self._buffer.first[1:]
        everywhere = self.ranks.concatenate(
            torch.stack([reward, done.to(reward.dtype)]).to(self.device), dim=2
        )
        all_rewards, all_ends = everywhere[0].cpu().numpy(), everywhere[1].cpu().numpy() > 0
        self.statistics.add(all_rewards, all_ends)
        if not self.config.normalise_reward:
            return reward
        normalised = self.normaliser(all_rewards, all_ends)
        return torch.from_numpy(normalised[:, self._own.start : self._own.stop])

    def _normalised(self, advantage: Tensor) -> Tensor:
        everywhere = normalise(self.ranks.concatenate(advantage, dim=1))
        return everywhere[:, self._own.start : self._own.stop]

    def _bootstrap(self) -> Tensor:
        """(N,) values of the frames after the last action; the states stay as they are."""
        values = []
        for group in self._groups:
            obs, first = (
                torch.from_numpy(array).to(self.device)
                for array in (group.current.obs, group.current.first)
            )
            values.append(self.execution.step(obs, group.state, first).value)
        return torch.cat(values)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to go on with the very next decision.

        All processes must ask for it together; each gets the state of all environments.
        """
        own = [
            {
                "environments": [_to_tensor(s) for s in group.environment.get_state()],
                "obs": torch.from_numpy(group.current.obs.copy()),
                "first": torch.from_numpy(group.current.first.copy()),
                "state": group.state.cpu(),
            }
            for group in self._groups
        ]
        return {
            "normaliser": self.normaliser.state_dict(),
            "statistics": self.statistics.state_dict(),
            "groups": [group for groups in self.ranks.gather(own) for group in groups],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`, for as many environments in any number of processes."""
        self.normaliser.load_state_dict(state["normaliser"])
        self.statistics.load_state_dict(state["statistics"])
        groups = state["groups"]
        environments = [saved for group in groups for saved in group["environments"]]
        obs, first, agent_state = (
            torch.cat([group[name] for group in groups]) for name in ("obs", "first", "state")
        )
        for group in self._groups:
            slots = slice(self._own.start + group.slots.start, self._own.start + group.slots.stop)
            group.environment.set_state([s.numpy().tobytes() for s in environments[slots]])
            # The reward of the last action was taken in before the state was saved.
            group.current = Transition(
                obs=obs[slots].numpy(),
                reward=np.zeros(group.environment.num_envs, np.float32),
                first=first[slots].numpy(),
                level_seed=group.current.level_seed,
                level_complete=group.current.level_complete,
                truncated=group.current.truncated,
            )
            group.state = agent_state[slots].to(self.device)


def _to_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
