"""How well the simulator predicts frames of levels it has not seen, beside two baselines.

The simulator is given the initial frames of a window and the actions recorded after them, and
predicts on from its own states: the frames after the initial ones are shown to it never.
Horizon k is simulated step k; horizon 0, the last frame given, is a reconstruction.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.images import to_float_images
from experiment.errors import UserError
from experiment.randomness import keyed_uniform
from generative.networks import in_one_batch
from generative.objective import WindowTensors, to_window_tensors
from generative.simulator import SimulationNoise, Simulator
from generative.straight_through import clamp_to_image, round_to_8_bits
from generative.types import EnvironmentState, LatentChoice
from rollouts.store import RolloutDataset
from rollouts.windows import WindowSampler

METHODS = ("mode", "mean_of_samples", "single_sample", "mean_frame", "last_frame")
"""Predictions compared: the simulator's most probable future, the mean of its sampled futures, one
sampled future (its expected error), the mean frame of the training data, and the last frame given,
repeated. At horizon 0 the last one is the target itself."""
BASELINES = ("mean_frame", "last_frame")
MEAN_FRAME_CHUNKS = 64
MEAN_FRAME_ROWS_PER_CHUNK = 256


@dataclass(frozen=True)
class FidelityConfig:
    """How the simulator's predictions are measured."""

    num_windows: int = 512
    """Windows to predict, spread over the episodes."""
    horizon: int = 5
    """Frames to predict after the last one given."""
    num_samples: int = 16
    """Sampled futures per window."""
    num_resamples: int = 2000
    """Bootstrap resamples of the levels, for the 95% intervals."""
    fidelity_batch_size: int = 64
    """Windows at a time."""
    seed: int = 0
    """Seed of the choice of windows, the sampled futures and the bootstrap."""


@dataclass(frozen=True, eq=False)
class WindowErrors:
    """Squared error of each prediction, mean over pixels in [0, 1]."""

    errors: NDArray[np.float64]
    """(num_methods, num_windows, horizon + 1); NaN past the end of an episode."""
    level: NDArray[np.int64]
    """(num_windows,) level seed, or episode id where the environment has no levels."""
    episode_id: NDArray[np.int64]
    """(num_windows,)"""
    start_row: NDArray[np.int64]
    """(num_windows,)"""


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Mean errors over valid rows with 95% intervals from resampling levels."""

    windows: WindowErrors
    mse: NDArray[np.float64]
    """(num_methods, horizon + 1)"""
    mse_interval: NDArray[np.float64]
    """(2, num_methods, horizon + 1) lower and upper bound."""
    difference: NDArray[np.float64]
    """(num_methods, num_baselines, horizon + 1) error minus the baseline's, on the same rows."""
    difference_interval: NDArray[np.float64]
    """(2, num_methods, num_baselines, horizon + 1)"""

    def beats(self, baseline: str, horizon: int, method: str = "mode") -> bool:
        """Whether the method's mean error is below the baseline's."""
        return bool(self.mse[METHODS.index(method), horizon] < self.mse_of(baseline)[horizon])

    def mse_of(self, method: str) -> NDArray[np.float64]:
        """(horizon + 1,)"""
        return self.mse[METHODS.index(method)]

    def summary(self) -> dict[str, Any]:
        """Plain numbers for a report."""
        last = self.mse.shape[1] - 1
        return {
            "mse_by_horizon": {m: [round(v, 6) for v in self.mse_of(m).tolist()] for m in METHODS},
            "beats_mean_frame_at_each_horizon": all(
                self.beats("mean_frame", horizon) for horizon in range(1, last + 1)
            ),
            f"beats_last_frame_at_horizon_{last}": self.beats("last_frame", last),
            "num_windows": len(self.windows.level),
            "num_levels": len(np.unique(self.windows.level)),
        }

    def table(self) -> str:
        """Errors by horizon, one line per prediction, with 95% intervals."""
        lines = ["MSE (95% interval)  " + "".join(f"h={h:<22d}" for h in range(self.mse.shape[1]))]
        for index, method in enumerate(METHODS):
            low, high = self.mse_interval[:, index]
            cells = zip(self.mse[index], low, high, strict=True)
            entries = "".join(f"{m:.4f} [{a:.4f}, {b:.4f}] " for m, a, b in cells)
            lines.append(f"{method:<20s}{entries}")
        return "\n".join(lines)


