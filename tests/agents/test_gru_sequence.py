import pytest
import torch
from torch import Tensor

from agents.gru_sequence import gru_sequence
from agents.networks import GRUCell


@pytest.fixture
def cell() -> GRUCell:
    torch.manual_seed(0)
    return GRUCell(5, 3).double()


def looped(cell: GRUCell, inputs: Tensor, state: Tensor, first: Tensor) -> Tensor:
    states = []
    for step, is_first in zip(inputs, first, strict=True):
        state = torch.where(is_first[:, None], 0.0, state)
        state = cell.update(cell.project_input(step), state)
        states.append(state)
    return torch.stack(states)


@pytest.mark.parametrize("resets", [(), ((0, 0),), ((2, 1), (3, 0), (3, 1))])
def test_states_and_gradients_equal_those_of_the_loop(cell, resets):
    inputs = torch.randn(6, 2, 5, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    first = torch.zeros(6, 2, dtype=torch.bool)
    for step, env in resets:
        first[step, env] = True
    weight = torch.randn(6, 2, 3, dtype=torch.float64)
    leaves = [inputs, state, *cell.parameters()]
    expected, found = (run(cell, inputs, state, first) for run in (looped, gru_sequence))
    torch.testing.assert_close(found, expected)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), leaves)
    gradients = torch.autograd.grad((found * weight).sum(), leaves)
    for left, right in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(left, right)


def test_what_is_not_a_number_does_not_outlive_its_episode(cell):
    inputs, first = torch.randn(4, 1, 5, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.bool)
    first[2] = True
    inputs[1] = torch.nan
    states = gru_sequence(cell, inputs, torch.zeros(1, 3, dtype=torch.float64), first)
    assert states[1].isnan().all()
    assert not states[2:].isnan().any()


def test_second_derivatives_are_refused(cell):
    inputs = torch.randn(2, 1, 5, dtype=torch.float64, requires_grad=True)
    first = torch.zeros(2, 1, dtype=torch.bool)
    states = gru_sequence(cell, inputs, torch.zeros(1, 3, dtype=torch.float64), first)
    (gradient,) = torch.autograd.grad(states.square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
