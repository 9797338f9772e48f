"""The game's own variables, recorded with real rollouts, as columns beside other quantities."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.probe_rows import require_game_variables
from analysis.probe_targets import probe_targets
from analysis.rollout_rows import RolloutRows
from environments.game_steps import Variable
from rollouts.store import RolloutDataset


@dataclass(frozen=True)
class GameColumns:
    """Which variables there are; V of them, those that `probe_targets` adds among them."""

    table: dict[str, Variable]
    """What is recorded, by name, in the order of its columns."""
    max_distance: float
    """Variables of things further than so many cells along x or y are NaN: no frame shows them."""
    names: tuple[str, ...]
    """(V,)"""
    units: tuple[str, ...]
    """(V,)"""

    def read(self, rows: RolloutRows, chunk: slice) -> NDArray[np.float32]:
        """(chunk, V) values; all NaN where the rollouts, simulated ones for instance, have none."""
        if rows.dataset.metadata.game is None:
            return np.full((chunk.stop - chunk.start, len(self.names)), np.nan, np.float32)
        recorded = rows.read("game_variables", chunk.start, chunk.stop)
        return probe_targets(recorded, self.table, self.max_distance).values.astype(np.float32)


def game_columns(dataset: RolloutDataset, max_distance: float) -> GameColumns | None:
    """The columns of a dataset of real rollouts; None where it records no game variables.

    Args:
        dataset: real rollouts.
        max_distance: how far frames reach from the agent, in cells.
    """
    if dataset.metadata.game is None:
        return None
    table = require_game_variables(dataset, "--data_dir")
    known = probe_targets(np.empty((0, len(table))), table, max_distance)
    return GameColumns(table, max_distance, known.names, known.units)
