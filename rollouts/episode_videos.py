"""Videos of the episodes of a dataset: frames with action, value, reward and terminal probability.

They are made from sealed shards, one row at a time: however long an episode is, a few frames of
it are in memory. A video appears whole, so a killed process leaves those it had finished, and the
next call makes the others.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from rollouts.store import RolloutDataset
from rollouts.video import DEFAULT_FPS, Frame, StepOverlay, VideoWriter, draw_overlay

VIDEO_FOLDER = "videos"
_HEIGHT = 256
_ROWS_PER_READ = 64
_FIELDS = ("obs", "action", "value", "reward")


def write_episode_videos(
    folder: Path | str,
    episode_ids: Iterable[int],
    fps: float = DEFAULT_FPS,
    name: str = "episode_{:08d}.mp4",
) -> list[Path]:
    """Write episodes of the dataset `folder` as MP4, to `<folder>/videos/`.

    Videos that are there already stay, since a sealed episode never changes; ids that the dataset
    does not have are left out.

    Args:
        folder: dataset of real or simulated rollouts.
        episode_ids: which episodes.
        fps: decisions per second of the video.
        name: of a file, with a place for the episode's id.

    Returns:
        The files written.
    """
    dataset = RolloutDataset(folder)
    present = set(dataset.episodes["episode_id"].to_list())
    drawings = {
        name.format(episode_id): draw_episode(dataset, episode_id)
        for episode_id in episode_ids
        if episode_id in present
    }
    return write_missing_videos(dataset, drawings, fps)


def write_missing_videos(
    dataset: RolloutDataset, drawings: Mapping[str, Iterator[Frame]], fps: float
) -> list[Path]:
    """Write those videos to the dataset's `videos/` that are not there; returns their files.

    Args:
        dataset: what is drawn.
        drawings: frames of each video, by its file name; drawn only where they are written.
        fps: frames per second.
    """
    paths = {dataset.folder / VIDEO_FOLDER / name: frames for name, frames in drawings.items()}
    missing = {path: frames for path, frames in paths.items() if not path.exists()}
    if missing:
        dataset.metadata.environment.require_images(f"videos of {dataset.folder}")
    for path, frames in tqdm(missing.items(), unit="video", disable=None):
        with VideoWriter(path, fps) as video:
            video.write_all(frames)
    return list(missing)


def draw_episode(dataset: RolloutDataset, episode_id: int) -> Iterator[Frame]:
    """Enlarged frames of an episode, each with what happened drawn into it."""
    index = dataset.index_of(episode_id)
    start = int(dataset.episodes["offset"].to_numpy()[index])
    stop = start + int(dataset.episodes["length"].to_numpy()[index])
    is_simulated = dataset.metadata.simulated is not None
    names = (*_FIELDS, "terminal_prob") if is_simulated else _FIELDS
    action_names = dataset.metadata.environment.action_names
    for begin in range(start, stop, _ROWS_PER_READ):
        end = min(begin + _ROWS_PER_READ, stop)
        rows = (dataset.read_field(name, begin, end) for name in names)
        for obs, action, value, reward, *terminal in zip(*rows, strict=True):
            overlay = StepOverlay(
                action_name=_shown_name(action_names[action]),
                value=float(value),
                reward=float(reward),
                terminal_prob=float(terminal[0]) if terminal else None,
            )
            # A grey frame has one channel.
            colour = np.broadcast_to(obs, (*obs.shape[:2], 3))
            yield draw_overlay(colour, overlay, max(1, _HEIGHT // len(obs)))


def draw_side_by_side(dataset: RolloutDataset, episode_ids: NDArray[np.integer]) -> Iterator[Frame]:
    """Frames of episodes of equal length beside each other.

    Args:
        dataset: holds all of them.
        episode_ids: (R, C) episodes in rows and columns of the picture.
    """
    episodes = [draw_episode(dataset, int(episode_id)) for episode_id in episode_ids.flat]
    for frames in zip(*episodes, strict=True):
        tiles = np.stack(frames).reshape(*episode_ids.shape, *frames[0].shape)
        yield np.concatenate(np.concatenate(tiles, axis=1), axis=1)


def _shown_name(action_name: str) -> str:
    """Procgen's actions without effect are numbered; as glyphs they are all the same."""
    return "null" if action_name.startswith("null") else action_name
