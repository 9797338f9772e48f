"""Whose components are correlated: those of the agent's state, of the environment's, or of both."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from analysis.behaviour_clusters import environment_components
from analysis.episode_stacks import CoordinateStack, lengths_until_done, stack_rows
from analysis.results import CROSS_NAME
from analysis.rollout_rows import RolloutRows
from experiment.counts import at_most_available

States = Literal["agent", "environment", "both"]
LETTERS = {"agent": ("",), "environment": ("e",), "both": ("a", "e")}
"""What the names of components begin with, before their number."""


def cross_name(states: States) -> str:
    """Name of the result file.

    Only the agent's components have cross-causation; files of others have names of their own, so
    that nothing takes them for those.
    """
    return CROSS_NAME if states == "agent" else f"xcorr_{states}.nc"


def stack_environment(
    rows: RolloutRows, num_components: int, heed_ends: bool, seed: int
) -> CoordinateStack:
    """Principal components of the environment's deterministic state, up to the episodes' ends."""
    length = lengths_until_done(rows, heed_ends)
    deter = stack_rows(rows, rows.read("env_deter", 0, rows.num_rows))
    available = min(deter.shape[-1], int(length.sum()))
    size = at_most_available(num_components, available, "--num_env_components")
    values = environment_components(deter, length, size, seed)
    values[np.arange(values.shape[1]) >= length[:, None]] = 0.0
    return CoordinateStack(values, length, rows.episode_ids, rows.units)


def side_by_side(parts: Sequence[CoordinateStack]) -> CoordinateStack:
    """One stack with the components of all `parts`, which are of the same episodes."""
    return replace(parts[0], values=np.concatenate([part.values for part in parts], axis=2))


def component_labels(states: States, sizes: Sequence[int]) -> list[str]:
    """Names of the components of parts that have so many each."""
    return [
        f"{letter}{number}"
        for letter, size in zip(LETTERS[states], sizes, strict=True)
        for number in range(size)
    ]
