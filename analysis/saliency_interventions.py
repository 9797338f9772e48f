"""The interventions that simulated samples were recorded with, made again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment.errors import UserError
from projections.intervention import Intervention
from projections.interventions import swap_from_description
from rollouts.store import RolloutDataset
from rollouts.types import EpisodeInfo


class InterventionChain:
    """Several interventions, one after the other.

    Args:
        links: the interventions, in the order in which they act.
    """

    def __init__(self, links: Sequence[Intervention]) -> None:
        self._links = tuple(links)

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        """(B, state_dim) previous modified and proposed state → (B, state_dim) to carry on."""
        for link in self._links:
            proposed = link(previous, proposed, step)
        return proposed

    def describe(self) -> dict[str, Any]:
        """Plain values that make the same interventions again."""
        return {"chain": [link.describe() for link in self._links]}


def intervention_key(info: EpisodeInfo) -> str:
    """What samples with the same interventions share, as the table of episodes spells it."""
    return json.dumps(info.interventions)


def load_interventions(
    dataset: RolloutDataset, folder: Path, sample_ids: NDArray, device: torch.device
) -> dict[str, Intervention | None]:
    """Make the interventions of the chosen samples again, by `intervention_key`.

    Args:
        dataset: simulated rollouts.
        folder: where they lie, for messages.
        sample_ids: (N,) ids of the samples that are needed.
        device: where the states to change will be.

    Raises:
        UserError: the projection of an intervention is gone, or was fitted on other data since.
    """
    episodes = dataset.episodes
    is_needed = episodes["episode_id"].isin(sample_ids.tolist())
    keys = episodes.loc[is_needed, "interventions"].unique()
    try:
        return {key: _make(json.loads(key), device) for key in keys}
    except UserError as error:
        raise UserError(
            f"--generated_data_dir {folder}: the interventions of its samples cannot be made "
            f"again: {error}"
        ) from error


def _make(descriptions: Sequence[dict[str, Any]], device: torch.device) -> Intervention | None:
    swaps = [swap_from_description(description).to(device) for description in descriptions]
    return InterventionChain(swaps) if swaps else None
