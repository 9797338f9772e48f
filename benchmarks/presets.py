"""Which preset of the simulator learns more per hour: held-out losses over wall time.

`python benchmarks/presets.py --run_dirs RUN OTHER --seconds_per_step 2.67 0.91 --heldout_data_dir
DIR --output_dir FOLDER` measures every simulator that the trainings RUN and OTHER saved, on the
same held-out windows and under the same weights, whatever each was trained with, and writes
`presets.csv` and `presets.png`, with a dotted line where RUN ends. A training's own clock says
little where it shared a machine: wall time here is the number of steps times the seconds of a step
on a quiet one, as `benchmarks/simulator.py` prints them.
"""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from agents.checkpoint import load_agent
from analysis.figure_style import save_figure
from experiment.command_line import apply_values, load_preset, parse_flags
from experiment.errors import UserError, require_at_least, run_entry_point
from experiment.files import atomic_file
from generative.checkpoint import LoadedSimulator, load_simulator
from generative.objective import (
    ObjectiveConfig,
    compute_losses,
    draw_training_noise,
    to_window_tensors,
)
from generative.trainer import SimulatorTrainingConfig
from rollouts.store import RolloutDataset
from rollouts.windows import WindowSampler

SEED = 0
BATCH_SIZE = 16
BESIDE = ("imagined_image", "imagined_action_log_prob", "action_log_prob")
"""Terms measured besides those of the preset's total."""
SHOWN = ("total", "image", "imagined_image", "kl", "agent_hidden", "imagined_action_log_prob")


@dataclass(frozen=True)
class Config:
    """What to compare."""

    run_dirs: tuple[Path, ...]
    """Run folders of trainings, whose saved simulators are measured."""
    seconds_per_step: tuple[float, ...]
    """Wall time of a training step of each on a quiet machine, in the same order."""
    heldout_data_dir: Path
    """Rollouts that no training has seen."""
    output_dir: Path
    """Where table and figure go."""
    weights_of: str = "defaults"
    """Preset in hyperparams/simulator.yml whose loss weights make the total."""
    num_windows: int = 256
    """Held-out windows."""
    num_sim_steps: int = 32
    """Simulated steps of each."""


@dataclass(frozen=True)
class Point:
    """Held-out losses of a simulator, per window."""

    run: str
    step: int
    minutes: float
    losses: Mapping[str, float]


def main() -> None:
    """Entry point."""
    config = parse_flags(Config, "Compare trainings of the simulator by held-out loss.")
    require_at_least(config, "num_windows", least=BATCH_SIZE)
    require_at_least(config, "num_sim_steps")
    if len(config.seconds_per_step) != len(config.run_dirs):
        raise UserError(
            f"--seconds_per_step: {len(config.seconds_per_step)} numbers for "
            f"{len(config.run_dirs)} --run_dirs"
        )
    folders = {run: saved_simulators(run) for run in config.run_dirs}
    dataset = RolloutDataset(config.heldout_data_dir)
    agent = load_agent(dataset.metadata.agent_file)
    objective = objective_of(config.weights_of)
    points = []
    for run, seconds in zip(config.run_dirs, config.seconds_per_step, strict=True):
        for step, folder in tqdm(folders[run].items(), desc=run.name, unit="simulator"):
            losses = heldout_losses(load_simulator(folder, agent), dataset, objective, config)
            points.append(Point(run.name, step, step * seconds / 60, losses))
    config.output_dir.mkdir(parents=True, exist_ok=True)
    write_table(config.output_dir / "presets.csv", points)
    save_figure(draw(points), config.output_dir / "presets", dpi=120)
    for point in points:
        shown = ", ".join(f"{name} {point.losses[name]:.4g}" for name in SHOWN)
        print(f"{point.run} step {point.step}, {point.minutes:.0f} min: {shown}")


def saved_simulators(run_dir: Path) -> dict[int, Path]:
    """By training step, in ascending order."""
    found = {int(path.name.removeprefix("model_")): path for path in run_dir.glob("model_*")}
    if not found:
        raise UserError(f"--run_dirs {run_dir}: no simulator model_<steps> there")
    return dict(sorted(found.items()))


def objective_of(preset: str) -> ObjectiveConfig:
    """The preset's terms and weights on all windows, and terms of weight next to nothing beside."""
    values = load_preset("simulator.yml", preset)["training"]
    training = apply_values(SimulatorTrainingConfig, values, "simulator.yml")
    weights = training.objective.weights
    # A term of weight zero is not computed.
    beside = {name: getattr(weights, name) or 1e-12 for name in BESIDE}
    return dataclasses.replace(
        training.objective,
        weights=dataclasses.replace(weights, **beside),
        observed_share=1.0,
        agent_share=1.0,
    )


@torch.no_grad()
def heldout_losses(
    loaded: LoadedSimulator, dataset: RolloutDataset, objective: ObjectiveConfig, config: Config
) -> dict[str, float]:
    """Mean losses by name, `total` among them, over windows that depend on the data alone."""
    simulator = loaded.simulator
    init = simulator.config.num_init_steps
    sampler = WindowSampler(dataset, init, config.num_sim_steps, BATCH_SIZE, SEED)
    batches = []
    for index in range(config.num_windows // BATCH_SIZE):
        windows = to_window_tensors(sampler.batch(index), "cpu")
        numbers = np.arange(index * BATCH_SIZE, (index + 1) * BATCH_SIZE)
        noise = draw_training_noise(len(windows.valid), numbers, simulator.config, SEED)
        losses = compute_losses(simulator, windows, objective, noise)
        terms = {name: term.item() for name, term in losses.terms.items()}
        batches.append({"total": losses.total.item(), **terms})
    return {name: float(np.mean([batch[name] for batch in batches])) for name in batches[0]}


def write_table(path: Path, points: Sequence[Point]) -> None:
    """One row for each simulator."""
    rows = [
        {"run": p.run, "step": p.step, "minutes": round(p.minutes, 2), **p.losses} for p in points
    ]
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def draw(points: Sequence[Point]) -> Figure:
    """A panel for each loss, a line for each training, and what the first one reaches."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), constrained_layout=True, sharex=True)
    for axis, name in zip(axes.flat, SHOWN, strict=True):
        for run in dict.fromkeys(point.run for point in points):
            of_run = [point for point in points if point.run == run]
            minutes = [point.minutes for point in of_run]
            axis.plot(minutes, [point.losses[name] for point in of_run], "o-", ms=3, label=run)
        reached = [point.losses[name] for point in points if point.run == points[0].run][-1]
        axis.axhline(reached, color="C0", linestyle=":", linewidth=1)
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.set_yscale("log")
        for set_formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            set_formatter("{x:g}")
        axis.tick_params(which="both", labelsize=8)
        axis.grid(alpha=0.3, which="both")
    for axis in axes[1]:
        axis.set_xlabel("minutes of wall time on two quiet cores")
    axes[0, 0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run_entry_point(main)
