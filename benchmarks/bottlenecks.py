"""What a sphere and a Gaussian make of the same training: held-out losses, and random latents.

`python benchmarks/bottlenecks.py --run_dirs RUN OTHER ... --heldout_data_dir DIR --output_file
FILE.csv` measures the last simulator of each training on the same held-out windows and under the
same weights. Then it asks how well a random latent stands for a window: a classifier tells the
agent's states after simulation from the one from those after simulation from the other, and both
from real ones (area under the ROC curve, on other episodes and samples: 0.5 where they are alike).
Simulations from windows share the decoder's faults with those from random latents, so that
`random_from_windows` is the bottleneck's own.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from agents.checkpoint import LoadedAgent, load_agent
from analysis.state_overlap import Separability, States, tell_apart
from benchmarks.presets import Config as LossConfig
from benchmarks.presets import heldout_losses, objective_of, saved_simulators
from experiment.command_line import parse_flags
from experiment.errors import require_at_least, run_entry_point
from experiment.files import atomic_file
from generative.checkpoint import LoadedSimulator, load_simulator
from generative.sample_starts import InformedStarts, RandomStarts, StartSource
from generative.sampling import SamplingConfig, SamplingPlan, simulate_samples
from rollouts.store import RolloutDataset

NUM_RESAMPLES = 200
BATCH_SIZE = 64
SEED = 0


@dataclass(frozen=True, eq=False)
class Walks:
    """K steps of the agent, N times."""

    states: NDArray[np.float32]
    """(N, K, D) agent's hidden states."""
    episode: NDArray[np.int64]
    """(N,) real episode that each began in; a negative number of its own where there is none."""


@dataclass(frozen=True)
class Config:
    """What to compare."""

    run_dirs: tuple[Path, ...]
    """Run folders of trainings, whose last simulator is measured."""
    heldout_data_dir: Path
    """Rollouts that no training has seen."""
    output_file: Path
    """CSV file for the table."""
    weights_of: str = "demo"
    """Preset in hyperparams/simulator.yml whose loss weights make the total."""
    num_windows: int = 512
    """Held-out windows, and random latents."""
    num_sim_steps: int = 6
    """Simulated steps of each."""


def main() -> None:
    """Entry point."""
    config = parse_flags(Config, "Compare bottlenecks of the simulator.")
    require_at_least(config, "num_windows", least=BATCH_SIZE)
    require_at_least(config, "num_sim_steps")
    dataset = RolloutDataset(config.heldout_data_dir)
    agent = load_agent(dataset.metadata.agent_file)
    last = [list(saved_simulators(run).values())[-1] for run in config.run_dirs]
    rows = []
    for run, folder in zip(config.run_dirs, last, strict=True):
        row = {"run": run.name, "simulator": folder.name}
        row |= measure(load_simulator(folder, agent), agent, dataset, config)
        print(", ".join(f"{name} {_shown(value)}" for name, value in row.items()))
        rows.append(row)
    with atomic_file(config.output_file) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def measure(
    loaded: LoadedSimulator, agent: LoadedAgent, dataset: RolloutDataset, config: Config
) -> dict[str, str | float]:
    """Held-out losses per window and areas under ROC curves by name."""
    windows = InformedStarts(dataset, loaded, SEED)
    losses = heldout_losses(loaded, dataset, objective_of(config.weights_of), _loss_config(config))
    # The total holds the terms that keep either latent space filled, which are not comparable.
    del losses["total"]
    real = real_walks(windows, loaded, dataset, config)
    from_windows = simulated_walks(windows, loaded, agent, config)
    at_random = simulated_walks(RandomStarts(SEED), loaded, agent, config)
    areas = {
        "windows_from_real": separability(real, from_windows),
        "random_from_real": separability(real, at_random),
        "random_from_windows": separability(from_windows, at_random),
    }
    figures: dict[str, str | float] = {"bottleneck": loaded.simulator.config.bottleneck, **losses}
    for name, area in areas.items():
        figures |= {name: area.area, f"{name}_low": area.lower, f"{name}_high": area.upper}
    return figures


def real_walks(
    windows: InformedStarts, loaded: LoadedSimulator, dataset: RolloutDataset, config: Config
) -> Walks:
    """What simulations from windows imitate, but for windows too near the end of their episode."""
    starts = windows.starts(loaded.simulator, np.arange(config.num_windows))
    states, episodes = [], []
    for episode_id, row in zip(starts.source_episode_id, starts.source_row, strict=True):
        episode = dataset.episodes.iloc[dataset.index_of(int(episode_id))]
        if row + config.num_sim_steps <= episode["length"]:
            first = int(episode["offset"]) + int(row)
            states.append(dataset.read_field("agent_hidden", first, first + config.num_sim_steps))
            episodes.append(episode_id)
    return Walks(np.stack(states), np.array(episodes, np.int64))


def simulated_walks(
    source: StartSource, loaded: LoadedSimulator, agent: LoadedAgent, config: Config
) -> Walks:
    """Simulations, latents and actions drawn."""
    sampling = SamplingConfig(
        max_samples=config.num_windows,
        num_sim_steps=config.num_sim_steps,
        latents="sample",
        agent_actions="sample",
        seed=SEED,
    )
    plan = SamplingPlan(loaded, agent, source, sampling)
    numbers = np.arange(config.num_windows)
    states, episodes = [], []
    for ids in np.array_split(numbers, config.num_windows // BATCH_SIZE):
        samples = simulate_samples(plan, ids)
        states.append(torch.stack(samples.steps.agent_state, dim=1).numpy())
        episodes.append(samples.starts.source_episode_id)
    episode = np.concatenate(episodes)
    return Walks(np.concatenate(states), np.where(episode >= 0, episode, -1 - numbers))


def separability(ours: Walks, others: Walks) -> Separability:
    """How well states are told from others, on episodes apart from those that taught it.

    Squares of the components stand beside them, so that a difference in spread counts too.
    """
    num_steps, num_units = ours.states.shape[1:]
    states = np.concatenate([ours.states, others.states]).reshape(-1, num_units)
    components = StandardScaler().fit_transform(PCA().fit_transform(states))
    return tell_apart(
        States(
            np.concatenate([components, components**2], axis=1).astype(np.float32),
            np.repeat(np.concatenate([ours.episode, others.episode]), num_steps),
            np.arange(len(states)) >= len(ours.states) * num_steps,
        ),
        NUM_RESAMPLES,
        SEED,
    )


def _loss_config(config: Config) -> LossConfig:
    return LossConfig(
        run_dirs=config.run_dirs,
        seconds_per_step=(),
        heldout_data_dir=config.heldout_data_dir,
        output_dir=config.output_file.parent,
        num_windows=config.num_windows,
        num_sim_steps=config.num_sim_steps,
    )


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    run_entry_point(main)
