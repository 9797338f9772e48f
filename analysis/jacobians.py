"""Jacobians between component coordinates of the agent's hidden state over all pairs of steps.

For simulated steps t ≤ t', J[t', j, t, i] = ∂s_j(t') / ∂s_i(t), where s(t) are the component
coordinates of the hidden state at step t and everything else at step t, the rest of the agent's
state and the environment's state, is held fixed. They are derivatives of the relaxed simulator:
discrete values pass gradients straight through. What a finite push does in the discrete simulator
is measured beside them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from generative.types import SimulatedSteps
from projections.hidden import TorchProjection
from projections.intervention import Intervention

Simulate = Callable[[Intervention], SimulatedSteps]
"""Simulates a batch under an intervention, which acts after those that it was recorded with."""


class StateCut:
    """Cuts the autograd graph at the agent's state of every step, changing no value."""

    def __init__(self) -> None:
        self.proposed: list[Tensor] = []
        """K × (B, state_dim), ends of the pieces of the graph."""

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        """(B, state_dim) proposed state → the same as a leaf, the beginning of the next piece."""
        self.proposed.append(proposed)
        return proposed.detach().requires_grad_(True)

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        return {"cut": "autograd graph"}


def component_jacobians(
    simulate: Simulate,
    projection: TorchProjection,
    hidden_slice: slice,
    num_components: int,
    is_environment_cut: bool = False,
) -> Tensor:
    """Jacobians of every component at every step with respect to those of all earlier steps.

    Reverse accumulation through one simulated step at a time: (agent state, deter) at t − 1 decide
    (agent state, deter) at t, since `stoch` is a function of `deter` and the action one of the
    agent's state. At each step the cotangents of all components at all later steps are pulled
    back in one batched vector-Jacobian product. Only the agent's state looks at the image, so no
    more than `state_dim` cotangents ever pass through the convolutions: where there are more,
    those of a basis do, and the rest are combined from them.

    Args:
        simulate: K steps of B elements, from an initial state that requires gradients.
        projection: defines the coordinates.
        hidden_slice: the part of the agent's state that it applies to.
        num_components: D, the leading components that are looked at.
        is_environment_cut: whether `simulate` cuts the gradient from actions to the environment.
            What the environment does then leads back to no state of the agent, and is left out.

    Returns:
        (B, K, D, K, D), indexed by [element, target step, target, source step, source]; zero
        where the source step is later than the target step.
    """
    cut = StateCut()
    steps = simulate(cut)
    states, deters = steps.agent_state, steps.deter
    num_steps, (batch_size, state_dim) = len(states), states[0].shape
    shape = (batch_size, num_steps, num_components, num_steps, num_components)
    jacobians = states[0].new_zeros(shape)
    seeds = states[0].new_zeros(num_components, batch_size, state_dim)
    seeds[:, :, hidden_slice] = projection.linear[:num_components, None]
    unseen = deters[0].new_zeros(num_components, *deters[0].shape)
    onto_state, onto_deter = seeds[:0], unseen[:0]
    for step in reversed(range(num_steps)):
        onto_state = torch.cat([seeds, onto_state])
        pulled = projection.pullback(onto_state[..., hidden_slice])[..., :num_components]
        by_target = pulled.unflatten(0, (num_steps - step, num_components))
        jacobians[:, step:, :, step] = by_target.permute(2, 0, 1, 3)
        if step == 0:
            break
        if is_environment_cut:
            ends, starts = cut.proposed[step : step + 1], states[step - 1 : step]
            (onto_state,) = _products(ends, starts, (onto_state,))
        else:
            onto_deter = torch.cat([unseen, onto_deter])
            ends = cut.proposed[step], deters[step]
            starts = states[step - 1], deters[step - 1]
            onto_state, onto_deter = _pull_back(ends, starts, (onto_state, onto_deter))
    return jacobians


Pair = tuple[Tensor, Tensor]
"""What belongs to (agent state, deter)."""


def _pull_back(ends: Pair, starts: Pair, cotangents: Pair) -> Pair:
    """Products of N cotangents with the Jacobian of one simulated step.

    Args:
        ends: (B, state_dim) and (B, deter_dim) after the step.
        starts: the same before the step.
        cotangents: (N, B, state_dim) and (N, B, deter_dim) onto `ends`.

    Returns:
        (N, B, state_dim) and (N, B, deter_dim) onto `starts`.
    """
    onto_state, onto_deter = cotangents
    state_dim = onto_state.shape[-1]
    if len(onto_state) <= state_dim:
        pulled_state, pulled_deter = _products(ends, starts, cotangents)
        return pulled_state, pulled_deter
    basis = torch.eye(state_dim).to(onto_state)[:, None].expand(-1, onto_state.shape[1], -1)
    through_state = _products(ends[:1], starts, (basis,))
    through_deter = _products(ends[1:], starts, (onto_deter,))
    combined = [torch.einsum("nbk,kbj->nbj", onto_state, rows) for rows in through_state]
    return combined[0] + through_deter[0], combined[1] + through_deter[1]


def _products(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Per input (N, ...): vector-Jacobian products of N cotangents (N, ...) per output at once."""

    # `is_grads_batched` would do the same, but loops over the cotangents in every convolution.
    def single(*cotangent: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            outputs, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    return torch.func.vmap(single)(*cotangents)


@dataclass(frozen=True)
class PushSettings:
    """A finite push along each of several components, both ways."""

    step: int
    """Simulated step at which the hidden state is pushed, before it is read and carried on."""
    size: float
    """How far, in units of the coordinates."""
    num_components: int
    """D, the leading components."""


class Push:
    """Adds fixed offsets to the agent's state at one step.

    Args:
        step: simulated step.
        offset: (C, state_dim), one for each of C adjacent copies of every element.
    """

    def __init__(self, step: int, offset: Tensor) -> None:
        self.step, self.offset = step, offset

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        """(B, state_dim) proposed state → the state to carry on."""
        if step != self.step:
            return proposed
        return (proposed.unflatten(0, (-1, len(self.offset))) + self.offset).flatten(0, 1)

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        return {"push_at_step": self.step}


@torch.no_grad()
def push_effects(
    simulate: Simulate,
    projection: TorchProjection,
    state_dim: int,
    hidden_slice: slice,
    push: PushSettings,
) -> Tensor:
    """What becomes of a finite push along each component: (s(t | +size) − s(t | −size)) / 2 size.

    Pushed copies share their draws, so that nothing but the push tells them apart.

    Args:
        simulate: runs B elements in 2 D adjacent copies each.
        projection: defines the coordinates.
        state_dim: of the agent.
        hidden_slice: the part of the state that the projection applies to.
        push: when, how far, along how many components.

    Returns:
        (B, K, D, D), indexed by [element, step, target, source]; zero before the push.
    """
    num_components = push.num_components
    directions = projection.directions[:, :num_components].T
    offset = directions.new_zeros(num_components, 2, state_dim)
    signs = torch.tensor([push.size, -push.size]).to(directions)
    offset[..., hidden_slice] = directions[:, None] * signs[:, None]
    steps = simulate(Push(push.step, offset.flatten(0, 1)))
    hidden = torch.stack([state[:, hidden_slice] for state in steps.agent_state], dim=1)
    coordinates = projection.transform(hidden)[..., :num_components]
    plus, minus = coordinates.unflatten(0, (-1, num_components, 2)).unbind(2)
    return ((plus - minus) / (2 * push.size)).permute(0, 2, 3, 1)
