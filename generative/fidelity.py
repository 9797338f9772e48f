"""How well the simulator predicts levels it has not seen, beside baselines and an upper bound.

The simulator is given the initial frames of a window and the actions recorded after them, and
predicts on from its own states: the frames after the initial ones are shown to it never, except in
the upper bound. Horizon k is simulated step k; horizon 0, the last frame given, is a
reconstruction. Scores are those of `generative.scores`.
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
from experiment.resampling import INTERVAL_PERCENTILES, resample_weights
from generative.networks import in_one_batch
from generative.objective import WindowTensors, to_window_tensors
from generative.scores import SCORES, MeanReaction, react, read_reaction, score
from generative.simulator import SimulationNoise, Simulator
from generative.straight_through import clamp_to_image, round_to_8_bits
from generative.types import EnvironmentState, LatentChoice
from rollouts.store import RolloutDataset
from rollouts.windows import WindowSampler

METHODS = {
    "mode": "the simulator's most probable future",
    "mode_decoded_state": "the same, shown to an agent in the decoded initial state",
    "mean_of_samples": "mean of sampled futures",
    "single_sample": "one sampled future",
    "observed": "upper bound: states that have seen the true frames",
    "shuffled_actions": "most probable future under another window's actions",
    "mean_frame": "mean frame of the training data",
    "last_frame": "last frame given, repeated",
    "other_episode": "frames of another episode",
}
"""Predictions compared, each with what it is. The agent sees them from its recorded initial state
on, except where another is named. Of a single sample the expected score is taken; the agent's
reaction to a mean of samples is the mixture of its reactions to them. At horizon 0 the last frame
given is the target itself."""
BASELINES = ("mean_frame", "last_frame", "other_episode")
MEAN_FRAME_CHUNKS = 64
MEAN_FRAME_ROWS_PER_CHUNK = 256


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
    fidelity_batch_size: int = 64
    """Windows at a time."""
    seed: int = 0
    """Seed of the choice of windows, the sampled futures and the bootstrap."""


@dataclass(frozen=True, eq=False)
class WindowScores:
    """Scores of each prediction of each window."""

    scores: NDArray[np.float64]
    """(num_scores, num_methods, num_windows, horizon + 1); NaN past the end of an episode."""
    level: NDArray[np.int64]
    """(num_windows,) level seed, or episode id where the environment has no levels."""
    episode_id: NDArray[np.int64]
    """(num_windows,)"""
    start_row: NDArray[np.int64]
    """(num_windows,)"""


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Mean scores over valid rows with 95% intervals from resampling levels."""

    windows: WindowScores
    mean: NDArray[np.float64]
    """(num_scores, num_methods, horizon + 1)"""
    interval: NDArray[np.float64]
    """(2, num_scores, num_methods, horizon + 1) lower and upper bound."""
    difference: NDArray[np.float64]
    """(num_scores, num_methods, num_baselines, horizon + 1) score minus the baseline's, on the same
    rows."""
    difference_interval: NDArray[np.float64]
    """(2, num_scores, num_methods, num_baselines, horizon + 1)"""

    @property
    def horizon(self) -> int:
        """The last one."""
        return self.mean.shape[-1] - 1

    def beats(self, baseline: str, horizon: int, method: str = "mode") -> bool:
        """Whether the method's mean squared error is below the baseline's."""
        return bool(self.mean_of("mse", method)[horizon] < self.mean_of("mse", baseline)[horizon])

    def mean_of(self, score_name: str, method: str) -> NDArray[np.float64]:
        """(horizon + 1,)"""
        return self.mean[_index(SCORES, score_name), _index(METHODS, method)]

    def summary(self) -> dict[str, Any]:
        """Plain numbers for a report."""
        last = self.horizon
        return {
            **{
                f"{name}_by_horizon": {
                    method: [round(v, 6) for v in self.mean_of(name, method).tolist()]
                    for method in METHODS
                }
                for name in ("mse", "policy_kl", "greedy_agreement")
            },
            "beats_mean_frame_at_each_horizon": all(
                self.beats("mean_frame", horizon) for horizon in range(1, last + 1)
            ),
            f"beats_last_frame_at_horizon_{last}": self.beats("last_frame", last),
            "num_windows": len(self.windows.level),
            "num_levels": len(np.unique(self.windows.level)),
        }

    def table(self) -> str:
        """Scores by horizon, one line per prediction."""
        lines = []
        for name, meaning in SCORES.items():
            lines += ["", f"{name}: {meaning}"]
            horizons = "".join(f"h={horizon:<7d}" for horizon in range(self.horizon + 1))
            lines.append(f"{'':<20s}{horizons}")
            for method in METHODS:
                cells = "".join(f"{value:<9.4f}" for value in self.mean_of(name, method))
                lines.append(f"{method:<20s}{cells}")
        return "\n".join(lines[1:])


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
) -> WindowScores:
    """Scores of all predictions on chosen windows; `mean_image` is (C, H, W)."""
    num_init = simulator.config.num_init_steps
    episodes, rows = choose_windows(heldout, num_init, config)
    others = other_windows(episodes)
    sampler = WindowSampler(heldout, num_init, config.horizon + 1, config.num_windows, config.seed)
    scores = []
    for chunk in _chunks(len(episodes), config.fidelity_batch_size):
        windows, other = (
            to_window_tensors(
                sampler.windows_at(episodes[chosen], rows[chosen]), device, simulator.dtype
            )
            for chosen in (np.arange(chunk.start, chunk.stop), others[chunk])
        )
        ids = torch.arange(chunk.start, chunk.stop)
        scores.append(_scores(simulator, windows, other, mean_image.to(device), ids, config))
    table = heldout.episodes.iloc[episodes]
    episode_id = table["episode_id"].to_numpy(np.int64)
    level = table["level_seed"].to_numpy(np.int64)
    level = np.where(level < 0, episode_id, level)
    return WindowScores(np.concatenate(scores, axis=2), level, episode_id, rows)


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


