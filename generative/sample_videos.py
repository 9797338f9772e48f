"""Videos of simulated rollouts."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rollouts.episode_videos import draw_side_by_side, write_episode_videos, write_missing_videos
from rollouts.store import RolloutDataset

FPS = 4.0


def write_sample_videos(folder: Path | str, num_videos: int) -> list[Path]:
    """Write the first samples of the dataset `folder` to `<folder>/videos/sample_<id>.mp4`.

    Where they are points on ways between two windows, each way of theirs that is recorded whole
    goes to `way_<number>.mp4`: its points from left to right, copies that take other actions below
    each other.

    Args:
        folder: dataset of simulated rollouts.
        num_videos: how many samples; those that exist, when there are fewer.

    Returns:
        The files written; videos that are there already stay.
    """
    dataset = RolloutDataset(folder)
    sample_ids = np.sort(dataset.episodes["episode_id"].to_numpy(np.int64))
    chosen = sample_ids[: max(0, num_videos)]
    written = write_episode_videos(folder, chosen.tolist(), FPS, "sample_{:05d}.mp4")
    ways = {
        f"way_{number:05d}.mp4": draw_side_by_side(dataset, ids)
        for number, ids in _whole_ways(dataset, chosen).items()
    }
    return written + write_missing_videos(dataset, ways, FPS)


def _whole_ways(
    dataset: RolloutDataset, sample_ids: NDArray[np.int64]
) -> dict[int, NDArray[np.int64]]:
    """Ways that some of (N,) samples are on: their number → (num_copies, num_points) samples."""
    if (dataset.episodes["initialisation"] != "interpolated").any():
        return {}
    recorded_with = dataset.metadata.provenance.get("config", {})
    num_points, num_copies = (
        int(recorded_with.get(name, 1)) for name in ("interpolation_points", "copies_per_start")
    )
    size = num_points * num_copies
    ways = {
        way: np.arange(size * way, size * (way + 1)).reshape(num_points, num_copies).T
        for way in np.unique(sample_ids // size).tolist()
    }
    present = dataset.episodes["episode_id"].to_numpy(np.int64)
    return {way: ids for way, ids in ways.items() if np.isin(ids, present).all()}
