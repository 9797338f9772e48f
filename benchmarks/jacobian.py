"""What batched vector-Jacobian products are worth, on networks of full size.

`python benchmarks/jacobian.py` simulates a few samples with a simulator of the full preset and an
agent of full width, both with random weights, on which the time does not depend, and computes the
Jacobians between all components of the agent's hidden state over all pairs of steps in four ways:
batched; with one backward pass per direction and target step on a retained graph; the same with a
forward pass for every direction; and with a forward pass up to the target step for every direction
and target step, as the reference system differentiates, one scalar at a time. It prints the
seconds per sample of each, forward passes included, the ratios, and the largest difference between
the results. Seconds are given as wall time, and on the CPU as processor time too, on which other
load on the machine counts less.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agents.networks import NetworkConfig, make_policy
from analysis.jacobians import component_jacobians
from experiment.command_line import apply_values, load_preset, parse_flags
from experiment.devices import resolve_device
from experiment.errors import require_at_least, run_entry_point
from experiment.report import stage_report
from generative.simulator import Simulator
from generative.trainer import SimulatorTrainingConfig
from generative.types import SimulatedSteps
from projections.hidden import HiddenProjection, TorchProjection
from projections.intervention import Intervention


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    interpreting_params_name: str = "defaults"
    """Preset of the simulator in hyperparams/simulator.yml."""
    num_samples: int = 1
    """Samples in a batch."""
    num_steps: int = 10
    """Simulated steps."""
    num_components: int = 16
    """Directions of the hidden state."""
    repeats: int = 3
    """Times each way is measured; the median counts."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    report: Path | None = None
    """File for a JSON report."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What the Jacobians are taken of."""

    simulator: Simulator
    projection: TorchProjection
    latent: Tensor
    """(S, latent_dim)"""
    config: BenchmarkConfig

    def simulate(
        self, intervention: Intervention | None = None, num_steps: int | None = None
    ) -> SimulatedSteps:
        """Run all samples, keeping the graph; by default for all steps."""
        latent = self.latent.clone().requires_grad_(True)
        return self.simulator.simulate(
            self.simulator.decode_initial(latent),
            num_steps or self.config.num_steps,
            intervention=intervention,
        )

    def batched(self) -> Tensor:
        """All directions and later steps at once."""
        hidden = self.simulator.agent.hidden_slice
        size = self.config.num_components
        return component_jacobians(self.simulate, self.projection, hidden, size)

    def retained_graph(self) -> Tensor:
        """One forward pass; one backward pass per direction and target step."""
        steps = self.simulate()
        return self._looped(lambda direction, target: steps)

    def forward_per_direction(self) -> Tensor:
        """One forward pass per direction, one backward pass per direction and target step."""
        runs: dict[int, SimulatedSteps] = {}

        def run(direction: int, target: int) -> SimulatedSteps:
            if target == 0:
                runs.clear()
                runs[direction] = self.simulate()
            return runs[direction]

        return self._looped(run)

    def forward_per_scalar(self) -> Tensor:
        """A forward pass up to the target step and a backward pass for every scalar."""
        return self._looped(lambda direction, target: self.simulate(num_steps=target + 1))

    def _looped(self, run: Callable[[int, int], SimulatedSteps]) -> Tensor:
        size, num_steps = self.config.num_components, self.config.num_steps
        hidden = self.simulator.agent.hidden_slice
        found = self.latent.new_zeros(len(self.latent), num_steps, size, num_steps, size)
        for direction, target in product(range(size), range(num_steps)):
            states = run(direction, target).agent_state
            output = (states[target][:, hidden] @ self.projection.linear[direction]).sum()
            gradients = torch.autograd.grad(output, states[: target + 1], retain_graph=True)
            for source, gradient in enumerate(gradients):
                pulled = self.projection.pullback(gradient[:, hidden])
                found[:, target, direction, source] = pulled[:, :size]
        return found


def make_setting(config: BenchmarkConfig) -> Setting:
    """Networks of random weights and random latents."""
    device = resolve_device(config.device)
    values = load_preset("simulator.yml", config.interpreting_params_name)["training"]
    sizes = apply_values(SimulatorTrainingConfig, values, "simulator.yml").simulator
    torch.manual_seed(0)
    simulator = Simulator(sizes, make_policy(NetworkConfig())).to(device).eval()
    simulator.requires_grad_(False)
    hidden = simulator.agent.hidden_slice
    states = np.random.default_rng(0).normal(size=(1000, hidden.stop - hidden.start))
    projection = HiddenProjection("pca", config.num_components).fit(states)
    latent = torch.randn(config.num_samples, sizes.latent_dim, device=device)
    latent = simulator.bottleneck.project(latent)
    return Setting(simulator, TorchProjection(projection).to(device), latent, config)


def measure(config: BenchmarkConfig) -> dict[str, float]:
    """Seconds per sample, ratios, and how far the results differ."""
    setting = make_setting(config)
    ways = {
        "batched": setting.batched,
        "retained_graph": setting.retained_graph,
        "forward_per_direction": setting.forward_per_direction,
        "forward_per_scalar": setting.forward_per_scalar,
    }
    results = {name: way() for name, way in ways.items()}
    seconds = {name: _median(way, config, setting.latent.device) for name, way in ways.items()}
    scale = float(results["batched"].abs().max())
    differences = [float((r - results["batched"]).abs().max()) for r in results.values()]
    numbers: dict[str, float] = {}
    for clock in _clocks(setting.latent.device):
        numbers |= {
            f"{n}_{clock}_per_sample": s[clock] / config.num_samples for n, s in seconds.items()
        }
        numbers |= {
            f"{name}_over_batched_{clock}": s[clock] / seconds["batched"][clock]
            for name, s in seconds.items()
            if name != "batched"
        }
    return {**numbers, "largest_relative_difference": max(differences) / scale}


def _clocks(device: torch.device) -> dict[str, Callable[[], float]]:
    """By what they tell; on a GPU the processor's time says nothing."""
    wall = {"wall_seconds": time.perf_counter}
    return wall if device.type == "cuda" else {**wall, "processor_seconds": time.process_time}


def _median(
    way: Callable[[], Tensor], config: BenchmarkConfig, device: torch.device
) -> dict[str, float]:
    """By clock."""
    times = [_time(way, device) for _ in range(config.repeats)]
    return {clock: statistics.median(one[clock] for one in times) for clock in times[0]}


def _time(way: Callable[[], Tensor], device: torch.device) -> dict[str, float]:
    """By clock."""
    clocks = _clocks(device)
    start = {name: clock() for name, clock in clocks.items()}
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {name: clock() - start[name] for name, clock in clocks.items()}


def main() -> None:
    """Parse the command line, measure, print."""
    config = parse_flags(BenchmarkConfig, __doc__ or "")
    require_at_least(config, "num_samples", "num_steps", "num_components", "repeats")
    with stage_report("benchmark_jacobian", config.report) as report:
        report.metrics.update(measure(config))
        for name, value in report.metrics.items():
            print(f"{name:<52s} {value:,.6g}")


if __name__ == "__main__":
    run_entry_point(main)
