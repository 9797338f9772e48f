"""Which windows the simulator is measured on, and what frames are like on average."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment.errors import UserError
from experiment.progress import Progress
from experiment.randomness import keyed_uniform
from generative.objective import WindowTensors, to_window_tensors
from generative.simulator import Simulator
from rollouts.independent_units import levels_of_episodes
from rollouts.store import RolloutDataset
from rollouts.windows import WindowSampler

FRAME_CHUNKS = 64
FRAME_ROWS_PER_CHUNK = 256


@dataclass(frozen=True)
class FidelityConfig:
    """How the simulator's predictions are measured."""

    num_windows: int = 512
    """Windows to predict, spread over the episodes."""
    horizon: int = 10
    """Frames to predict after the last one given."""
    num_samples: int = 16
    """Sampled futures per window."""
    num_resamples: int = 2000
    """Bootstrap resamples of the levels, for the 95% intervals."""
    num_calibration_windows: int = 2000
    """Windows whose rewards and ends are predicted: more of them, since few rows have any and no
    image is decoded."""
    fidelity_batch_size: int = 64
    """Windows at a time."""
    seed: int = 0
    """Seed of the choice of windows, the sampled futures and the bootstrap."""


@dataclass(frozen=True, eq=False)
class ChosenWindows:
    """W windows of a dataset, each with another one that goes with it as a control."""

    dataset: RolloutDataset
    episode: NDArray[np.int64]
    """(W,) indices into `dataset.episodes`."""
    start_row: NDArray[np.int64]
    """(W,)"""
    other: NDArray[np.int64]
    """(W,) index of a window of another episode, where there is one."""

    @property
    def episode_id(self) -> NDArray[np.int64]:
        """(W,)"""
        return self.dataset.episodes["episode_id"].to_numpy(np.int64)[self.episode]

    @property
    def level(self) -> NDArray[np.int64]:
        """(W,) level seed, or episode id where the environment has no levels."""
        return levels_of_episodes(self.dataset)[self.episode]


@dataclass(frozen=True)
class WindowPairs:
    """A batch of windows on the device."""

    own: WindowTensors
    other: WindowTensors
    """For each a window of another episode."""
    ids: Tensor
    """(B,) numbers of the windows, which key their draws."""


def window_pairs(
    windows: ChosenWindows,
    simulator: Simulator,
    horizon: int,
    batch_size: int,
    device: torch.device | str,
) -> Iterator[WindowPairs]:
    """The windows in order, with what follows them up to the horizon, batch by batch."""
    sampler = WindowSampler(
        windows.dataset, simulator.config.num_init_steps, horizon + 1, len(windows.episode), seed=0
    )

    def read(chosen: NDArray[np.int64]) -> WindowTensors:
        batch = sampler.windows_at(windows.episode[chosen], windows.start_row[chosen])
        return to_window_tensors(batch, device, simulator.dtype)

    count = len(windows.episode)
    batches = range(0, count, batch_size)
    with Progress(len(batches), "batch of windows") as progress:
        for start in batches:
            stop = min(start + batch_size, count)
            chosen = np.arange(start, stop)
            yield WindowPairs(read(chosen), read(windows.other[chosen]), torch.arange(start, stop))
            progress.advance(f"{stop} windows")


def choose_windows(
    dataset: RolloutDataset, num_init_steps: int, num_windows: int, seed: int
) -> ChosenWindows:
    """Windows spread evenly over the episodes.

    A start row is drawn uniformly among those that leave at least one row to predict.

    Raises:
        UserError: no window fits into an episode.
    """
    num_starts = dataset.episodes["length"].to_numpy(np.int64) - num_init_steps
    usable = np.flatnonzero(num_starts > 0)
    if len(usable) == 0:
        raise UserError(
            f"--data_dir {dataset.folder}: no episode longer than the {num_init_steps} "
            "initial frames"
        )
    order = keyed_uniform(seed, "fidelity-episode", usable)[:, 0].argsort()
    episodes = np.resize(usable[order], num_windows)
    draws = keyed_uniform(seed, "fidelity-row", np.arange(num_windows))[:, 0]
    rows = np.floor(draws * num_starts[episodes]).astype(np.int64)
    return ChosenWindows(dataset, episodes, rows, other_windows(episodes))


def other_windows(episodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(W,) episode of each window → (W,) a window of another episode, where there is one.

    The windows form a ring, and the other one is the nearest ahead: the choice of windows has
    shuffled the episodes.
    """
    count = len(episodes)
    if np.all(episodes == episodes[0]):
        return (np.arange(count) + 1) % count
    others = np.empty(count, np.int64)
    for window in range(count):
        ahead = (window + 1 + np.arange(count)) % count
        others[window] = ahead[np.argmax(episodes[ahead] != episodes[window])]
    return others


@dataclass(frozen=True, eq=False)
class FrameStatistics:
    """What the frames of a dataset are like on average."""

    mean: Tensor
    """(C, H, W) in [0, 1]."""
    squared_deviation: float
    """Mean over frames and pixels of the squared difference from the mean frame."""


def frame_statistics(dataset: RolloutDataset) -> FrameStatistics:
    """Of all frames, or of a large dataset over evenly spaced chunks."""
    rows = FRAME_ROWS_PER_CHUNK
    starts = np.arange(0, dataset.num_rows, rows)
    if len(starts) > FRAME_CHUNKS:
        starts = starts[np.linspace(0, len(starts) - 1, FRAME_CHUNKS).astype(int)]
    shape, count = dataset.metadata.environment.obs_shape, 0
    total, total_square = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for start in starts:
        frames = dataset.read_field("obs", int(start), min(int(start) + rows, dataset.num_rows))
        total += frames.sum(axis=0, dtype=np.int64)
        total_square += np.square(frames, dtype=np.int64).sum(axis=0)
        count += len(frames)
    mean = total / (255.0 * count)
    variance = total_square / (255.0**2 * count) - np.square(mean)
    image = torch.from_numpy(mean).movedim(-1, 0).float()
    return FrameStatistics(image, float(variance.mean()))