def measure_fidelity(
    simulator: Simulator,
    heldout: RolloutDataset,
    train: RolloutDataset,
    config: FidelityConfig,
    device: torch.device | str = "cpu",
) -> Fidelity:
    """Predict windows of `heldout`; `train` gives the mean frame.

    Raises:
        UserError: no window fits into an episode of `heldout`.
    """
    windows = measure_windows(simulator, heldout, mean_frame(train), config, device)
    return summarise(windows, config)


@torch.no_grad()
def measure_windows(
    simulator: Simulator,
    heldout: RolloutDataset,
    mean_image: Tensor,
    config: FidelityConfig,
    device: torch.device | str,
) -> WindowErrors:
    """Errors of all predictions on chosen windows; `mean_image` is (C, H, W)."""
    num_init = simulator.config.num_init_steps
    episodes, rows = choose_windows(heldout, num_init, config)
    sampler = WindowSampler(heldout, num_init, config.horizon + 1, config.num_windows, config.seed)
    errors = []
    for chunk in _chunks(len(episodes), config.fidelity_batch_size):
        batch = sampler.windows_at(episodes[chunk], rows[chunk])
        windows = to_window_tensors(batch, device, simulator.dtype)
        ids = torch.arange(chunk.start, chunk.stop)
        errors.append(_errors(simulator, windows, mean_image.to(device), ids, config))
    table = heldout.episodes.iloc[episodes]
    episode_id = table["episode_id"].to_numpy(np.int64)
    level = table["level_seed"].to_numpy(np.int64)
    level = np.where(level < 0, episode_id, level)
    return WindowErrors(np.concatenate(errors, axis=1), level, episode_id, rows)


