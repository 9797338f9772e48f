"""Proximal policy optimisation as pure functions, and the update of a policy with them.

Schulman et al., "Proximal Policy Optimization Algorithms" (2017): the clipped objective, equation
7; with value loss and entropy bonus, equation 9. Schulman et al., "High-Dimensional Continuous
Control Using Generalized Advantage Estimation" (2016): the advantages, equation 16. The value
loss is clipped like the objective, as in the authors' code.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.execution import Execution
from agents.networks import RecurrentPolicy
from agents.protocol import AgentOutput
from experiment.cuda_graphs import CapturedFunction
from experiment.distributed import ALONE, Ranks
from experiment.errors import UserError, require_at_least
from experiment.randomness import keyed_uniform


@dataclass(frozen=True)
class PPOConfig:
    """Settings of proximal policy optimisation."""

    num_envs: int = 64
    """Environments that play side by side."""
    num_steps: int = 256
    """Decisions of each environment between two updates."""
    num_epochs: int = 3
    """Passes over the frames of an update."""
    num_minibatches: int = 8
    """Optimiser steps per epoch."""
    mini_batch_size: int = 2048
    """Frames that go through the network at once; an optimiser step that needs more sums their
    gradients. At most num_envs · num_steps / num_minibatches frames are used; fewer on a CPU, where
    larger chunks leave the cache, and up to 8,192 on a GPU whose memory holds them. That changes
    nothing but the rounding."""
    gamma: float = 0.999
    """Discount of future rewards."""
    gae_lambda: float = 0.95
    """Trade of bias against variance in the advantages."""
    learning_rate: float = 5e-4
    """Learning rate of Adam at the start; it falls linearly to zero at the end."""
    clip: float = 0.2
    """How far the probability ratio, and with `clip_value` the value, may move within an update."""
    clip_value: bool = True
    """Clip the value loss, as the reference does. Where returns are large against `clip`, as those
    of CoinRun's coin are (about 10 after normalisation), this slows the value down."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    normalise_advantage: bool = True
    """Shift and scale the advantages of an update to mean 0 and deviation 1."""
    normalise_reward: bool = True
    """Divide rewards by the running deviation of their discounted sum."""
    bootstrap_timeouts: bool = False
    """Let an episode that the time limit ended go on in the estimates with the value of the last
    frame seen. This is approximate: the frame after it, whose value is meant, is never shown."""


@dataclass(frozen=True)
class RolloutBatch:
    """What N environments did in T decisions, time first."""

    obs: Tensor
    """(T, N, H, W, C) uint8"""
    first: Tensor
    """(T, N) bool, whether `obs[t]` begins an episode."""
    initial_state: Tensor
    """(N, state_dim) agent state before `obs[0]`, not yet reset by `first[0]`."""
    action: Tensor
    """(T, N) int64"""
    log_prob: Tensor
    """(T, N) of `action` under the policy that acted."""
    value: Tensor
    """(T, N) estimated when acting."""
    advantage: Tensor
    """(T, N)"""
    value_target: Tensor
    """(T, N)"""


@dataclass(frozen=True)
class PPOLosses:
    """The three terms, means over the frames; the total is what is minimised."""

    policy: Tensor
    value: Tensor
    entropy: Tensor

    def total(self, config: PPOConfig) -> Tensor:
        """Equation 9 with its sign turned: policy + c₁ · value − c₂ · entropy."""
        return (
            self.policy
            + config.value_coefficient * self.value
            - config.entropy_coefficient * self.entropy
        )


