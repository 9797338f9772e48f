"""Rows of simulated rollouts whose truth is known: those that follow a recorded episode.

A sample that was set up by a recorded window and then took the recorded actions imitates what
really happened. So at step k the game's variables at row `source_row + k` of the source episode
are what its state ought to tell. A sample that takes actions of its own is followed up to the
first that differs from the recorded one: until then both have had the same actions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiment.errors import UserError
from rollouts.store import RolloutDataset


@dataclass(frozen=True, eq=False)
class FollowedRows:
    """N pairs of a simulated row and the real row that it imitates."""

    simulated_row: NDArray[np.int64]
    """(N,) row of the simulated dataset."""
    real_row: NDArray[np.int64]
    """(N,) row of the real one."""
    sample: NDArray[np.int64]
    """(N,) index of the sample."""
    episode: NDArray[np.int64]
    """(N,) index of the real episode."""
    step: NDArray[np.int64]
    """(N,) simulated step; 0 is the reconstruction of the last frame given."""


def follow(simulated: RolloutDataset, real: RolloutDataset, flag: str) -> FollowedRows:
    """Pair the rows of `simulated` with those of `real` that they imitate.

    Args:
        simulated: samples that windows of `real` set up.
        real: the recorded rollouts.
        flag: what named `simulated`.

    Raises:
        UserError: the samples are of other rollouts or another agent, are intervened on, or none
            was set up by a window.
    """
    _require_matching(simulated, real, flag)
    pairs = [
        pair
        for sample in range(simulated.num_episodes)
        if (pair := _follow_sample(simulated, real, sample)) is not None
    ]
    if not pairs:
        raise UserError(
            f"{flag} {simulated.folder}: no sample begins in a recorded window; make such with "
            "record_gen_samples.py --recorded_actions"
        )
    return FollowedRows(
        *(np.concatenate([getattr(p, name) for p in pairs]) for name in vars(pairs[0]))
    )


def _follow_sample(
    simulated: RolloutDataset, real: RolloutDataset, sample: int
) -> FollowedRows | None:
    info = simulated.episodes.iloc[sample]
    if info["source_episode_id"] < 0:
        return None
    episode = real.index_of(int(info["source_episode_id"]))
    offset, length = (int(real.episodes[name].iloc[episode]) for name in ("offset", "length"))
    first_real = offset + int(info["source_row"])
    first_simulated = int(info["offset"])
    count = min(int(info["length"]), offset + length - first_real)
    taken = simulated.read_field("action", first_simulated, first_simulated + count)
    recorded = real.read_field("action", first_real, first_real + count)
    # The action of a step shows in the next one.
    count = min(count, int(np.cumprod(taken == recorded).sum()) + 1)
    step = np.arange(count)
    return FollowedRows(
        simulated_row=first_simulated + step,
        real_row=first_real + step,
        sample=np.full(count, sample),
        episode=np.full(count, episode),
        step=step,
    )


def _require_matching(simulated: RolloutDataset, real: RolloutDataset, flag: str) -> None:
    named = f"{flag} {simulated.folder}"
    if simulated.metadata.simulated is None:
        raise UserError(f"{named}: rollouts of the real environment, expected simulated ones")
    if simulated.metadata.agent_hash != real.metadata.agent_hash:
        raise UserError(
            f"{named}: recorded with agent {simulated.metadata.agent_hash[:12]}, but {real.folder} "
            f"with agent {real.metadata.agent_hash[:12]}"
        )
    source = simulated.metadata.provenance.get("inputs", {}).get("dataset")
    if source != real.hash:
        raise UserError(
            f"{named}: simulated from rollouts {str(source)[:12]}, but {real.folder} is "
            f"{real.hash[:12]}; their windows have no truth there"
        )
    if (simulated.episodes["interventions"] != "[]").any():
        raise UserError(f"{named}: the samples are intervened on, so they imitate nothing real")
