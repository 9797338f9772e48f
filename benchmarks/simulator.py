"""How fast the simulator trains and simulates, and what batching over time is worth.

`python benchmarks/simulator.py --interpreting_params_name demo` prints frames per second of whole
training steps and of `simulate`, and, for the parts that are batched over time, the ratio of the
time taken step by step to that in one batch, forward and backward. Frames are random: the time
does not depend on what is in them. Seconds are processor time of all threads on the CPU, so that
other load on the machine counts less, and wall time on a GPU; the wall time of a training step is
printed too. The agent sees all windows in these, as it must step by step; what a step takes with
the preset's `observed_share` and `agent_share` stands beside. `--interpreting_params_name defaults
--batch_size 8` is the full size of the reference system: 32 simulated steps, of which step by step
is how it computes them.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agents.networks import NetworkConfig, make_policy
from benchmarks.stepwise import stepwise_losses
from experiment.command_line import apply_values, load_preset, parse_flags
from experiment.devices import resolve_device
from experiment.errors import UserError, require_at_least, run_entry_point
from experiment.report import stage_report
from generative.gradients import LossGradients, can_use_graphs
from generative.networks import in_one_batch
from generative.objective import Losses, WindowTensors, draw_training_noise
from generative.simulator import Precision, Simulator, trained_parameters
from generative.trainer import SimulatorTrainingConfig


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    interpreting_params_name: str = "demo"
    """Preset in hyperparams/simulator.yml."""
    batch_size: int | None = None
    """Windows per training step, in place of the preset's."""
    num_sim_steps: int | None = None
    """Simulated steps per window, in place of the preset's."""
    precision: Precision = "float32"
    """Of the convolutions in training; see train_gen_model.py."""
    cuda_graphs: bool = True
    """As in train_gen_model.py; step by step it is always one kernel after the other."""
    compile: bool = False
    """Compile the recurrence; needs a GPU."""
    repeats: int = 3
    """Times each part is measured; the fastest counts."""
    agent_width: float = 1.0
    """Multiplier of the agent's convolutions."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    report: Path | None = None
    """File for a JSON report."""


def measure(config: BenchmarkConfig) -> dict[str, float]:
    """Figures by name: frames per second, seconds per frame, ratios."""
    device = resolve_device(config.device)
    values = load_preset("simulator.yml", config.interpreting_params_name)["training"]
    training = _with_sizes(apply_values(SimulatorTrainingConfig, values, "simulator.yml"), config)
    if config.compile and device.type != "cuda":
        raise UserError(f"--compile: needs a CUDA device, not {device}")
    torch.manual_seed(0)
    policy = make_policy(NetworkConfig(width=config.agent_width))
    simulator = Simulator(training.simulator, policy).to(device)
    simulator.precision = config.precision
    if config.compile:
        simulator.compile_recurrence()
    windows = _random_windows(training, simulator, device)

    def seconds(function: Callable[[], object]) -> float:
        function()
        return min(_time(function, device) for _ in range(config.repeats))

    num_frames = windows.valid.numel()
    uses_graphs = config.cuda_graphs and can_use_graphs(simulator)
    own_step = _training_step(training, simulator, windows, uses_graphs=uses_graphs)
    own_seconds = seconds(own_step)
    training = _with_all_windows_shown(training)
    training_step = _training_step(training, simulator, windows, uses_graphs=uses_graphs)
    step_seconds = seconds(training_step)
    wall_seconds = min(
        _time(training_step, device, time.perf_counter) for _ in range(config.repeats)
    )
    simulate_seconds = seconds(_simulation(simulator, windows))
    simulator.precision = "float32"
    stepwise = seconds(_training_step(training, simulator, windows, objective=stepwise_losses))
    simulator.precision = config.precision
    figures = {
        "parameters": float(simulator.num_parameters),
        "training_frames_per_second": num_frames / step_seconds,
        "training_step_seconds": step_seconds,
        "training_step_wall_seconds": wall_seconds,
        "training_step_with_own_shares_seconds": own_seconds,
        "training_step_step_by_step_seconds": stepwise,
        "training_step_step_by_step_over_batched": stepwise / step_seconds,
        "simulate_frames_per_second": num_frames / simulate_seconds,
    }
    for name, part, inputs in _batched_parts(simulator, windows):
        batched = seconds(lambda p=part, x=inputs: in_one_batch(p, x).sum().backward())
        stepwise = seconds(lambda p=part, x=inputs: _step_by_step(p, x).sum().backward())
        figures[f"{name}_seconds"] = batched
        figures[f"{name}_step_by_step_over_batched"] = stepwise / batched
    return figures


def _with_sizes(
    training: SimulatorTrainingConfig, config: BenchmarkConfig
) -> SimulatorTrainingConfig:
    require_at_least(config, "repeats")
    given = {"batch_size": config.batch_size, "num_sim_steps": config.num_sim_steps}
    chosen = {name: value for name, value in given.items() if value is not None}
    optimiser = dataclasses.replace(training.optimiser, **chosen)
    require_at_least(optimiser, "batch_size", "num_sim_steps")
    return dataclasses.replace(training, optimiser=optimiser)


def _with_all_windows_shown(training: SimulatorTrainingConfig) -> SimulatorTrainingConfig:
    objective = dataclasses.replace(training.objective, observed_share=1.0, agent_share=1.0)
    return dataclasses.replace(training, objective=objective)


def _step_by_step(part: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.stack([part(step) for step in inputs])


def _training_step(
    training: SimulatorTrainingConfig,
    simulator: Simulator,
    windows: WindowTensors,
    *,
    uses_graphs: bool = False,
    objective: Callable[..., Losses] | None = None,
) -> Callable[[], object]:
    parameters = trained_parameters(simulator)
    optimiser = torch.optim.Adam(parameters, fused=True)
    num_steps, num_windows = windows.valid.shape
    noise = draw_training_noise(num_steps, np.arange(num_windows), training.simulator, 0)
    noise = noise.to(windows.valid.device)
    gradients = LossGradients(
        simulator, training.objective, uses_graphs=uses_graphs, objective=objective
    )

    def step() -> None:
        gradients.clear(optimiser)
        gradients(windows, noise)
        torch.nn.utils.clip_grad_norm_(parameters, training.optimiser.max_grad_norm)
        optimiser.step()

    return step


def _simulation(simulator: Simulator, windows: WindowTensors) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> None:
        initial = simulator.decode_initial(simulator.encode(windows.initial_frames))
        simulator.simulate(initial, len(windows.valid))

    return run


def _batched_parts(
    simulator: Simulator, windows: WindowTensors
) -> list[tuple[str, Callable[[Tensor], Tensor], Tensor]]:
    shape = tuple(windows.valid.shape)
    height, width, channels = simulator.obs_shape
    images = torch.rand(*shape, channels, height, width, device=windows.valid.device)
    sizes = simulator.config
    features_dim = sizes.deter_dim + sizes.num_categoricals * sizes.num_classes
    features = torch.rand(*shape, features_dim, device=windows.valid.device)
    return [
        ("embed_frames", simulator.frame_encoder, images),
        ("decode_images", simulator.image_decoder, features),
        ("agent_embed", simulator.agent.embed, images.requires_grad_()),
    ]


def _random_windows(
    training: SimulatorTrainingConfig, simulator: Simulator, device: torch.device
) -> WindowTensors:
    num_init, num_steps = training.simulator.num_init_steps, training.optimiser.num_sim_steps
    batch_size, agent = training.optimiser.batch_size, simulator.agent
    shape = (num_init + num_steps - 1, batch_size, *simulator.obs_shape)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    steps = (num_steps, batch_size)
    return WindowTensors(
        initial_frames=frames[:num_init],
        frames=frames[num_init - 1 :],
        initial_agent_state=torch.zeros(batch_size, agent.state_dim, device=device),
        initial_action=torch.zeros(batch_size, dtype=torch.int64, device=device),
        agent_state=torch.zeros(*steps, agent.state_dim, device=device),
        action=torch.zeros(steps, dtype=torch.int64, device=device),
        reward=torch.zeros(steps, device=device),
        terminal=torch.zeros(steps, dtype=torch.bool, device=device),
        valid=torch.ones(steps, dtype=torch.bool, device=device),
    )


def _time(
    function: Callable[[], object],
    device: torch.device,
    clock: Callable[[], float] | None = None,
) -> float:
    on_gpu = device.type == "cuda"
    if clock is None:
        clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    function()
    if on_gpu:
        torch.cuda.synchronize(device)
    return clock() - start


def main() -> None:
    """Parse the command line, measure, print."""
    config = parse_flags(BenchmarkConfig, __doc__ or "")
    with stage_report("benchmark_simulator", config.report) as report:
        report.metrics.update(measure(config))
        for name, value in report.metrics.items():
            print(f"{name:<42s} {value:,.3f}")


if __name__ == "__main__":
    run_entry_point(main)
