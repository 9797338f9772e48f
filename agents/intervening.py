"""What is done to the agent's state throughout a recording."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from projections.intervention import Intervention, descriptions_of


@dataclass(frozen=True, eq=False)
class Intervening:
    """An intervention and its twin: the recording that differs from this one by it alone."""

    intervention: Intervention | None = None
    """Acts at every decision; None leaves the agent as it is."""
    twin_dataset: str = ""
    """Name of the folder, beside this recording, that holds the same episodes without it; they
    have the same ids. Empty without a twin."""

    @property
    def descriptions(self) -> tuple[dict[str, Any], ...]:
        """As rollouts store them."""
        return descriptions_of(self.intervention)

    @property
    def settings(self) -> dict[str, Any]:
        """As a dataset's provenance stores them."""
        return {"interventions": list(self.descriptions), "twin_dataset": self.twin_dataset}

    def twin_of(self, episode_id: int) -> int:
        """Episode id of the twin, −1 without one."""
        return episode_id if self.twin_dataset else -1


UNTOUCHED = Intervening()


def intervene_at_rows(
    intervention: Intervention, previous: Tensor, proposed: Tensor, rows: NDArray[np.int64]
) -> Tensor:
    """Apply an intervention to decisions at different rows; those at the same row go together.

    Args:
        intervention: what to apply.
        previous: (B, state_dim) modified states of the rows before.
        proposed: (B, state_dim) states that the agent computed from them.
        rows: (B,) row of the rollout of each.

    Returns:
        (B, state_dim) states to carry on.
    """
    modified = proposed.clone()
    for row in np.unique(rows).tolist():
        members = torch.as_tensor(np.flatnonzero(rows == row), device=proposed.device)
        modified[members] = intervention(previous[members], proposed[members], row)
    return modified
