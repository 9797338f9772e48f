"""Where simulated samples begin: in windows of real rollouts, between two, in random latents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment.errors import UserError
from experiment.files import hash_file
from experiment.randomness import keyed_normal
from generative.checkpoint import LoadedSimulator
from generative.simulator import Simulator
from rollouts.store import RolloutDataset
from rollouts.types import Initialisation


@dataclass(frozen=True, eq=False)
class Starts:
    """Where B samples begin."""

    latent: Tensor
    """(B, latent_dim) bottleneck vectors."""
    source_episode_id: NDArray[np.int64]
    """(B,) real episode of the window; −1 without one."""
    source_row: NDArray[np.int64]
    """(B,) row of that episode that simulated row 0 reconstructs; −1 without one."""


class StartSource(Protocol):
    """Gives every sample its start."""

    initialisation: Initialisation
    num_available: int | None
    """Number of different starts; None without a limit."""
    input_hash: str
    """Hash of the dataset that the starts come from; empty without one."""

    def starts(self, simulator: Simulator, sample_ids: NDArray[np.int64]) -> Starts:
        """Starts of the given (B,) samples."""
        ...


class InformedStarts:
    """Starts encoded from windows of real rollouts, each window used at most once.

    Args:
        dataset: real rollouts.
        simulator: what shall encode them; it says how many frames a window has.
        seed: decides which sample gets which window.

    Raises:
        UserError: rollouts of another environment, or no episode has that many frames.
    """

    initialisation: Initialisation = "informed"

    def __init__(self, dataset: RolloutDataset, simulator: LoadedSimulator, seed: int) -> None:
        _require_same_environment(dataset, simulator)
        num_init_steps = simulator.simulator.config.num_init_steps
        lengths = dataset.episodes["length"].to_numpy(np.int64)
        windows_per_episode = np.maximum(lengths - num_init_steps + 1, 0)
        self._ends = np.cumsum(windows_per_episode)
        self.num_available: int | None = int(self._ends[-1]) if len(self._ends) else 0
        if self.num_available == 0:
            raise UserError(
                f"--data_dir: none of the {len(lengths)} episodes has the {num_init_steps} frames "
                "that initialise the simulator"
            )
        self.input_hash = dataset.hash
        self._episode_ids = dataset.episodes["episode_id"].to_numpy(np.int64)
        self._first_windows = self._ends - windows_per_episode
        self._order = np.random.default_rng(seed).permutation(self.num_available)
        self._num_init_steps = num_init_steps
        self._dataset = dataset
        self._offsets = dataset.episodes["offset"].to_numpy(np.int64)

    def starts(self, simulator: Simulator, sample_ids: NDArray[np.int64]) -> Starts:
        """Encode the windows of (B,) samples."""
        windows = self._order[sample_ids]
        episodes = np.searchsorted(self._ends, windows, side="right")
        rows = windows - self._first_windows[episodes]
        frames = torch.from_numpy(self._read_windows(self._offsets[episodes] + rows))
        device = next(simulator.parameters()).device
        return Starts(
            latent=simulator.encode(frames.to(device)),
            source_episode_id=self._episode_ids[episodes],
            source_row=rows + self._num_init_steps - 1,
        )

    def recorded_actions(
        self, starts: Starts, num_steps: int, null_action: int
    ) -> NDArray[np.int64]:
        """(K, B) actions that were taken from the source rows on; the null action after the end."""
        actions = np.full((num_steps, len(starts.source_row)), null_action, np.int64)
        lengths = self._dataset.episodes["length"].to_numpy(np.int64)
        for column, (episode_id, row) in enumerate(
            zip(starts.source_episode_id.tolist(), starts.source_row.tolist(), strict=True)
        ):
            index = self._dataset.index_of(episode_id)
            start = int(self._offsets[index]) + row
            count = min(num_steps, int(lengths[index]) - row)
            actions[:count, column] = self._dataset.read_field("action", start, start + count)
        return actions

    def _read_windows(self, first_rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(num_init, B, H, W, C) frames of the windows that begin at (B,) rows of the dataset."""
        windows = [
            self._dataset.read_field("obs", first, first + self._num_init_steps)
            for first in first_rows.tolist()
        ]
        return np.stack(windows, axis=1)


