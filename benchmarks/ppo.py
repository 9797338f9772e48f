"""How fast PPO trains, and how near that is to what its network alone allows.

`python benchmarks/ppo.py --param_name hard-local-dev-rec` prints environment steps per second, the
split between environment, inference and update, and the ratio to a floor measured in the same
process: the time that the convolutions need for the same frames, forward for playing and forward
and backward for learning, without environments, recurrence, losses or optimiser. Learning's floor
takes the frames in whatever batches are quickest; playing's takes half of the environments at a
time, since more are not there. On a shared machine the CPU figures are the ones to read.
"""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from agents.collection import Collector, PlayingTime
from agents.execution import Execution, Precision
from agents.images import to_float_images
from agents.networks import RecurrentPolicy
from agents.ppo import PPOConfig, PPOLearner
from agents.trainer import make_groups
from agents.training_config import TrainingConfig, network_config
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
    precision: Precision = "auto"
    """As in train.py: auto, float32 or bf16."""
    cuda_graphs: bool = True
    """As in train.py."""
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
    execution = Execution(policy, config.precision, config.cuda_graphs)
    collector = Collector(policy, make_groups(training), training.ppo, 0, execution)
    learner = PPOLearner(policy, training.ppo, 0, execution)
    watch = Stopwatch(device)
    for iteration in range(config.num_updates + 1):
        if iteration == 1:
            watch = Stopwatch(device)
            collector.seconds = PlayingTime()
        with watch.running("play"):
            batch = collector.collect(iteration).batch
        with watch.running("learn"):
            learner.update(batch, iteration, remaining=1.0)
        if iteration > 0:
            measure_floor(execution, training.ppo, batch.obs, watch)
    num_steps = config.num_updates * training.ppo.num_envs * training.ppo.num_steps
    return {**summarise(watch, num_steps), **split(collector.seconds, watch)}


def measure_floor(
    execution: Execution, config: PPOConfig, obs: torch.Tensor, watch: Stopwatch
) -> None:
    """Embed the rollout's frames as often as PPO must."""
    frames = obs.flatten(0, 1)
    with watch.running("play_floor"), torch.inference_mode():
        for part in frames.split(max(1, config.num_envs // 2)):
            embed(execution, part)
    size = quickest_batch(execution, frames, len(frames) // config.num_minibatches)
    with watch.running("learn_floor"):
        for _ in range(config.num_epochs):
            for part in frames.split(size):
                embed(execution, part).sum().backward()


def quickest_batch(execution: Execution, frames: torch.Tensor, largest: int) -> int:
    """Batch size at which forward and backward take least CPU time per frame."""
    trial = frames[: min(len(frames), largest * 2)]
    seconds = {}
    for size in {min(largest, 32 * 2**power) for power in range(9)}:
        embed(execution, trial[:size]).sum().backward()
        watch = Stopwatch(execution.device)
        with watch.running("trial"):
            for part in trial.split(size):
                embed(execution, part).sum().backward()
        clock = watch.wall if execution.device.type == "cuda" else watch.cpu
        seconds[size] = clock["trial"]
    return min(seconds, key=lambda size: seconds[size])


def embed(execution: Execution, frames: torch.Tensor) -> torch.Tensor:
    """All frames at once, in the precision of the training."""
    device = execution.device.type
    with torch.autocast(device, torch.bfloat16, enabled=execution.uses_bf16):
        return execution.policy.embed(to_float_images(frames))


def summarise(watch: Stopwatch, num_steps: int) -> dict[str, float]:
    """Rates and ratios, by wall clock and by CPU time."""
    figures: dict[str, float] = {}
    for clock, seconds in (("wall", watch.wall), ("cpu", watch.cpu)):
        total, floor = (
            seconds[f"play{suffix}"] + seconds[f"learn{suffix}"] for suffix in ("", "_floor")
        )
        figures[f"env_steps_per_second_{clock}"] = num_steps / total
        figures[f"floor_steps_per_second_{clock}"] = num_steps / floor
        figures[f"share_of_floor_{clock}"] = floor / total
        figures[f"ratio_to_floor_playing_{clock}"] = seconds["play"] / seconds["play_floor"]
        figures[f"ratio_to_floor_learning_{clock}"] = seconds["learn"] / seconds["learn_floor"]
    return figures


def split(playing: PlayingTime, watch: Stopwatch) -> dict[str, float]:
    """Wall seconds of environment, inference and update, and of what else playing does."""
    rest = watch.wall["play"] - playing.environment - playing.inference
    return {
        "seconds_environment": playing.environment,
        "seconds_inference": playing.inference,
        "seconds_storing": rest,
        "seconds_update": watch.wall["learn"],
    }


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
