"""The losses of a batch and their gradients, on a GPU as one launch."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import torch
from torch import Tensor

from agents.networks import RecurrentPolicy
from experiment.cuda_graphs import CapturedFunction
from experiment.distributed import ALONE, Ranks
from generative.objective import (
    Losses,
    ObjectiveConfig,
    TrainingNoise,
    WindowTensors,
    compute_losses,
    term_names,
)
from generative.simulator import Simulator, trained_parameters


def can_use_graphs(simulator: Simulator, ranks: Ranks = ALONE) -> bool:
    """Whether losses and gradients can be launched as a CUDA graph.

    Processes that work together speak to each other in between, and what an agent from elsewhere
    does on the CPU would be left out of a recording without a word.
    """
    on_cuda = simulator.rssm.stoch_weights.weight.is_cuda
    return on_cuda and ranks.size == 1 and isinstance(simulator.agent, RecurrentPolicy)


class LossGradients:
    """Adds the gradients of a batch's loss to those of the parameters."""

    def __init__(
        self,
        simulator: Simulator,
        config: ObjectiveConfig,
        ranks: Ranks = ALONE,
        *,
        uses_graphs: bool = False,
        objective: Callable[..., Losses] | None = None,
    ) -> None:
        """Choose what is differentiated.

        Args:
            simulator: whose weights are trained.
            config: terms and their weights.
            ranks: the processes that share the batch.
            uses_graphs: launch everything as a CUDA graph; see `can_use_graphs`.
            objective: computes the losses, with the first arguments of `compute_losses`, which
                is what does by default.
        """
        self.simulator, self.config = simulator, config
        self.objective = objective or partial(compute_losses, ranks=ranks)
        self.uses_graphs = uses_graphs
        self.names = ("total", *term_names(config.weights, simulator.config.bottleneck))
        self._accumulate: Callable[..., Tensor] = self._accumulate_eagerly
        if uses_graphs:
            parameters = trained_parameters(simulator)
            self._accumulate = CapturedFunction(self._accumulate_eagerly, parameters)

    def __call__(self, windows: WindowTensors, noise: TrainingNoise) -> dict[str, Tensor]:
        """The total and its terms, detached. Gradients must have been cleared: see `clear`."""
        values = self._accumulate(*_tensors(windows), *_tensors(noise))
        return dict(zip(self.names, values, strict=True))

    def clear(self, optimiser: torch.optim.Optimizer) -> None:
        """Forget the gradients; a graph finds them at the same place in memory afterwards."""
        optimiser.zero_grad(set_to_none=not self.uses_graphs)

    def _accumulate_eagerly(self, *tensors: Tensor) -> Tensor:
        num_fields = len(fields(WindowTensors))
        windows, noise = WindowTensors(*tensors[:num_fields]), TrainingNoise(*tensors[num_fields:])
        losses = self.objective(self.simulator, windows, self.config, noise)
        losses.total.backward()
        values = {"total": losses.total, **losses.terms}
        return torch.stack([values[name].detach() for name in self.names])


def _tensors(batch: WindowTensors | TrainingNoise) -> list[Tensor]:
    return [getattr(batch, field.name) for field in fields(batch)]
