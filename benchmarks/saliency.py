"""How long the saliency of one sample takes, and what sharing its simulation is worth.

`python benchmarks/saliency.py` times the 18 default targets of one sample at the reference system's
size, 9 copies of 10 steps, targets at step 4, with the full-size networks: every target on one
simulation that ends at the target step, in a loop of backward passes and in one batched pass;
and one simulation of all steps per target, as the reference system does. Weights are random: the
time does not depend on them. Processor seconds are less bothered by other work on the machine than
wall seconds; both are printed. On a GPU, batches of samples fill it: --samples 32.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agents.networks import NetworkConfig, make_policy
from agents.player import full_float32
from analysis.saliency import (
    BackwardPasses,
    GradientMethod,
    GradientPrecision,
    SimulationChoices,
    attribute,
    resimulate,
)
from analysis.saliency_targets import Target, TargetContext, make_targets
from experiment.command_line import apply_values, load_preset, parse_flags
from experiment.devices import resolve_device
from experiment.errors import require_at_least, run_entry_point
from experiment.report import stage_report
from generative.simulator import Simulator
from generative.trainer import SimulatorTrainingConfig
from projections.hidden import HiddenProjection, TorchProjection

NUM_DIRECTIONS = 16


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/simulator.yml."""
    samples: int = 1
    """Samples in one batch."""
    copies: int = 9
    """Copies of each."""
    num_sim_steps: int = 10
    """Steps of the whole simulation."""
    target_step: int = 4
    """Step at which targets are read."""
    repeats: int = 2
    """Times each variant is measured; the fastest counts."""
    per_target: bool = True
    """Whether the simulation per target is measured too."""
    gradient_precision: GradientPrecision = "tf32"
    """Of backward passes on a GPU; simulations are in full float32, as in the command."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    report: Path | None = None
    """File for a JSON report."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What is simulated, and what is asked of it."""

    simulator: Simulator
    latent: Tensor
    """(samples · copies, latent_dim)"""
    targets: list[Target]


@dataclass(frozen=True)
class Seconds:
    """The fastest of several runs."""

    wall: float
    processor: float


def measure(config: BenchmarkConfig) -> dict[str, float]:
    """Figures by name: seconds, ratios, samples per second."""
    require_at_least(config, "samples", "copies", "num_sim_steps", "repeats")
    device = resolve_device(config.device)
    sample = _make_sample(config, device)

    def shared(method: GradientMethod) -> Callable[[], None]:
        return lambda: _attribute(config, sample, sample.targets, config.target_step + 1, method)

    def per_target() -> None:
        for target in sample.targets:
            _attribute(config, sample, [target], config.num_sim_steps, "loop")

    variants: dict[str, Callable[[], None]] = {
        "loop": shared("loop"),
        "batched": shared("batched"),
    }
    if config.per_target:
        variants["per_target"] = per_target
    found = {name: _fastest(run, config.repeats, device) for name, run in variants.items()}
    figures = {"targets": float(len(sample.targets))}
    for name, seconds in found.items():
        figures[f"{name}_wall_seconds"] = seconds.wall
        figures[f"{name}_processor_seconds"] = seconds.processor
        figures[f"{name}_samples_per_second"] = config.samples / seconds.wall
    if "per_target" in found:
        for name in ("loop", "batched"):
            figures[f"per_target_over_{name}_processor"] = (
                found["per_target"].processor / found[name].processor
            )
    return figures


def _make_sample(config: BenchmarkConfig, device: torch.device) -> Sample:
    values = load_preset("simulator.yml", config.interpreting_params_name)["training"]
    sizes = apply_values(SimulatorTrainingConfig, values, "simulator.yml").simulator
    torch.manual_seed(0)
    policy = make_policy(NetworkConfig())
    simulator = Simulator(sizes, policy).to(device).eval().requires_grad_(False)
    states = np.random.default_rng(0).laplace(size=(2000, policy.state_dim))
    projection = HiddenProjection("pca", NUM_DIRECTIONS).fit(states)
    context = TargetContext(
        ("no action",) * policy.num_actions,
        policy.hidden_slice,
        TorchProjection(projection).to(device),
    )
    targets = make_targets(["value", "action", "hx_direction"], range(NUM_DIRECTIONS), context)
    normal = torch.randn(config.samples * config.copies, sizes.latent_dim, device=device)
    return Sample(simulator, simulator.bottleneck.project(normal), targets)


def _attribute(
    config: BenchmarkConfig,
    sample: Sample,
    targets: list[Target],
    num_steps: int,
    method: GradientMethod,
) -> None:
    latent = sample.latent.clone().requires_grad_(True)
    ids = np.arange(config.samples).repeat(config.copies)
    with full_float32():
        steps = resimulate(sample.simulator, latent, ids, num_steps, SimulationChoices())
    attribute(
        steps,
        latent,
        targets,
        (config.target_step,),
        config.copies,
        BackwardPasses(method, config.gradient_precision),
    )


def _fastest(run: Callable[[], None], repeats: int, device: torch.device) -> Seconds:
    run()
    times = [_time(run, device) for _ in range(repeats)]
    return Seconds(min(t.wall for t in times), min(t.processor for t in times))


def _time(run: Callable[[], None], device: torch.device) -> Seconds:
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def main() -> None:
    """Parse the command line, measure, print."""
    config = parse_flags(BenchmarkConfig, __doc__ or "")
    with stage_report("benchmark_saliency", config.report) as report:
        report.metrics.update(measure(config))
        for name, value in report.metrics.items():
            print(f"{name:<42s} {value:,.3f}")


if __name__ == "__main__":
    run_entry_point(main)
