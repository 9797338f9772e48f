"""How fast PPO trains, and how near that is to what its network alone allows.

`python benchmarks/ppo.py --param_name hard-local-dev-rec` prints environment steps per second, the
split between playing and learning, and the ratio to a floor measured in the same process: the time
that the convolutions need for the same frames in batches of the same size, without environments,
recurrence, losses or optimiser. On a shared machine the CPU figures are the ones to read.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from agents.collection import Collector
from agents.images import to_float_images
from agents.networks import RecurrentPolicy
from agents.ppo import PPOConfig, PPOLearner
from agents.trainer import TrainingConfig, make_groups, network_config
from environments.factory import environment_spec
from experiment.command_line import apply_values, load_preset, parse_flags
from experiment.devices import resolve_device
from experiment.errors import run_entry_point
from experiment.report import stage_report


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    param_name: str = "hard-local-dev-rec"
    """Preset in hyperparams/agents.yml."""
    num_updates: int = 1
    """Updates measured, after one that warms up."""
    num_threads: int | None = None
    """Threads of the network; torch's default if not given."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    report: Path | None = None
    """File for a JSON report."""


@dataclass
class Stopwatch:
    """Wall and CPU seconds by name."""

    device: torch.device
    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu


def run_benchmark(config: BenchmarkConfig) -> dict[str, float]:
    """Measure playing, learning and their floors; returns the figures by name."""
    values = load_preset("agents.yml", config.param_name)
    training = dataclasses.replace(apply_values(TrainingConfig, values, "agents.yml"), seed=0)
    device = resolve_device(config.device)
    spec = environment_spec(training.environment)
    policy = RecurrentPolicy(network_config(training, spec)).to(device)
    collector = Collector(policy, make_groups(training), training.ppo, 0)
    learner = PPOLearner(policy, training.ppo, 0)
    watch = Stopwatch(device)
    for iteration in range(config.num_updates + 1):
        if iteration == 1:
            watch = Stopwatch(device)
        with watch.running("play"):
            batch = collector.collect(iteration).batch
        with watch.running("learn"):
            learner.update(batch, iteration, remaining=1.0)
        measure_floor(policy, training.ppo, batch.obs, watch)
    num_steps = config.num_updates * training.ppo.num_envs * training.ppo.num_steps
    return summarise(watch, num_steps)


def measure_floor(
    policy: RecurrentPolicy, config: PPOConfig, obs: torch.Tensor, watch: Stopwatch
) -> None:
    """Embed the rollout's frames as often as PPO must, in the batches that PPO uses."""
    frames = obs.flatten(0, 1)
    with watch.running("play_floor"), torch.inference_mode():
        for part in frames.split(max(1, config.num_envs // 2)):
            policy.embed(to_float_images(part))
    per_step = len(frames) // config.num_minibatches
    with watch.running("learn_floor"):
        for _ in range(config.num_epochs):
            for part in frames.split(min(config.mini_batch_size, per_step)):
                policy.embed(to_float_images(part)).sum().backward()


def summarise(watch: Stopwatch, num_steps: int) -> dict[str, float]:
    """Rates, split and ratios, by wall clock and by CPU time."""
    figures: dict[str, float] = {}
    for clock, seconds in (("wall", watch.wall), ("cpu", watch.cpu)):
        total, floor = (
            seconds[f"play{suffix}"] + seconds[f"learn{suffix}"] for suffix in ("", "_floor")
        )
        figures[f"env_steps_per_second_{clock}"] = num_steps / total
        figures[f"share_of_playing_{clock}"] = seconds["play"] / total
        figures[f"ratio_to_floor_playing_{clock}"] = seconds["play"] / seconds["play_floor"]
        figures[f"ratio_to_floor_learning_{clock}"] = seconds["learn"] / seconds["learn_floor"]
        figures[f"ratio_to_floor_{clock}"] = total / floor
    return figures


def main() -> None:
    """Parse the command line, measure, print."""
    config = parse_flags(BenchmarkConfig, __doc__ or "")
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with stage_report("benchmark_ppo", config.report) as report:
        report.metrics.update(run_benchmark(config))
        for name, value in report.metrics.items():
            print(f"{name:<34}{value:>10.2f}")


if __name__ == "__main__":
    run_entry_point(main)
