"""Videos of simulated rollouts."""

from pathlib import Path

import numpy as np

from rollouts.episode_videos import write_episode_videos
from rollouts.store import RolloutDataset

FPS = 4.0


def write_sample_videos(folder: Path | str, num_videos: int) -> list[Path]:
    """Write the first samples of the dataset `folder` to `<folder>/videos/sample_<id>.mp4`.

    Args:
        folder: dataset of simulated rollouts.
        num_videos: how many; those that exist, when there are fewer.

    Returns:
        The files written; videos that are there already stay.
    """
    sample_ids = np.sort(RolloutDataset(folder).episodes["episode_id"].to_numpy(np.int64))
    chosen = sample_ids[: max(0, num_videos)].tolist()
    return write_episode_videos(folder, chosen, FPS, "sample_{:05d}.mp4")
