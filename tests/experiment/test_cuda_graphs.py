"""What a captured function computes: on a GPU where there is one, and everywhere on a CPU.

On the CPU a stand-in for a CUDA graph notes every operation of PyTorch while the function is
recorded, undoes what these changed, since a GPU computes nothing then, and repeats them on the same
memory at each replay. That tests buffers, shapes and gradients; streams, and whether a GPU accepts
a function, only a GPU does.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiment.cuda_graphs import CapturedFunction


class NotedOperations(TorchDispatchMode):
    """Operations in order, with the memory that they read and write."""

    def __init__(self):
        super().__init__()
        self.operations, self.before = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.before += [(tensor, tensor.clone()) for tensor in tensors]
        output = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, output))
        return output

    def undo(self):
        for tensor, value in reversed(self.before):
            tensor.copy_(value)

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, output in self.operations:
                again = func(*args, **kwargs)
                for own, new in zip(tree_leaves(output), tree_leaves(again), strict=True):
                    if isinstance(own, Tensor) and own.data_ptr() != new.data_ptr():
                        own.copy_(new)


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch):
    """Where to capture: on a GPU, or on the CPU with stand-ins for its graphs."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU with CUDA")
    if request.param == "cpu":
        replace_graphs(monkeypatch)
    return torch.device(request.param)


def replace_graphs(monkeypatch):
    """Let captured functions record `NotedOperations` in place of CUDA graphs."""

    @contextmanager
    def record(graph, stream):
        with graph:
            yield
        with torch.no_grad():
            graph.undo()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stand_in in {
        "CUDAGraph": NotedOperations,
        "graph": record,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)


@dataclass(frozen=True)
class SumAndProduct:
    sum: Tensor
    product: Tensor


def test_every_result_is_its_own_inputs_and_stays_as_it_was(device):
    captured = CapturedFunction(lambda x, y: SumAndProduct(x + y, x * y))
    x = torch.tensor([1.0, 2.0], device=device)
    y = torch.tensor([3.0, 5.0], device=device)
    first = captured(x, y)
    second = captured(y, y)
    assert first.sum.tolist() == [4, 7]
    assert first.product.tolist() == [3, 10]
    assert second.sum.tolist() == [6, 10]
    assert second.product.tolist() == [9, 25]
    # What was handed in is neither kept nor changed.
    assert x.tolist() == [1, 2]
    x.zero_()
    assert captured(y, torch.ones_like(y)).product.tolist() == [3, 5]


def test_a_function_is_recorded_once_for_each_set_of_shapes_and_types(device):
    calls = []

    def double(x):
        calls.append((tuple(x.shape), x.dtype))
        return 2 * x

    captured = CapturedFunction(double)
    shapes_and_types = ((2, torch.float32), (3, torch.float32), (2, torch.float64))
    inputs = [torch.ones(size, dtype=dtype, device=device) for size, dtype in shapes_and_types]
    doubled = [captured(x) for x in inputs]
    assert [one.dtype for one in doubled] == [x.dtype for x in inputs]
    recorded = list(calls)
    assert set(recorded) == {(tuple(x.shape), x.dtype) for x in inputs}
    for x in inputs:
        assert captured(3 * x).tolist() == [6] * len(x)
    assert calls == recorded
    # What was returned before is nobody else's memory.
    assert [one.tolist() for one in doubled] == [[2] * len(x) for x in inputs]


def test_gradients_are_added_once_per_call_and_weights_may_change_in_place(device):
    weight = nn.Parameter(torch.tensor([2.0, 3.0], device=device))

    def loss(x):
        value = (weight * x).square().sum()
        value.backward()
        return value.detach()

    captured = CapturedFunction(loss, [weight])
    weight.grad = torch.ones_like(weight)
    x = torch.tensor([1.0, -1.0], device=device)
    assert captured(x).item() == 4 + 9
    assert weight.grad.tolist() == [1 + 4, 1 + 6]
    with torch.no_grad():
        weight.copy_(torch.tensor([1.0, 0.0]))
    weight.grad.zero_()
    assert captured(2 * x).item() == 4
    assert weight.grad.tolist() == [8, 0]


def test_a_parameter_without_a_gradient_gets_one(device):
    weight = nn.Parameter(torch.tensor([2.0], device=device))

    def loss(x):
        value = (weight * x).sum()
        value.backward()
        return value.detach()

    captured = CapturedFunction(loss, [weight])
    for number in (1, 2):
        assert captured(torch.tensor([5.0], device=device)).item() == 10
        assert weight.grad is not None
        assert weight.grad.tolist() == [5 * number]
