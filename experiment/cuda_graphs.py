"""Functions whose kernels a GPU gets in one launch.

A step of playing or learning is hundreds to thousands of small kernels, and launching them one by
one takes longer than computing them. A CUDA graph is recorded once and launched whole: the same
kernels in the same order on the same memory, so nothing but the time changes.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

_WARM_UP_CALLS = 3
"""Calls before the recording, in which libraries choose their algorithms and take their memory."""


Output = TypeVar("Output", bound=Any)
"""A dataclass of tensors, or a tensor."""


@dataclass(frozen=True)
class _Recording(Generic[Output]):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Output


class CapturedFunction(Generic[Output]):
    """A function of tensors, recorded at the first call with each set of shapes.

    The function may read and change tensors of its own, like weights, as long as they stay where
    they are in memory; it must neither read a value on the CPU nor branch on one. Gradients that
    it computes are added to those of `parameters`, which are made if they are not there and must
    be cleared in place: `optimiser.zero_grad(set_to_none=False)`.
    """

    def __init__(
        self, function: Callable[..., Output], parameters: Iterable[nn.Parameter] = ()
    ) -> None:
        self._function = function
        self._parameters = list(parameters)
        self._recordings: dict[tuple[tuple[torch.Size, torch.dtype], ...], _Recording[Output]] = {}

    def __call__(self, *inputs: Tensor) -> Output:
        """The function's value, in memory of its own."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._recordings:
            # Streams are those of the current GPU, which need not be the one that computes.
            with torch.cuda.device(inputs[0].device):
                self._recordings[key] = self._record(inputs)
        recording = self._recordings[key]
        for own, given in zip(recording.inputs, inputs, strict=True):
            own.copy_(given)
        recording.graph.replay()
        return _copy(recording.output)

    def _record(self, inputs: Sequence[Tensor]) -> _Recording[Output]:
        gradients = self._existing_gradients()
        before = [gradient.clone() for gradient in gradients]
        own = tuple(torch.empty_like(tensor).copy_(tensor) for tensor in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                self._function(*own)
        torch.cuda.current_stream().wait_stream(stream)
        for gradient, value in zip(gradients, before, strict=True):
            gradient.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            output = self._function(*own)
        return _Recording(graph, own, output)

    def _existing_gradients(self) -> list[Tensor]:
        gradients = []
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        return gradients


def _copy(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.clone()
    names = [field.name for field in dataclasses.fields(output)]
    return dataclasses.replace(output, **{name: getattr(output, name).clone() for name in names})
