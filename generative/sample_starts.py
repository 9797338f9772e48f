"""Where simulated samples begin: in windows of real rollouts, or in random latents."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment.errors import UserError
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
        nowhere = np.full(len(sample_ids), -1, np.int64)
        latent = simulator.bottleneck.from_normal(torch.from_numpy(draws))
        return Starts(latent.to(device, simulator.dtype), nowhere, nowhere)
