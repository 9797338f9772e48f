"""What is done to the agent's state throughout a recording."""

from dataclasses import dataclass
from typing import Any

from projections.intervention import Intervention


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
        return () if self.intervention is None else (self.intervention.describe(),)

    @property
    def settings(self) -> dict[str, Any]:
        """As a dataset's provenance stores them."""
        return {"interventions": list(self.descriptions), "twin_dataset": self.twin_dataset}

    def twin_of(self, episode_id: int) -> int:
        """Episode id of the twin, −1 without one."""
        return episode_id if self.twin_dataset else -1


UNTOUCHED = Intervening()