def generalised_advantages(
    reward: Tensor,
    value: Tensor,
    done: Tensor,
    last_value: Tensor,
    gamma: float,
    lam: float,
    timed_out: Tensor | None = None,
) -> Tensor:
    """Advantages: the sum over l of (γλ)^l δ_{t+l}, cut where an episode ends.

    Here δ_t = r_t + γ V(s_{t+1}) − V(s_t), and V after the end of an episode is 0. Where a time
    limit ended it, V(s_t) can stand for V(s_{t+1}): Procgen never shows that frame.

    Args:
        reward: (T, N) paid for the action at t.
        value: (T, N) V(s_t).
        done: (T, N) bool, whether the episode ended with the action at t.
        last_value: (N,) V(s_T), the bootstrap; not used where `done[T-1]`.
        gamma: discount.
        lam: λ.
        timed_out: (T, N) bool, ends after which the value of the last frame seen is assumed.

    Returns:
        (T, N)
    """
    goes_on = (~done).to(value.dtype)
    next_value = goes_on * torch.cat([value[1:], last_value[None]])
    if timed_out is not None:
        next_value = torch.where(timed_out, value, next_value)
    delta = reward + gamma * next_value - value
    advantage = torch.empty_like(delta)
    running = torch.zeros_like(last_value)
    for t in reversed(range(len(delta))):
        running = delta[t] + gamma * lam * goes_on[t] * running
        advantage[t] = running
    return advantage


def ppo_losses(
    output: AgentOutput, batch: RolloutBatch, clip: float, clip_value: bool = True
) -> PPOLosses:
    """The terms of equation 9 for what the policy now says about a batch's frames.

    Args:
        output: logits (T, N, num_actions) and values (T, N) of the policy in training.
        batch: the frames; `advantage` is taken as it is, normalised or not.
        clip: ε.
        clip_value: whether ε bounds how far the value moves, too.
    """
    log_probs = output.action_logits.log_softmax(-1)
    log_prob = log_probs.gather(-1, batch.action[..., None]).squeeze(-1)
    ratio = (log_prob - batch.log_prob).exp()
    surrogate = torch.minimum(
        ratio * batch.advantage, ratio.clamp(1 - clip, 1 + clip) * batch.advantage
    )
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return PPOLosses(
        policy=-surrogate.mean(),
        value=value_loss(
            output.value, batch.value, batch.value_target, clip if clip_value else math.inf
        ),
        entropy=entropy.mean(),
    )


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float) -> Tensor:
    """½ · mean of max((V − R)², (V_clipped − R)²), V_clipped at most `clip` from the old value.

    With an infinite `clip` this is half the mean squared error.
    """
    clipped = old_value + (value - old_value).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - target).square(), (clipped - target).square()).mean()


def normalise(advantage: Tensor) -> Tensor:
    """Shift and scale to mean 0 and (biased) standard deviation 1 over all entries."""
    return (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)