def summarise(windows: WindowScores, config: FidelityConfig) -> Fidelity:
    """Means and intervals; whole levels are resampled, since windows of one level are alike."""
    valid = np.isfinite(windows.scores[0, 0])
    _, group = np.unique(windows.level, return_inverse=True)
    member = np.eye(group.max() + 1)[group].T
    counts = member @ valid
    sums = member @ np.nan_to_num(windows.scores)
    resamples = resample_weights(len(member), config.num_resamples, config.seed)
    # A horizon that no window, or no window of a resample, reaches has no mean: NaN.
    with np.errstate(invalid="ignore"):
        mean = sums.sum(axis=2) / counts.sum(axis=0)
        resampled = np.einsum("rl,smlh->rsmh", resamples, sums, optimize=True)
        resampled /= (resamples @ counts)[:, None, None]
    base = [_index(METHODS, name) for name in BASELINES]
    return Fidelity(
        windows=windows,
        mean=mean,
        interval=np.nanpercentile(resampled, INTERVAL_PERCENTILES, axis=0),
        difference=mean[:, :, None] - mean[:, None, base],
        difference_interval=np.nanpercentile(
            resampled[:, :, :, None] - resampled[:, :, None, base], INTERVAL_PERCENTILES, axis=0
        ),
    )


def _scores(
    simulator: Simulator,
    windows: WindowTensors,
    other: WindowTensors,
    mean_image: Tensor,
    ids: Tensor,
    config: FidelityConfig,
) -> NDArray[np.float64]:
    """(num_scores, num_methods, B, horizon + 1); `other` are windows of other episodes."""
    targets = to_float_images(windows.frames).to(simulator.dtype)
    latent = simulator.encode(windows.initial_frames)
    actions = simulator.one_hot_actions(windows.action)
    truth = read_reaction(simulator.agent, windows.agent_state)
    recorded_state = windows.initial_agent_state

    def score_of(images: Tensor, agent_state: Tensor = recorded_state) -> Tensor:
        return score(images, react(simulator, images, agent_state), targets, truth)

    mode = predict(simulator, latent, actions)
    mixture, total, single = MeanReaction(), torch.zeros_like(mode), torch.zeros(())
    for sample in range(config.num_samples):
        noise = SimulationNoise(config.seed, ids * config.num_samples + sample)
        images = predict(simulator, latent, actions, "sample", noise)
        reaction = react(simulator, images, recorded_state)
        mixture.add(reaction)
        total += images
        single = single + score(images, reaction, targets, truth)
    by_method = {
        "mode": score_of(mode),
        "mode_decoded_state": score_of(mode, simulator.initial_agent_state(latent)),
        "mean_of_samples": score(total / config.num_samples, mixture.mean(), targets, truth),
        "single_sample": single / config.num_samples,
        "observed": score_of(_follow(simulator, latent, targets, actions)),
        "shuffled_actions": score_of(
            predict(simulator, latent, simulator.one_hot_actions(other.action))
        ),
        "mean_frame": score_of(mean_image.to(targets).expand_as(targets)),
        "last_frame": score_of(targets[:1].expand_as(targets)),
        "other_episode": score_of(to_float_images(_held(other)).to(targets)),
    }
    scores = torch.stack([by_method[name] for name in METHODS], dim=1)
    scores = torch.where(windows.valid, scores, torch.nan)
    return scores.transpose(2, 3).double().cpu().numpy()


def _held(windows: WindowTensors) -> Tensor:
    """(K, B, H, W, C) frames, the last of an episode repeated after its end."""
    last = windows.valid.sum(0) - 1
    steps = torch.arange(len(windows.valid), device=last.device)[:, None].minimum(last)
    return windows.frames[steps, torch.arange(windows.num_windows, device=last.device)]


def _follow(simulator: Simulator, latent: Tensor, targets: Tensor, actions: Tensor) -> Tensor:
    """Images of the most probable posterior states: each has seen the frame that it shows."""
    initial = simulator.decode_initial(latent)
    steps = simulator.observe(initial.environment, initial.action, targets, actions, "mode")
    return _decode(simulator, steps.state)


def _index(names: dict[str, str], name: str) -> int:
    return list(names).index(name)


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


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