def _require_same_environment(dataset: RolloutDataset, simulator: LoadedSimulator) -> None:
    found, expected = dataset.metadata.environment, simulator.environment
    if (found.adapter, found.name, found.obs_shape) != (
        expected.adapter,
        expected.name,
        expected.obs_shape,
    ):
        raise UserError(
            f"--data_dir: rollouts of {found.name} {found.obs_shape}, the simulator "
            f"{simulator.path} imitates {expected.name} {expected.obs_shape}"
        )


class RandomStarts:
    """Starts drawn from all latents: uniformly on the sphere, or from the standard normal."""

    initialisation: Initialisation = "random"
    num_available: int | None = None
    input_hash = ""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def starts(self, simulator: Simulator, sample_ids: NDArray[np.int64]) -> Starts:
        """Draw the latents of (B,) samples."""
        latent_dim = simulator.config.latent_dim
        draws = keyed_normal(self._seed, "random-latent", sample_ids, 0, latent_dim)
        device = next(simulator.parameters()).device
        latent = simulator.bottleneck.from_normal(torch.from_numpy(draws))
        return Starts(latent.to(device, simulator.dtype), *_nowhere(sample_ids))


class InterpolatedStarts:
    """Starts at even steps on the way between the latents of two windows.

    Sample i is point `i mod num_points` of way `i // num_points`; the first point of a way is one
    window's latent, the last point the other's. On the sphere a way is an arc.

    Args:
        windows: gives windows 2w and 2w + 1 as the ends of way w.
        num_points: at least 2.
    """

    initialisation: Initialisation = "interpolated"

    def __init__(self, windows: InformedStarts, num_points: int) -> None:
        assert windows.num_available is not None
        self.num_available: int | None = windows.num_available // 2 * num_points
        if self.num_available == 0:
            raise UserError("--data_dir: interpolation needs at least two windows, found one")
        self.input_hash = windows.input_hash
        self._windows = windows
        self._num_points = num_points

    def starts(self, simulator: Simulator, sample_ids: NDArray[np.int64]) -> Starts:
        """Interpolate the latents of (B,) samples; between windows there is no source row."""
        ways, at = np.unique(sample_ids // self._num_points, return_inverse=True)
        begin, end = (self._windows.starts(simulator, 2 * ways + i).latent[at] for i in (0, 1))
        share = torch.from_numpy(sample_ids % self._num_points / (self._num_points - 1))
        latent = simulator.bottleneck.interpolate(begin, end, share.to(begin))
        return Starts(latent, *_nowhere(sample_ids))


class GivenStarts:
    """Starts from latents in a file.

    Args:
        path: `.npy` file of (N, latent_dim) floats.
        simulator: says which latents can occur.

    Raises:
        UserError: no such file, or not of latents of this simulator.
    """

    initialisation: Initialisation = "given"

    def __init__(self, path: Path, simulator: LoadedSimulator) -> None:
        self._latents = torch.from_numpy(_read_latents(path, simulator.simulator))
        self.num_available: int | None = len(self._latents)
        self.input_hash = hash_file(path)

    def starts(self, simulator: Simulator, sample_ids: NDArray[np.int64]) -> Starts:
        """The latents of (B,) samples, in the order of the file."""
        device = next(simulator.parameters()).device
        latent = self._latents[torch.from_numpy(sample_ids)]
        return Starts(latent.to(device, simulator.dtype), *_nowhere(sample_ids))


def _nowhere(sample_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Source episode and row of samples that no window sets up."""
    return np.full(len(sample_ids), -1, np.int64), np.full(len(sample_ids), -1, np.int64)


_LARGEST_DISTANCE = 1e-3
"""How far a latent in a file may lie from those that can occur."""


def _read_latents(path: Path, simulator: Simulator) -> NDArray[np.float32]:
    try:
        latents = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"--latent_file {path}: no such file") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"--latent_file {path}: not a .npy file of numbers ({error})") from None
    dim = simulator.config.latent_dim
    if not isinstance(latents, np.ndarray) or latents.ndim != 2 or latents.shape[1] != dim:
        found = getattr(latents, "shape", type(latents).__name__)
        raise UserError(f"--latent_file {path}: found {found}, expected (N, {dim})")
    latents = latents.astype(np.float32)
    projected = simulator.bottleneck.project(torch.from_numpy(latents)).numpy()
    distance = np.abs(projected - latents).max(initial=0.0)
    if len(latents) == 0 or not distance <= _LARGEST_DISTANCE:
        raise UserError(
            f"--latent_file {path}: {len(latents)} latents, up to {distance:.3g} away from those "
            f"that can occur with --bottleneck {simulator.config.bottleneck}"
        )
    return projected
