import torch
from torch import nn

from experiment.distributed import Ranks


class _Twins(Ranks):
    """Two processes that always have the same."""

    def sum(self, tensor):
        return 2 * tensor


def test_gradients_are_summed_where_they_are_and_absent_ones_count_as_zero():
    """A CUDA graph adds to the place in memory at which it found them."""
    kernel = nn.Parameter(torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last))
    unused = nn.Parameter(torch.ones(3))
    gradient = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    kernel.grad = gradient
    expected = 2 * gradient
    _Twins(size=2).sum_gradients([kernel, unused])
    assert kernel.grad is gradient
    assert torch.equal(gradient, expected)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert unused.grad is not None
    assert torch.equal(unused.grad, torch.zeros(3))