@dataclass(frozen=True)
class EnvironmentShare:
    """Which environments of a training a batch holds; the other processes hold the rest."""

    own: range
    num_envs: int
    """Environments of all processes."""

    def local(self, envs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the batch of those of `envs` that it holds."""
        return envs[(envs >= self.own.start) & (envs < self.own.stop)] - self.own.start


@dataclass(frozen=True)
class Minibatch:
    """The frames of one optimiser step."""

    chunks: list[RolloutBatch]
    """What this process has of them, in parts that go through the network at once."""
    num_frames: int
    """Frames of all processes."""


class PPOLearner:
    """A policy, its Adam optimiser, and the update."""

    def __init__(
        self,
        policy: RecurrentPolicy,
        config: PPOConfig,
        seed: int,
        execution: Execution | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Begin without momentum.

        Args:
            policy: the same weights in every process.
            config: `num_envs` counts the environments of all processes.
            seed: keys the minibatches.
            execution: how the network is run; by default as its device suggests.
            ranks: processes that learn together.
        """
        self.policy = policy
        self.execution = execution or Execution(policy)
        at_once = self.execution.frames_per_backward(config.mini_batch_size)
        self.config = dataclasses.replace(config, mini_batch_size=at_once)
        self.seed = seed
        self.ranks = ranks
        self.optimiser: torch.optim.Optimizer = torch.optim.Adam(
            policy.parameters(), lr=config.learning_rate, eps=1e-5
        )
        self._accumulate: Callable[..., Tensor] = self._accumulate_eagerly
        self.uses_graphs = self.execution.uses_graphs and has_few_shapes(policy, ranks)
        if self.uses_graphs:
            self._accumulate = CapturedFunction(self._accumulate_eagerly, policy.parameters())
        self.gradient_norm = torch.zeros(())
        """Of the last optimiser step, before it was clipped."""

    def update(self, batch: RolloutBatch, iteration: int, remaining: float) -> dict[str, float]:
        """Improve the policy on one batch.

        Args:
            batch: the frames, on the policy's device, advantages normalised as configured; with
                several processes, those of this one.
            iteration: number of the update; with the seed it decides the minibatches.
            remaining: share of the training that is left, the factor of the learning rate.

        Returns:
            Means of the losses over the optimiser steps, named as in the log.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate * remaining
        sums = torch.zeros(3, device=batch.value.device)
        num_updates = 0
        for epoch in range(self.config.num_epochs):
            key = iteration * self.config.num_epochs + epoch
            for minibatch in self._minibatches(batch, key):
                sums += self._optimise(minibatch)
                num_updates += 1
        policy_loss, value_loss, entropy = (self.ranks.sum(sums) / num_updates).tolist()
        return {
            "mean_policy_loss": policy_loss,
            "mean_value_loss": value_loss,
            "mean_entropy_loss": entropy,
        }

    def _optimise(self, minibatch: Minibatch) -> Tensor:
        """One step of Adam on the mean over all frames; returns this process's part of it."""
        terms = torch.zeros(3, device=self.execution.device)
        self.optimiser.zero_grad(set_to_none=not self.uses_graphs)
        for chunk in minibatch.chunks:
            share = terms.new_full((), chunk.action.numel() / minibatch.num_frames)
            terms += self._accumulate(share, *(getattr(chunk, f.name) for f in fields(chunk)))
        self.ranks.sum_gradients(self.policy.parameters())
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(
            self.policy.parameters(), self.config.max_grad_norm
        )
        self.optimiser.step()
        return terms

    def _accumulate_eagerly(self, share: Tensor, *chunk: Tensor) -> Tensor:
        """Add the gradients of a chunk's share of the mean; returns its share of each loss."""
        batch = RolloutBatch(*chunk)
        output = self.execution.unroll(batch.obs, batch.initial_state, batch.first)
        losses = ppo_losses(output, batch, self.config.clip, self.config.clip_value)
        (share * losses.total(self.config)).backward()
        return share * torch.stack([losses.policy, losses.value, losses.entropy]).detach()

    def _minibatches(self, batch: RolloutBatch, key: int) -> Iterator[Minibatch]:
        num_envs = batch.action.shape[1] * self.ranks.size
        share = EnvironmentShare(self.ranks.share(num_envs, "--num_envs"), num_envs)
        split = split_trajectories if self.policy.config.recurrent else split_frames
        return split(batch, self.config, self.seed, key, share)


def has_few_shapes(policy: RecurrentPolicy, ranks: Ranks) -> bool:
    """Whether the chunks of all minibatches have a few shapes only: each is a CUDA graph.

    Of single frames, which are drawn by lot, a process of several has another number each time.
    """
    return policy.config.recurrent or ranks.size == 1


def split_trajectories(
    batch: RolloutBatch, config: PPOConfig, seed: int, key: int, share: EnvironmentShare
) -> Iterator[Minibatch]:
    """Minibatches of whole environment trajectories, for recurrent policies.

    Of each run of `num_minibatches` neighbouring environments every minibatch gets one, drawn by
    lot: so that processes, which hold neighbours, have equally much to do. A minibatch comes in
    chunks of at most `mini_batch_size` frames, but at least one trajectory, so that the hidden
    state can be recomputed from the rollout's start.
    """
    num_steps = len(batch.action)
    envs_per_chunk = max(1, config.mini_batch_size // num_steps)
    count = min(config.num_minibatches, share.num_envs)
    minibatch_of = _lots_within_blocks(share.num_envs, count, seed, key)
    for number in range(count):
        envs = np.flatnonzero(minibatch_of == number)
        chunks = _in_chunks(share.local(envs), envs_per_chunk)
        yield Minibatch([_take_trajectories(batch, c) for c in chunks], num_steps * len(envs))


def split_frames(
    batch: RolloutBatch, config: PPOConfig, seed: int, key: int, share: EnvironmentShare
) -> Iterator[Minibatch]:
    """Minibatches of single frames in random order, for feed-forward policies.

    Each chunk has one time step, and its frames take the place of environments.
    """
    num_steps, num_own = batch.action.shape
    num_frames = num_steps * share.num_envs
    order = np.argsort(_draws(num_frames, seed, key), kind="stable")
    for frames in np.array_split(order, min(config.num_minibatches, num_frames)):
        time, env = np.divmod(frames, share.num_envs)
        is_own = (env >= share.own.start) & (env < share.own.stop)
        own = time[is_own] * num_own + env[is_own] - share.own.start
        chunks = _in_chunks(own, config.mini_batch_size)
        yield Minibatch([_take_frames(batch, c) for c in chunks], len(frames))


def require_usable(config: PPOConfig) -> None:
    """Raise `UserError` for settings with which no update is possible."""
    counts = ("num_envs", "num_steps", "num_epochs", "num_minibatches", "mini_batch_size")
    require_at_least(config, *counts)
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"--{name} {getattr(config, name)}: must lie between 0 and 1")
    require_at_least(config, "learning_rate", "value_coefficient", "entropy_coefficient", least=0)
    for name in ("clip", "max_grad_norm"):
        if not getattr(config, name) > 0:
            raise UserError(f"--{name} {getattr(config, name)}: must be positive")


def _draws(count: int, seed: int, key: int) -> NDArray[np.float64]:
    return keyed_uniform(seed, "minibatch", np.arange(count), key)[:, 0]


def _lots_within_blocks(count: int, size: int, seed: int, key: int) -> NDArray[np.int64]:
    """(count,) lots 0 to size − 1, each once in every block of `size`; a last, shorter block has
    the lowest ones."""
    padded = np.full((-(-count // size), size), np.inf)
    padded.flat[:count] = _draws(count, seed, key)
    return padded.argsort(-1, kind="stable").argsort(-1).flatten()[:count]


def _in_chunks(positions: NDArray[np.int64], size: int) -> list[Tensor]:
    """Parts of at most `size` positions, as equal as can be; none of no positions."""
    if len(positions) == 0:
        return []
    num_chunks = -(-len(positions) // size)
    return [torch.from_numpy(part) for part in np.array_split(positions, num_chunks)]


def _take_trajectories(batch: RolloutBatch, envs: Tensor) -> RolloutBatch:
    envs = envs.to(batch.action.device)
    return RolloutBatch(
        obs=batch.obs[:, envs],
        first=batch.first[:, envs],
        initial_state=batch.initial_state[envs],
        action=batch.action[:, envs],
        log_prob=batch.log_prob[:, envs],
        value=batch.value[:, envs],
        advantage=batch.advantage[:, envs],
        value_target=batch.value_target[:, envs],
    )


def _take_frames(batch: RolloutBatch, frames: Tensor) -> RolloutBatch:
    frames = frames.to(batch.action.device)
    return RolloutBatch(
        obs=batch.obs.flatten(0, 1)[None, frames],
        first=batch.first.flatten()[None, frames],
        initial_state=batch.initial_state.new_zeros(len(frames), batch.initial_state.shape[1]),
        action=batch.action.flatten()[None, frames],
        log_prob=batch.log_prob.flatten()[None, frames],
        value=batch.value.flatten()[None, frames],
        advantage=batch.advantage.flatten()[None, frames],
        value_target=batch.value_target.flatten()[None, frames],
    )
