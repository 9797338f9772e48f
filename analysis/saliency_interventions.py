"""The interventions that simulated samples were recorded with, made again."""

import json
from pathlib import Path

import torch
from numpy.typing import NDArray

from experiment.errors import UserError
from projections.descriptions import interventions_from_descriptions
from projections.intervention import Intervention
from rollouts.store import RolloutDataset
from rollouts.types import EpisodeInfo


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
        UserError: what defines an intervention's directions is gone, or defines others by now.
    """
    episodes = dataset.episodes
    is_needed = episodes["episode_id"].isin(sample_ids.tolist())
    keys = episodes.loc[is_needed, "interventions"].unique()
    try:
        made = {key: interventions_from_descriptions(json.loads(key)) for key in keys}
    except UserError as error:
        raise UserError(
            f"--generated_data_dir {folder}: the interventions of its samples cannot be made "
            f"again: {error}"
        ) from error
    return {key: made_again and made_again.to(device) for key, made_again in made.items()}
