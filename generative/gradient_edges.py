"""Edges of a simulation that pass gradients or stop them, decided at each backward pass.

What happened `k` steps ago reaches the agent by two recurrences: its own, h_{t−1} → h_t, and the
environment's, which it drives by its actions. Shutting an edge leaves the forward values alone, so
one simulation answers for every combination of edges.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class GradientEdges:
    """Which edges pass gradients; the switches may be moved between backward passes."""

    action_to_environment: bool = True
    """From an action to the next environment state."""
    agent_memory: bool = True
    """From the agent's state to its own next state."""

    def action(self, action: Tensor) -> Tensor:
        """The action as the environment sees it; the same values."""
        return _gated(action, lambda: self.action_to_environment)

    def memory(self, agent_state: Tensor) -> Tensor:
        """The agent's state as its own recurrence sees it; the same values."""
        return _gated(agent_state, lambda: self.agent_memory)


def _gated(tensor: Tensor, is_open: Callable[[], bool]) -> Tensor:
    if not tensor.requires_grad:
        return tensor
    # A view of its own: a hook on the tensor itself would also stop what other readers send back.
    edge = tensor.view_as(tensor)
    edge.register_hook(lambda gradient: gradient if is_open() else torch.zeros_like(gradient))
    return edge
