"""Policies without a network, to compare trained agents with."""

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.protocol import AgentOutput, Readout
from environments.protocol import EnvironmentSpec

RUN_RIGHT_AND_JUMP = "upright"
"""Procgen's action of the script: held, it jumps again at each landing."""

_CERTAIN = 100.0
"""A logit that leaves the other actions a probability of e^-100."""


class HeldAction:
    """An agent without state that always takes the same action."""

    state_dim = 0
    hidden_slice = slice(0, 0)

    def __init__(self, action: int, num_actions: int) -> None:
        self.action = action
        self.num_actions = num_actions

    def initial_state(self, batch_size: int) -> Tensor:
        """(B, 0)"""
        return torch.zeros(batch_size, 0)

    def embed(self, images: Tensor) -> Tensor:
        """(B, ...) → (B, 0)"""
        return images.new_zeros(len(images), 0, dtype=torch.float32)

    def advance(self, embedding: Tensor, state: Tensor, first: Tensor | None = None) -> Tensor:
        """(B, 0)"""
        return state

    def read_out(self, state: Tensor) -> Readout:
        """(..., 0) → logits (..., num_actions) of a certain choice, value 0 (...)."""
        action = torch.full(state.shape[:-1], self.action, device=state.device)
        logits = _CERTAIN * F.one_hot(action, self.num_actions)
        return Readout(logits.to(state.dtype), state.new_zeros(state.shape[:-1]))

    def step(self, images: Tensor, state: Tensor, first: Tensor | None = None) -> AgentOutput:
        """One decision for B environments."""
        readout = self.read_out(state)
        return AgentOutput(state, readout.action_logits, readout.value)


def run_right_and_jump(environment: EnvironmentSpec) -> HeldAction:
    """The script that an agent of CoinRun should outplay; `ValueError` without such an action."""
    action = environment.action_names.index(RUN_RIGHT_AND_JUMP)
    return HeldAction(action, environment.num_actions)
