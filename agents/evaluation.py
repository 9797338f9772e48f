"""How well a policy plays given levels, each of them exactly once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from agents.collection import sample_actions
from agents.images import to_float_observations
from agents.protocol import Agent
from environments.protocol import TRAINING_LEVELS, Transition, VectorEnvironment
from experiment.randomness import keyed_uniform


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One entry per level, in the order in which the levels were given."""

    returns: NDArray[np.float64]
    """(L,) sums of raw rewards."""
    lengths: NDArray[np.int64]
    """(L,) numbers of decisions."""


def held_out_levels(count: int) -> range:
    """The first `count` levels that training never sees."""
    return range(TRAINING_LEVELS, TRAINING_LEVELS + count)


def evaluate(
    policy: Agent | None,
    environment: VectorEnvironment,
    levels: Sequence[int],
    seed: int,
) -> Evaluation:
    """Play every level once, with sampled actions.

    A fixed number of slots that restart on random levels would favour short episodes; here a slot
    takes the next level of the list, and rests when there is none. Draws are keyed by level and
    step, so the result does not depend on the number of slots.

    Args:
        policy: who plays; None draws actions uniformly.
        environment: its slots are used and left in the middle of episodes.
        levels: level seeds, all different.
        seed: keys the draws of the actions.
    """
    return _EvaluationRun(policy, environment, levels, seed).play()


class _EvaluationRun:
    """Which slot plays which level, and what came of it."""

    def __init__(
        self,
        policy: Agent | None,
        environment: VectorEnvironment,
        levels: Sequence[int],
        seed: int,
    ) -> None:
        self.policy = policy
        self.environment = environment
        self.levels = np.asarray(levels, np.int64)
        self.seed = seed
        self.returns = np.zeros(len(self.levels))
        self.lengths = np.zeros(len(self.levels), np.int64)
        self.next_level = 0
        # Position in `levels` that each slot plays; −1 rests.
        self.playing = np.full(environment.num_envs, -1)
        self.state = policy.initial_state(environment.num_envs) if policy is not None else None

    @torch.inference_mode()
    def play(self) -> Evaluation:
        self._assign(np.arange(self.environment.num_envs))
        while (self.playing >= 0).any():
            active = np.flatnonzero(self.playing >= 0)
            actions = np.full(self.environment.num_envs, self.environment.spec.null_action)
            actions[active] = self._choose(self.environment.observe(), active)
            self.environment.send(actions)
            result = self.environment.observe()
            self.returns[self.playing[active]] += result.reward[active]
            self.lengths[self.playing[active]] += 1
            self._assign(active[result.first[active]])
        return Evaluation(self.returns, self.lengths)

    def _assign(self, slots: NDArray[np.int64]) -> None:
        """Give each slot the next level, or rest."""
        count = min(len(slots), len(self.levels) - self.next_level)
        positions = self.next_level + np.arange(count)
        self.next_level += count
        self.playing[slots[count:]] = -1
        self.playing[slots[:count]] = positions
        if count:
            self.environment.start_level(slots[:count].tolist(), self.levels[positions].tolist())

    def _choose(self, transition: Transition, active: NDArray[np.int64]) -> NDArray[np.int64]:
        positions = self.playing[active]
        uniform = keyed_uniform(
            self.seed, "evaluation", self.levels[positions], self.lengths[positions]
        )[:, 0]
        if self.policy is None or self.state is None:
            return (uniform * self.environment.spec.num_actions).astype(np.int64)
        device, slots = self.state.device, torch.from_numpy(active).to(self.state.device)
        output = self.policy.step(
            to_float_observations(transition.obs[active], device),
            self.state[slots],
            torch.from_numpy(transition.first[active]).to(device),
        )
        self.state[slots] = output.state
        draws = torch.from_numpy(uniform.astype(np.float32)).to(device)
        return sample_actions(output.action_logits, draws).cpu().numpy()
