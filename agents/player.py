"""Acting with an agent: from frames to actions, with every draw keyed by episode and row.

An intervention acts where the simulator's does: on the state that the agent has just computed,
before the heads read it and before it is carried on.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.action_noise import ActionNoise
from agents.images import to_float_observations
from agents.intervening import intervene_at_rows
from agents.protocol import Agent, AgentOutput
from experiment.randomness import keyed_uniform, sample_categorical
from projections.intervention import Intervention


@dataclass(frozen=True)
class BehaviourConfig:
    """How actions follow from the policy."""

    greedy: bool = False
    """Take the most probable action instead of drawing one."""
    noise: ActionNoise | None = None
    """Explore by a policy made flatter."""
    seed: int = 0
    """Keys every draw, together with a number of the episode's own and the row."""


@dataclass(frozen=True, eq=False)
class Decision:
    """What the agent made of B frames."""

    state: Tensor
    """(B, state_dim) on the agent's device, to go on with."""
    agent_hidden: NDArray[np.float32]
    """(B, state_dim) the same state."""
    action_logits: NDArray[np.float32]
    """(B, num_actions) of the clean policy."""
    value: NDArray[np.float32]
    """(B,)"""
    action: NDArray[np.int32]
    """(B,)"""
    behaviour_log_prob: NDArray[np.float32]
    """(B,) under the policy that acted; 0 for a greedy one and for a forced action."""

    def rows(self) -> Iterator["DecisionRow"]:
        """What is kept of each of the B decisions; none holds on to the others."""
        log_probs = self.behaviour_log_prob.tolist()
        values, actions = self.value.tolist(), self.action.tolist()
        rows = zip(self.agent_hidden, self.action_logits, values, actions, log_probs, strict=True)
        for hidden, logits, value, action, log_prob in rows:
            yield DecisionRow(hidden.copy(), logits.copy(), value, action, log_prob)


class DecisionRow(NamedTuple):
    """What is kept of one decision, as `DecisionRows` names it."""

    agent_hidden: NDArray[np.float32]
    action_logits: NDArray[np.float32]
    value: float
    action: int
    behaviour_log_prob: float


@dataclass(frozen=True, eq=False)
class DecisionRows:
    """T decisions of one episode, as a rollout holds them."""

    agent_hidden: NDArray[np.float32]
    """(T, state_dim)"""
    action_logits: NDArray[np.float32]
    """(T, num_actions)"""
    value: NDArray[np.float32]
    """(T,)"""
    action: NDArray[np.int32]
    """(T,)"""
    behaviour_log_prob: NDArray[np.float32]
    """(T,)"""


def join_rows(rows: Sequence[DecisionRow]) -> DecisionRows:
    """Put decisions, at least one of them, one below the other."""
    hidden, logits, values, actions, log_probs = zip(*rows, strict=True)
    return DecisionRows(
        agent_hidden=np.stack(hidden),
        action_logits=np.stack(logits),
        value=np.array(values, np.float32),
        action=np.array(actions, np.int32),
        behaviour_log_prob=np.array(log_probs, np.float32),
    )


NOT_GIVEN = -1
"""In place of an action: the agent chooses."""


@dataclass(frozen=True, eq=False)
class GivenActions:
    """Actions settled beforehand: forced, or replayed."""

    action: NDArray[np.int32]
    """(B,) what is done whatever the agent would choose; `NOT_GIVEN` where it chooses."""
    log_prob: NDArray[np.float32]
    """(B,) their log-probability under what settled them; read only where they are given."""

    @property
    def is_given(self) -> NDArray[np.bool_]:
        """(B,)"""
        return self.action != NOT_GIVEN


