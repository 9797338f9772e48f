"""What flows through the simulator.

Tensors with a time dimension have it first. Simulated step k is row `init − 1 + k` of the window
that initialised it; step 0 is a reconstruction of the last frame given.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LatentChoice = Literal["mode", "sample"]
"""How a categorical latent, or the agent's action, is picked from its distribution."""


@dataclass(frozen=True)
class EnvironmentState:
    """State of the simulated environment."""

    deter: Tensor
    """(..., deter_dim) deterministic part."""
    stoch: Tensor
    """(..., num_categoricals, num_classes) one-hot, straight-through."""

    @property
    def features(self) -> Tensor:
        """(..., deter_dim + num_categoricals · num_classes), what the heads read."""
        return torch.cat([self.deter, self.stoch.flatten(-2)], dim=-1)


@dataclass(frozen=True)
class InitialState:
    """What the latent decodes to: everything at row `init − 2` of the window."""

    environment: EnvironmentState
    agent_state: Tensor
    """(B, state_dim)"""
    action: Tensor
    """(B, num_actions) one-hot (straight-through) action taken at row `init − 2`."""


@dataclass(frozen=True)
class SimulatedSteps:
    """K simulated steps, one tensor per step, so that gradients to any step can be asked for.

    `action[k]`, `reward[k]` and `terminal_logit[k]` answer to `images[k]`: they are row k.
    """

    deter: tuple[Tensor, ...]
    """K × (B, deter_dim)"""
    stoch: tuple[Tensor, ...]
    """K × (B, num_categoricals, num_classes)"""
    images: tuple[Tensor, ...]
    """K × (B, C, H, W) in [0, 1], rounded to 8 bits with identity backward: what the agent saw."""
    agent_state: tuple[Tensor, ...]
    """K × (B, state_dim) after seeing the image, interventions applied."""
    action_logits: tuple[Tensor, ...]
    """K × (B, num_actions)"""
    value: tuple[Tensor, ...]
    """K × (B,)"""
    action: tuple[Tensor, ...]
    """K × (B, num_actions) one-hot; straight-through where the agent chose it."""
    reward: tuple[Tensor, ...]
    """K × (B,)"""
    terminal_logit: tuple[Tensor, ...]
    """K × (B,)"""
