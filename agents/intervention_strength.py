"""How much an intervention changed the agent's hidden state, measured on its recording.

The agent is run over the recorded frames, each row from the recorded state before it. So every
proposed state h̃ of the recording is had again, without any recurrence, and with it the change
δ = h' − h̃ that the intervention made.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agents.images import to_float_observations
from agents.intervening import intervene_at_rows
from agents.player import full_float32
from agents.protocol import Agent
from experiment.errors import UserError
from experiment.files import write_json
from projections.descriptions import interventions_from_descriptions
from projections.intervention import Intervention
from rollouts.store import RolloutDataset

STRENGTH_FILE = "intervention.json"
"""Beside the shards of an intervened recording."""
MAX_ROWS = 10_000
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class InterventionStrength:
    """What an intervention did to the hidden state."""

    mean_change_norm: float
    """Mean Euclidean norm of the change, over the rows that were changed; 0 without any."""
    standard_error: float | None
    """Of that mean, from its spread over episodes; None for a single one."""
    share_of_rows_changed: float
    share_of_rows_outside_unit_box: float
    """Where a hidden unit leaves [−1, 1], which a GRU's state cannot by itself."""
    measured_episodes: int
    """The first ones of the recording, up to 10,000 rows or a little more."""


def measure_strength(
    policy: Agent,
    dataset: RolloutDataset,
    device: torch.device | str = "cpu",
    max_rows: int = MAX_ROWS,
) -> InterventionStrength:
    """Measure how much the intervention of a recording, real or simulated, changed the agent.

    Args:
        policy: the agent that was recorded.
        dataset: its rollouts.
        device: where the agent is.
        max_rows: whole episodes are measured until so many rows have been.

    Raises:
        UserError: the recording has no intervention, or it cannot be made again.
    """
    descriptions = dataset.metadata.provenance.get("config", {}).get("interventions")
    intervention = interventions_from_descriptions(descriptions or [])
    if intervention is None:
        raise UserError(f"{dataset.folder}: was recorded without an intervention")
    intervention.to(device)
    norms, is_outside = [], []
    for index in _episodes_to_measure(dataset, max_rows):
        parts = list(_episode_changes(policy, dataset, index, intervention, device))
        norms.append(np.concatenate([part.norm for part in parts]))
        is_outside.append(np.concatenate([part.is_outside_unit_box for part in parts]))
    return _summarise(norms, is_outside)


def write_strength(
    policy: Agent, folder: Path, device: torch.device | str = "cpu"
) -> InterventionStrength:
    """Measure the recording in `folder` and keep the result beside its shards."""
    strength = measure_strength(policy, RolloutDataset(folder), device)
    write_json(folder / STRENGTH_FILE, asdict(strength))
    return strength


@dataclass(frozen=True, eq=False)
class _Changes:
    norm: NDArray[np.float64]
    """(N,) Euclidean norm of the change of the hidden state at each row."""
    is_outside_unit_box: NDArray[np.bool_]
    """(N,)"""


def _episodes_to_measure(dataset: RolloutDataset, max_rows: int) -> range:
    lengths = dataset.episodes["length"].to_numpy()
    rows_before = np.cumsum(lengths) - lengths
    return range(int(np.sum(rows_before < max_rows)))


def _episode_changes(
    policy: Agent,
    dataset: RolloutDataset,
    index: int,
    intervention: Intervention,
    device: torch.device | str,
) -> Iterator[_Changes]:
    episode = dataset.episodes.iloc[index]
    offset, length = int(episode["offset"]), int(episode["length"])
    states = dataset.read_field("agent_hidden", offset, offset + length)
    initial = dataset.read_episode_field("agent_initial_state")[index]
    previous = np.concatenate([initial[None], states[:-1]])
    for start in range(0, length, _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, length))
        frames = dataset.read_field("obs", offset + start, offset + int(rows[-1]) + 1)
        with torch.inference_mode(), full_float32():
            before = torch.as_tensor(previous[rows]).to(device)
            proposed = policy.advance(policy.embed(to_float_observations(frames, device)), before)
            change = intervene_at_rows(intervention, before, proposed, rows) - proposed
            norm = change[:, policy.hidden_slice].norm(dim=1).double().cpu().numpy()
        hidden = states[rows][:, policy.hidden_slice]
        yield _Changes(norm, np.abs(hidden).max(axis=1) > 1.0)


def _summarise(
    norms: list[NDArray[np.float64]], is_outside: list[NDArray[np.bool_]]
) -> InterventionStrength:
    """From (N,) norms of each episode."""
    sums = np.array([norm.sum() for norm in norms])
    counts = np.array([np.count_nonzero(norm) for norm in norms])
    num_changed, num_rows = int(counts.sum()), sum(map(len, norms))
    mean = float(sums.sum() / max(num_changed, 1))
    # The rows of an episode are alike: episodes are what was drawn (ratio estimator).
    deviations = sums - mean * counts
    num_episodes = len(norms)
    standard_error = None
    if num_episodes > 1:
        spread = np.sum(deviations**2) * num_episodes / (num_episodes - 1)
        standard_error = float(np.sqrt(spread) / max(num_changed, 1))
    return InterventionStrength(
        mean_change_norm=mean,
        standard_error=standard_error,
        share_of_rows_changed=num_changed / num_rows,
        share_of_rows_outside_unit_box=float(np.concatenate(is_outside).mean()),
        measured_episodes=num_episodes,
    )
