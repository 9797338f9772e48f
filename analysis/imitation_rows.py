"""Rows that probes of the simulator's states are fitted on, beside the decisions that they imitate.

What the game was like at a simulated step is known where the step imitates a recorded decision
(`analysis.simulated_truth`). Every state has baselines of its own: what the pixels of the frames
that it belongs to tell, and what an untrained agent makes of the same frames.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from agents.execution import Execution
from analysis.probe_rows import Readers, represent, require_game_variables, untrained_states
from analysis.probe_tables import LabelledRows
from analysis.probe_targets import probe_targets
from analysis.simulated_truth import FollowedRows
from rollouts.independent_units import levels_of_episodes
from rollouts.store import RolloutDataset


@dataclass(frozen=True, eq=False)
class Imitations:
    """N real decisions, and the simulated ones that imitate them, row by row."""

    real: LabelledRows
    simulated: LabelledRows
    """The same representations of the simulated decisions; targets and levels are the real ones."""
    step: NDArray[np.int64]
    """(N,) simulated step of each."""
    states: dict[str, NDArray[np.float32]]
    """(N, F) by the names of `probe_names.SIMULATOR_STATES` and their baselines; without an
    untrained agent, its baselines are left out."""


def read_imitations(
    real: RolloutDataset,
    simulated: RolloutDataset,
    followed: FollowedRows,
    readers: Readers,
    max_distance: float,
) -> Imitations:
    """Read the followed rows of both datasets as everything that probes are fitted on.

    Args:
        real: recorded rollouts with game variables.
        simulated: samples that imitate some of them.
        followed: which rows do, as `follow` gives them.
        readers: what makes the representations.
        max_distance: as for `probe_targets`.
    """
    of_real = _represent(real, followed.real_row, readers)
    of_simulated = _represent(simulated, followed.simulated_row, readers)
    if readers.untrained is not None:
        untrained = _run_untrained(readers.untrained, real, simulated, followed)
        of_real["untrained"], of_simulated["untrained"] = untrained.real, untrained.simulated
    table = require_game_variables(real, "--data_dir")
    variables = _rows_of(real, "game_variables", followed.real_row)
    targets = probe_targets(variables, table, max_distance)
    level = levels_of_episodes(real)[followed.episode]
    return Imitations(
        LabelledRows(of_real, targets, level),
        LabelledRows(of_simulated, targets, level),
        followed.step,
        {
            **_simulator_states(simulated, followed),
            "simulated_hidden": of_simulated["hidden"],
            "real_hidden": of_real["hidden"],
            **_baselines(of_real, of_simulated, followed),
        },
    )


def _represent(
    dataset: RolloutDataset, rows: NDArray[np.int64], readers: Readers
) -> dict[str, NDArray[np.float32]]:
    state, obs = (_rows_of(dataset, name, rows) for name in ("agent_hidden", "obs"))
    return represent(state, obs, dataset.metadata.hidden_slice, readers)


def _simulator_states(
    simulated: RolloutDataset, followed: FollowedRows
) -> dict[str, NDArray[np.float32]]:
    """(N, F) environment state and bottleneck vector of each followed row."""
    sizes: Any = simulated.metadata.simulated
    deter = _rows_of(simulated, "env_deter", followed.simulated_row)
    stoch = _rows_of(simulated, "env_stoch", followed.simulated_row)
    one_hot = np.eye(sizes.num_classes, dtype=np.float32)[stoch].reshape(len(stoch), -1)
    latent = simulated.read_episode_field("latent")[followed.sample]
    return {"env_state": np.concatenate([deter, one_hot], axis=1), "latent": latent}


def _baselines(
    real: dict[str, NDArray[np.float32]],
    simulated: dict[str, NDArray[np.float32]],
    followed: FollowedRows,
) -> dict[str, NDArray[np.float32]]:
    # Rows of a sample lie together, the one of step 0, its window's last frame, first.
    window_end = np.searchsorted(followed.sample, followed.sample)
    found = {}
    for name in ("pixels", "untrained"):
        if name in real:
            found[f"simulated_{name}"] = simulated[name]
            found[f"real_{name}"] = real[name]
            found[f"window_{name}"] = real[name][window_end]
    return found


@dataclass(frozen=True, eq=False)
class _UntrainedStates:
    real: NDArray[np.float32]
    """(N, F) over all frames of the episode up to each recorded row."""
    simulated: NDArray[np.float32]
    """(N, F) over the recorded frames before the sample, then over its simulated ones."""


def _run_untrained(
    agent: Execution, real: RolloutDataset, simulated: RolloutDataset, followed: FollowedRows
) -> _UntrainedStates:
    offsets = real.episodes["offset"].to_numpy()
    shape = (len(followed.step), agent.policy.initial_state(1).shape[1])
    found = _UntrainedStates(np.empty(shape, np.float32), np.empty(shape, np.float32))
    for episode in tqdm(
        np.unique(followed.episode), desc="untrained agent", unit="episode", disable=None
    ):
        rows = np.flatnonzero(followed.episode == episode)
        offset = int(offsets[episode])
        within = followed.real_row[rows] - offset
        states = untrained_states(agent, real.read_field("obs", offset, offset + within.max() + 1))
        found.real[rows] = states[within]
        for sample in np.unique(followed.sample[rows]):
            own = followed.sample[rows] == sample
            start = int(within[own][0])
            before = states[start - 1] if start > 0 else None
            frames = _rows_of(simulated, "obs", followed.simulated_row[rows[own]])
            found.simulated[rows[own]] = untrained_states(agent, frames, before)
    return found


def _rows_of(dataset: RolloutDataset, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Any rows of a step field, read in runs of neighbours."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    runs = np.split(rows, breaks)
    return np.concatenate([dataset.read_field(name, int(r[0]), int(r[-1]) + 1) for r in runs])
