"""The whole protocol for an agent that offers a step and nothing else."""

from typing import Protocol

import torch
from torch import Tensor, nn

from agents.protocol import AgentOutput, Readout


class SteppingAgent(Protocol):
    """The least that an agent must offer."""

    state_dim: int
    """0 for an agent without memory."""
    hidden_slice: slice
    num_actions: int

    def initial_state(self, batch_size: int) -> Tensor:
        """(B, state_dim)"""
        ...

    def step(self, images: Tensor, state: Tensor, first: Tensor | None = None) -> AgentOutput:
        """One decision for B environments."""
        ...


class StepOnlyAgent(nn.Module):
    """Makes the parts that `agents.protocol.Agent` has and a `SteppingAgent` lacks.

    The state is the agent's own, then the action logits, then the value: the heads have nothing to
    do but read. So an intervention on the state changes the agent from the next step on, not what
    it says at this one; and an agent without any state is analysed by its logits.
    """

    def __init__(self, agent: SteppingAgent) -> None:
        super().__init__()
        self.agent = agent
        self.num_actions = agent.num_actions
        self.state_dim = agent.state_dim + agent.num_actions + 1
        self.hidden_slice = agent.hidden_slice if agent.state_dim else slice(0, agent.num_actions)

    def initial_state(self, batch_size: int) -> Tensor:
        """(B, state_dim) the agent's initial state, then zeros."""
        own = self.agent.initial_state(batch_size)
        return torch.cat([own, own.new_zeros(batch_size, self.num_actions + 1)], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """The images themselves; `advance` does all the work."""
        return images

    def advance(self, embedding: Tensor, state: Tensor, first: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B, state_dim), (B,) bool → (B, state_dim)."""
        output = self.agent.step(embedding, state[..., : self.agent.state_dim], first)
        return torch.cat([output.state, output.action_logits, output.value[..., None]], dim=-1)

    def read_out(self, state: Tensor) -> Readout:
        """(..., state_dim) → the logits and value in it."""
        return Readout(state[..., self.agent.state_dim : -1], state[..., -1])

    def step(self, images: Tensor, state: Tensor, first: Tensor | None = None) -> AgentOutput:
        """One decision for B environments."""
        state = self.advance(images, state, first)
        readout = self.read_out(state)
        return AgentOutput(state, readout.action_logits, readout.value)
