"""What the rest of the project asks of an agent.

State in, state out. The state is one flat vector per environment; an LSTM's h and c are slices of
it. The reset happens inside, by `first`, before the observation is used.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Readout:
    """What the heads make of a recurrent state."""

    action_logits: Tensor
    """(..., num_actions) logits of the clean policy."""
    value: Tensor
    """(...)"""


@dataclass(frozen=True)
class AgentOutput:
    """Result of one step, or of an unrolled sequence with time as the leading dimension."""

    state: Tensor
    """(..., state_dim) state after the observation."""
    action_logits: Tensor
    """(..., num_actions)"""
    value: Tensor
    """(...)"""


class Agent(Protocol):
    """A policy with a recurrent state, deterministic, in which no row depends on another.

    Attributes that an agent may have besides:

    - `obs_shape`, (H, W, C): the only frames that it takes, or (D,), the only vectors. Without it,
      whatever size a frame has is the affair of `embed`.
    - `has_bounded_state`: whether each number of its state lies in [−1, 1], as a GRU's does.
    - `env_steps`: environment steps it was trained for.
    - `hash`: a string that identifies it, in place of its `state_dict()`.
    - `to(device)`: moves it; every `nn.Module` has it.

    Where the environment's observations are vectors, `images` are (B, D) float vectors as the
    environment gives them.

    `step(images, state, first)` equals `read_out(advance(embed(images), state, first))`; the
    parts exist so that convolutions can be batched over time, and so that an intervention can
    act on the state before the heads read it.
    """

    state_dim: int
    """Size of the flat state. A feed-forward agent's state is its last feature vector, which the
    next step ignores: so analyses of what the agent represents apply to it unchanged."""
    hidden_slice: slice
    """The part of the state that analyses look at: an actor's h."""
    num_actions: int

    def initial_state(self, batch_size: int) -> Tensor:
        """(B, state_dim) state before the first observation of an episode."""
        ...

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float images in [0, 1] → (B, embedding_dim)."""
        ...

    def advance(self, embedding: Tensor, state: Tensor, first: Tensor | None = None) -> Tensor:
        """(B, embedding_dim), (B, state_dim), (B,) bool → (B, state_dim).

        Where `first` is true the state is replaced by the initial state before the update; None
        means nowhere.
        """
        ...

    def read_out(self, state: Tensor) -> Readout:
        """(..., state_dim) → logits and value."""
        ...

    def step(self, images: Tensor, state: Tensor, first: Tensor | None = None) -> AgentOutput:
        """One decision for B environments."""
        ...


def expected_frames(agent: Agent) -> tuple[int, ...] | None:
    """(H, W, C) of the only frames that the agent takes; None where it does not say."""
    shape = getattr(agent, "obs_shape", None)
    return None if shape is None else tuple(shape)


def has_bounded_state(agent: Agent) -> bool:
    """Whether the agent says that each number of its state lies in [−1, 1]."""
    return bool(getattr(agent, "has_bounded_state", False))
