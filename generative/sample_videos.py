"""Videos of simulated rollouts: frames with action, value, reward and terminal probability."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rollouts.store import RolloutDataset
from rollouts.types import Rollout
from rollouts.video import StepOverlay, VideoWriter, draw_overlay

FPS = 4.0
_SCALE = 4


def write_sample_videos(folder: Path | str, num_videos: int) -> list[Path]:
    """Write the first samples of the dataset `folder` to `<folder>/videos/sample_<id>.mp4`.

    Args:
        folder: dataset of simulated rollouts.
        num_videos: how many; those that exist, when there are fewer.

    Returns:
        The files written, or replaced.
    """
    dataset = RolloutDataset(folder)
    action_names = dataset.metadata.environment.action_names
    sample_ids = np.sort(dataset.episodes["episode_id"].to_numpy(np.int64))[: max(0, num_videos)]
    paths = []
    for sample_id in sample_ids.tolist():
        rollout = dataset.read_episode(dataset.index_of(sample_id))
        path = Path(folder) / "videos" / f"sample_{sample_id:05d}.mp4"
        with VideoWriter(path, FPS) as video:
            video.write_all(draw_sample(rollout, action_names))
        paths.append(path)
    return paths


def draw_sample(rollout: Rollout, action_names: tuple[str, ...]) -> list[NDArray[np.uint8]]:
    """T enlarged frames of a rollout, each with what happened drawn into it."""
    frames = []
    for row, frame in enumerate(rollout.obs):
        terminal = None if rollout.terminal_prob is None else float(rollout.terminal_prob[row])
        overlay = StepOverlay(
            action_name=action_names[rollout.action[row]],
            value=float(rollout.value[row]),
            reward=float(rollout.reward[row]),
            terminal_prob=terminal,
        )
        frames.append(draw_overlay(frame, overlay, _SCALE))
    return frames