def choose_windows(
    dataset: RolloutDataset, num_init_steps: int, config: FidelityConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Episode indices and start rows, the windows spread evenly over the episodes.

    A start row is drawn uniformly among those that leave at least one row to predict.
    """
    num_starts = dataset.episodes["length"].to_numpy(np.int64) - num_init_steps
    usable = np.flatnonzero(num_starts > 0)
    if len(usable) == 0:
        raise UserError(
            f"--data_dir {dataset.folder}: no episode longer than the {num_init_steps} "
            "initial frames"
        )
    order = keyed_uniform(config.seed, "fidelity-episode", usable)[:, 0].argsort()
    episodes = np.resize(usable[order], config.num_windows)
    draws = keyed_uniform(config.seed, "fidelity-row", np.arange(config.num_windows))[:, 0]
    return episodes, np.floor(draws * num_starts[episodes]).astype(np.int64)


def mean_frame(dataset: RolloutDataset) -> Tensor:
    """(C, H, W) mean over frames in [0, 1]; of a large dataset over evenly spaced chunks."""
    rows = MEAN_FRAME_ROWS_PER_CHUNK
    starts = np.arange(0, dataset.num_rows, rows)
    if len(starts) > MEAN_FRAME_CHUNKS:
        starts = starts[np.linspace(0, len(starts) - 1, MEAN_FRAME_CHUNKS).astype(int)]
    total, count = 0.0, 0
    for start in starts:
        stop = min(int(start) + rows, dataset.num_rows)
        frames = dataset.read_field("obs", int(start), stop)
        total = total + frames.sum(axis=0, dtype=np.int64)
        count += len(frames)
    mean = np.asarray(total, np.float64) / (255.0 * count)
    return torch.from_numpy(mean).movedim(-1, 0).float()


def summarise(windows: WindowErrors, config: FidelityConfig) -> Fidelity:
    """Means and intervals; whole levels are resampled, since windows of one level are alike."""
    valid = np.isfinite(windows.errors[0])
    _, group = np.unique(windows.level, return_inverse=True)
    member = np.eye(group.max() + 1)[group].T
    counts = member @ valid
    sums = member @ np.nan_to_num(windows.errors)
    resamples = _resample_weights(len(member), config)
    # A horizon that no window, or no window of a resample, reaches has no mean: NaN.
    with np.errstate(invalid="ignore"):
        mse = sums.sum(axis=1) / counts.sum(axis=0)
        resampled = np.einsum("rl,mlh->rmh", resamples, sums) / (resamples @ counts)[:, None]
    base = [METHODS.index(name) for name in BASELINES]
    return Fidelity(
        windows=windows,
        mse=mse,
        mse_interval=np.nanpercentile(resampled, [2.5, 97.5], axis=0),
        difference=mse[:, None] - mse[None, base],
        difference_interval=np.nanpercentile(
            resampled[:, :, None] - resampled[:, None, base], [2.5, 97.5], axis=0
        ),
    )


def _errors(
    simulator: Simulator,
    windows: WindowTensors,
    mean_image: Tensor,
    ids: Tensor,
    config: FidelityConfig,
) -> NDArray[np.float64]:
    """(num_methods, B, horizon + 1)"""
    targets = to_float_images(windows.frames).to(simulator.dtype)
    latent = simulator.encode(windows.initial_frames)
    actions = simulator.one_hot_actions(windows.action)
    mode = predict(simulator, latent, actions)
    total, single = torch.zeros_like(mode), torch.zeros_like(mode[:, :, 0, 0, 0])
    for sample in range(config.num_samples):
        noise = SimulationNoise(config.seed, ids * config.num_samples + sample)
        images = predict(simulator, latent, actions, "sample", noise)
        total += images
        single += _squared_error(images, targets)
    errors = torch.stack(
        [
            _squared_error(mode, targets),
            _squared_error(total / config.num_samples, targets),
            single / config.num_samples,
            _squared_error(mean_image.expand_as(targets), targets),
            _squared_error(targets[:1].expand_as(targets), targets),
        ]
    )
    valid = windows.valid.expand_as(errors)
    return torch.where(valid, errors, torch.nan).transpose(1, 2).double().cpu().numpy()


def predict(
    simulator: Simulator,
    latent: Tensor,
    actions: Tensor,
    latents: LatentChoice = "mode",
    noise: SimulationNoise | None = None,
) -> Tensor:
    """Images that `simulate` would show under given actions, without running the agent.

    Args:
        simulator: the simulator.
        latent: (B, latent_dim)
        actions: (K, B, num_actions) one-hot.
        latents: how the stochastic part is picked, also of the initial state.
        noise: keyed draws, needed for `sample`.

    Returns:
        (K, B, C, H, W) in [0, 1], rounded to 8 bits.
    """
    size = simulator.config.num_categoricals
    uniform, initial_uniform = None, None
    if noise is not None:
        initial_uniform = noise.initial(size).to(latent.device)
        steps = range(len(actions))
        uniform = torch.stack([noise.latents(step, size) for step in steps]).to(latent.device)
    initial = simulator.decode_initial(latent, latents, initial_uniform)
    imagined = simulator.imagine(initial.environment, initial.action, actions, latents, uniform)
    return _decode(simulator, imagined.state)


def _decode(simulator: Simulator, states: EnvironmentState) -> Tensor:
    images = in_one_batch(simulator.image_decoder, states.features)
    return round_to_8_bits(clamp_to_image(images))


def _squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    return (predicted - target).square().flatten(2).mean(-1)


def _resample_weights(num_levels: int, config: FidelityConfig) -> NDArray[np.float64]:
    """(num_resamples, num_levels) how often each level is drawn."""
    generator = np.random.default_rng(config.seed)
    share = np.full(num_levels, 1 / num_levels)
    return generator.multinomial(num_levels, share, size=config.num_resamples).astype(np.float64)


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