class Player:
    """An agent that acts.

    Args:
        policy: the agent.
        behaviour: how actions follow from it.
        device: where the network runs.
        intervention: changes the agent's state at every decision.

    """

    def __init__(
        self,
        policy: Agent,
        behaviour: BehaviourConfig,
        device: torch.device | str = "cpu",
        intervention: Intervention | None = None,
    ) -> None:
        self.policy = policy
        self.behaviour = behaviour
        self.device = torch.device(device)
        self.intervention = intervention

    def initial_state(self, batch_size: int) -> Tensor:
        """(B, state_dim) state before the first frame of an episode."""
        return self.policy.initial_state(batch_size).to(self.device)

    def decide(
        self,
        frames: NDArray[np.uint8] | NDArray[np.float32],
        state: Tensor,
        noise_ids: NDArray[np.int64],
        rows: NDArray[np.int64],
        given: GivenActions | None = None,
        rows_of_rollout: NDArray[np.int64] | None = None,
    ) -> Decision:
        """Act on B frames.

        Args:
            frames: (B, H, W, C), or (B, D) vectors.
            state: (B, state_dim) after the frame before; replaced where the row is 0.
            noise_ids: (B,) what keys the draws, with seed and row: as a rule the episode's number.
            rows: (B,) index of the decision within its episode; within the source episode for a
                branch.
            given: actions that are not the agent's to choose.
            rows_of_rollout: (B,) index of the decision within what is being recorded, which is
                what interventions go by; by default the same.
        """
        with torch.inference_mode(), full_float32():
            first = torch.as_tensor(rows == 0).to(self.device)
            recorded_rows = rows if rows_of_rollout is None else rows_of_rollout
            images = to_float_observations(frames, self.device)
            output = self._respond(images, state, first, recorded_rows)
            # One transfer instead of three.
            packed = [output.state, output.action_logits, output.value[:, None]]
            numbers = torch.cat(packed, dim=1).cpu().numpy()
        hidden, logits, value = np.split(numbers, np.cumsum([p.shape[1] for p in packed])[:-1], 1)
        log_probs = behaviour_log_probs(logits, self.behaviour)
        action = self._choose(log_probs, noise_ids, rows)
        log_prob = np.take_along_axis(log_probs, action[:, None], axis=1)[:, 0]
        if given is not None:
            action = np.where(given.is_given, given.action, action)
            log_prob = np.where(given.is_given, given.log_prob, log_prob)
        return Decision(
            state=output.state,
            agent_hidden=hidden,
            action_logits=logits,
            value=value[:, 0],
            action=action.astype(np.int32),
            behaviour_log_prob=log_prob.astype(np.float32),
        )

    def _respond(
        self, images: Tensor, state: Tensor, first: Tensor, rows: NDArray[np.int64]
    ) -> AgentOutput:
        """(B, C, H, W), (B, state_dim), (B,), (B,) → what the agent makes of the images."""
        if self.intervention is None:
            return self.policy.step(images, state, first)
        previous = torch.where(first[:, None], self.initial_state(len(state)), state)
        proposed = self.policy.advance(self.policy.embed(images), state, first)
        modified = intervene_at_rows(self.intervention, previous, proposed, rows)
        readout = self.policy.read_out(modified)
        return AgentOutput(modified, readout.action_logits, readout.value)

    def _choose(
        self,
        log_probs: NDArray[np.float64],
        noise_ids: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        if self.behaviour.greedy:
            return log_probs.argmax(axis=1)
        uniform = keyed_uniform(self.behaviour.seed, "action", noise_ids, rows)[:, 0]
        return sample_categorical(np.exp(log_probs), uniform)


def behaviour_log_probs(
    action_logits: NDArray[np.float32], behaviour: BehaviourConfig
) -> NDArray[np.float64]:
    """Log-probabilities of the policy that acts.

    Args:
        action_logits: (..., num_actions) of the clean policy.
        behaviour: whether noise is added, whether the choice is greedy.

    Returns:
        (..., num_actions); a greedy policy puts all probability on the best action.
    """
    logits = action_logits.astype(np.float64)
    if behaviour.noise is not None:
        logits = behaviour.noise.apply(logits)
    if behaviour.greedy:
        is_best = np.arange(logits.shape[-1]) == logits.argmax(axis=-1)[..., None]
        return np.where(is_best, 0.0, -np.inf)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def full_float32() -> AbstractContextManager[None]:
    """Turn off TF32, whose ten-bit mantissas would break the replay of recordings."""
    return tf32(is_allowed=False)


@contextmanager
def tf32(is_allowed: bool) -> Iterator[None]:
    """Say whether a GPU may round the factors of products to ten bits, which is several times
    faster; a CPU never does."""
    # Any: pyright does not know the attribute of the cudnn module.
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    matmul.allow_tf32 = cudnn.allow_tf32 = is_allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
