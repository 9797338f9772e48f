"""The agent's GRU over whole sequences, with its backward pass written out.

Equals a loop over `GRUCell.update` with autograd, which on a CPU spends most of its time on
bookkeeping for thousands of small operations. Here only what is sequential runs in the loop: about
eight operations per step, each way. Backpropagation through time: Werbos, "Backpropagation through
time: what it does and how to do it" (1990).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from agents.networks import GRUCell


def gru_sequence(cell: GRUCell, inputs: Tensor, state: Tensor, first: Tensor) -> Tensor:
    """States after each of T steps; differentiable once, outside of `torch.func`.

    Args:
        cell: the recurrence.
        inputs: (T, B, input_dim)
        state: (B, state_dim) before the first step.
        first: (T, B) bool, where the state is set to zero before the update.

    Returns:
        (T, B, state_dim)
    """
    gates = cell.project_input(inputs)
    return _GRUSequence.apply(gates, state, first, cell.weight_hh, cell.bias_hh)


@dataclass(frozen=True, slots=True)
class _Row:
    """What the backward pass needs of a step; (B, ...) each."""

    before: Tensor
    """State before the update, resets applied."""
    both: Tensor
    """Reset and update gates."""
    new: Tensor
    hidden_new: Tensor
    """What the state adds to the new value, before the reset gate."""


class _GRUSequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, state: Tensor, first: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        num_units = state.shape[1]
        transposed = weight.t().contiguous()
        gates_of_both, gates_of_new = gates.split([2 * num_units, num_units], dim=-1)
        # A GPU would have to be waited for to hear whether there is one at all.
        is_reset = [True] * len(first) if first.is_cuda else first.flatten(1).any(1).tolist()
        rows: list[_Row] = []
        states = []
        for is_first, any_first, gate_of_both, gate_of_new in zip(
            first.unsqueeze(-1).unbind(0),
            is_reset,
            gates_of_both.unbind(0),
            gates_of_new.unbind(0),
            strict=True,
        ):
            # A product would carry a NaN of the episode before into the next one.
            before = torch.where(is_first, 0.0, state) if any_first else state
            hidden = torch.addmm(bias, before, transposed)
            hidden_of_both, hidden_new = hidden.split([2 * num_units, num_units], dim=-1)
            both = torch.sigmoid(gate_of_both + hidden_of_both)
            reset, update = both.chunk(2, dim=-1)
            new = torch.tanh(torch.addcmul(gate_of_new, reset, hidden_new))
            state = torch.lerp(new, before, update)
            rows.append(_Row(before, both, new, hidden_new))
            states.append(state)
        saved = [torch.stack([getattr(row, name) for row in rows]) for name in _Row.__slots__]
        ctx.save_for_backward(*saved, first, weight)
        return torch.stack(states)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_states: Tensor
    ) -> tuple[Tensor | None, ...]:
        before, both, new, hidden_new, first, weight = ctx.saved_tensors
        reset, update = both.chunk(2, dim=-1)
        # How the gates' inputs move the state: all of it that no later step changes. The three
        # gates lie in the second last dimension.
        by_new = (1 - update) * (1 - new.square())
        by_reset = by_new * hidden_new * reset * (1 - reset)
        by_update = (before - new) * update * (1 - update)
        by_gates = torch.stack([by_reset, by_update, by_new], dim=-2)
        by_hidden = torch.stack([by_reset, by_update, by_new * reset], dim=-2)
        kept = ~first.unsqueeze(-1)
        onto_before, carried = by_hidden * kept.unsqueeze(-2), update * kept
        grad_state = torch.zeros_like(grad_states[0])
        arriving = []
        for grad, step_onto_before, step_carried in zip(
            *(reversed(steps.unbind(0)) for steps in (grad_states, onto_before, carried)),
            strict=True,
        ):
            grad_state = grad_state + grad
            arriving.append(grad_state)
            grad_hidden = (step_onto_before * grad_state.unsqueeze(-2)).flatten(-2)
            grad_state = torch.addmm(grad_state * step_carried, grad_hidden, weight)
        arrived = torch.stack(arriving[::-1]).unsqueeze(-2)
        grad_hidden = (by_hidden * arrived).flatten(0, 1).flatten(-2)
        grad_weight = grad_hidden.t() @ before.flatten(0, 1)
        return (by_gates * arrived).flatten(-2), grad_state, None, grad_weight, grad_hidden.sum(0)
