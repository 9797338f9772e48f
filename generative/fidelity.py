"""How well the simulator predicts levels it has not seen, beside baselines and an upper bound.

The simulator is given the initial frames of a window and the actions recorded after them, and
predicts on from its own states: the frames after the initial ones are shown to it never, except in
the upper bound. Horizon k is simulated step k; horizon 0, the last frame given, is a
reconstruction. Scores are those of `generative.scores`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.images import to_float_images
from generative.calibration import Calibration, calibrate
from generative.component_fit import ComponentErrors, ComponentFit, fit_components
from generative.event_forecasts import event_rates, measure_forecasts
from generative.fidelity_windows import (
    ChosenWindows,
    FidelityConfig,
    WindowPairs,
    choose_windows,
    frame_statistics,
    window_pairs,
)
from generative.level_bootstrap import LevelBootstrap, average_windows
from generative.objective import WindowTensors
from generative.predictions import decode, imagined_states, observed_states
from generative.scores import (
    SCORES,
    MeanReaction,
    Reaction,
    TrueImages,
    describe_true_images,
    embed,
    react,
    read_reaction,
    score_images,
    score_reaction,
)
from generative.simulator import SimulationNoise, Simulator
from projections.hidden import HiddenProjection, TorchProjection
from rollouts.store import RolloutDataset

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
REFERENCES = (*BASELINES, "shuffled_actions")
"""What differences are taken from: the baselines, and the control that shows whether the simulator
heeds its actions."""


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
    components: ComponentErrors | None = None
    """In component coordinates; None without a projection."""


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Mean scores over valid rows with 95% intervals from resampling levels."""

    windows: WindowScores
    mean: NDArray[np.float64]
    """(num_scores, num_methods, horizon + 1)"""
    interval: NDArray[np.float64]
    """(2, num_scores, num_methods, horizon + 1) lower and upper bound."""
    difference: NDArray[np.float64]
    """(num_scores, num_methods, num_references, horizon + 1) score minus the reference's, on the
    same rows."""
    difference_interval: NDArray[np.float64]
    """(2, num_scores, num_methods, num_references, horizon + 1)"""
    components: ComponentFit | None = None
    """How well the agent's hidden state is predicted in component coordinates."""
    calibration: Calibration | None = None
    """Whether rewards and ends are predicted as often as they happen."""

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
                for name in ("mse", "psnr", "policy_kl", "greedy_agreement")
            },
            "beats_mean_frame_at_each_horizon": all(
                self.beats("mean_frame", horizon) for horizon in range(1, last + 1)
            ),
            f"beats_last_frame_at_horizon_{last}": self.beats("last_frame", last),
            "num_windows": len(self.windows.level),
            "num_levels": len(np.unique(self.windows.level)),
            **({} if self.components is None else self.components.summary(list(METHODS))),
            **({} if self.calibration is None else self.calibration.summary()),
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
        if self.components is not None:
            lines += ["", *self.components.table(list(METHODS))]
        if self.calibration is not None:
            lines += ["", *self.calibration.table()]
        return "\n".join(lines[1:])


def measure_fidelity(
    simulator: Simulator,
    heldout: RolloutDataset,
    train: RolloutDataset,
    config: FidelityConfig,
    device: torch.device | str = "cpu",
    projection: HiddenProjection | None = None,
) -> Fidelity:
    """Predict windows of `heldout`.

    Args:
        simulator: in evaluation mode, on the device.
        heldout: rollouts on levels that it was not trained on.
        train: those it was trained on; they give the mean frame and the rates of events.
        config: how much is measured.
        device: where it is computed.
        projection: gives the component coordinates of hidden states; None leaves them out.

    Raises:
        UserError: no window fits into an episode of `heldout`.
    """
    heldout.metadata.environment.require_images("the fidelity of a simulator")
    num_init = simulator.config.num_init_steps
    chosen = choose_windows(heldout, num_init, config.num_windows, config.seed)
    more = choose_windows(heldout, num_init, config.num_calibration_windows, config.seed)
    mean_image = frame_statistics(train).mean
    windows = measure_windows(simulator, chosen, mean_image, config, device, projection)
    forecasts = measure_forecasts(simulator, more, event_rates(train), config, device)
    return summarise(windows, config, calibrate(forecasts, config))


@torch.no_grad()
def measure_windows(
    simulator: Simulator,
    windows: ChosenWindows,
    mean_image: Tensor,
    config: FidelityConfig,
    device: torch.device | str,
    projection: HiddenProjection | None = None,
) -> WindowScores:
    """Scores of all predictions on chosen windows; `mean_image` is (C, H, W)."""
    coordinates = None
    if projection is not None:
        coordinates = TorchProjection(projection, simulator.dtype).to(device).transform
    batches = []
    for pairs in window_pairs(
        windows, simulator, config.horizon, config.fidelity_batch_size, device
    ):
        comparison = _Comparison(simulator, pairs.own, coordinates)
        batches.append(_compare(comparison, pairs, mean_image.to(device), config))
    return WindowScores(
        np.concatenate([batch.scores for batch in batches], axis=2),
        windows.level,
        windows.episode_id,
        windows.start_row,
        None if coordinates is None else ComponentErrors.join([b.components for b in batches]),
    )


def summarise(
    windows: WindowScores, config: FidelityConfig, calibration: Calibration | None = None
) -> Fidelity:
    """Means and intervals; whole levels are resampled, since windows of one level are alike."""
    bootstrap = LevelBootstrap(windows.level, config.num_resamples, config.seed)
    means = average_windows(windows.scores, bootstrap)
    differences = means.differences([_index(METHODS, name) for name in REFERENCES])
    components = windows.components
    return Fidelity(
        windows=windows,
        mean=means.mean,
        interval=means.interval,
        difference=differences.mean,
        difference_interval=differences.interval,
        components=None if components is None else fit_components(components, bootstrap),
        calibration=calibration,
    )


@dataclass(frozen=True)
class _Assessment:
    """One prediction of B windows beside the truth."""

    scores: Tensor
    """(num_scores, K, B)"""
    component_error: Tensor
    """(K, B, num_components) squared."""

    def __add__(self, other: "_Assessment") -> "_Assessment":
        return _Assessment(self.scores + other.scores, self.component_error + other.component_error)

    def __truediv__(self, count: int) -> "_Assessment":
        return _Assessment(self.scores / count, self.component_error / count)


class _Comparison:
    """The truth about B windows, and what sets predictions beside it.

    Args:
        simulator: gives the agent.
        windows: the truth.
        coordinates: (..., hidden_dim) → (..., num_components); None without a projection.
    """

    def __init__(
        self,
        simulator: Simulator,
        windows: WindowTensors,
        coordinates: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.simulator = simulator
        self.windows = windows
        images = to_float_images(windows.frames).to(simulator.dtype)
        self.truth: TrueImages = describe_true_images(images)
        self._reaction = read_reaction(simulator.agent, windows.agent_state)
        # Without a projection there are no components.
        self._coordinates = coordinates or (lambda hidden: hidden[..., :0])
        self.components = self._coordinates(self._reaction.hidden)

    def of_images(self, images: Tensor, agent_state: Tensor | None = None) -> _Assessment:
        """Of predicted images, (K, B, C, H, W), shown to the agent in its recorded state, or in
        that of (B, state_dim) `agent_state`."""
        return self.assess(score_images(images, self.truth), self.react(images, agent_state))

    def of_still(self, image: Tensor) -> _Assessment:
        """Of one image, (B, C, H, W), shown at every step."""
        num_steps = len(self.truth.images)
        embeddings = self.simulator.agent.embed(image)
        reaction = self._react(embeddings.expand(num_steps, *embeddings.shape))
        shown = image.expand(num_steps, *image.shape)
        return self.assess(score_images(shown, self.truth), reaction)

    def of_mode(self, images: Tensor, decoded_state: Tensor) -> dict[str, _Assessment]:
        """The same images shown to the agent in its recorded and in its decoded state."""
        embeddings = embed(self.simulator.agent, images)
        image_scores = score_images(images, self.truth)
        return {
            "mode": self.assess(image_scores, self._react(embeddings)),
            "mode_decoded_state": self.assess(image_scores, self._react(embeddings, decoded_state)),
        }

    def react(self, images: Tensor, agent_state: Tensor | None = None) -> Reaction:
        """What the agent makes of (K, B, C, H, W) images."""
        return self._react(embed(self.simulator.agent, images), agent_state)

    def _react(self, embeddings: Tensor, agent_state: Tensor | None = None) -> Reaction:
        state = self.windows.initial_agent_state if agent_state is None else agent_state
        return react(self.simulator.agent, embeddings, state)

    def assess(self, image_scores: Tensor, reaction: Reaction) -> _Assessment:
        """Join the halves of the scores."""
        scores = torch.cat([image_scores, score_reaction(reaction, self._reaction)])
        error = self._coordinates(reaction.hidden) - self.components
        return _Assessment(scores, error.square())


@dataclass(frozen=True, eq=False)
class _BatchScores:
    scores: NDArray[np.float64]
    """(num_scores, num_methods, B, K)"""
    components: ComponentErrors


def _compare(
    comparison: _Comparison, pairs: WindowPairs, mean_image: Tensor, config: FidelityConfig
) -> _BatchScores:
    """All predictions of a batch of windows."""
    simulator, windows, truth = comparison.simulator, pairs.own, comparison.truth.images
    latent = simulator.encode(windows.initial_frames)
    actions = simulator.one_hot_actions(windows.action)
    other_actions = simulator.one_hot_actions(pairs.other.action)

    def imagine(actions: Tensor) -> Tensor:
        return decode(simulator, imagined_states(simulator, latent, actions))

    by_method = {
        **comparison.of_mode(imagine(actions), simulator.initial_agent_state(latent)),
        **_assess_samples(comparison, latent, actions, pairs.ids, config),
        "observed": comparison.of_images(
            decode(simulator, observed_states(simulator, latent, truth, actions))
        ),
        "shuffled_actions": comparison.of_images(imagine(other_actions)),
        "mean_frame": comparison.of_still(mean_image.to(truth).expand_as(truth[0])),
        "last_frame": comparison.of_still(truth[0]),
        "other_episode": comparison.of_images(to_float_images(_held(pairs.other)).to(truth)),
    }
    assessments = [by_method[name] for name in METHODS]
    valid = windows.valid
    scores = torch.stack([assessment.scores for assessment in assessments], dim=1)
    scores = torch.where(valid, scores, torch.nan).transpose(2, 3)
    errors = torch.stack([assessment.component_error for assessment in assessments])
    return _BatchScores(
        scores.double().cpu().numpy(),
        ComponentErrors(
            squared_error=_window_major(torch.where(valid[..., None], errors, torch.nan)),
            truth=_window_major(torch.where(valid[..., None], comparison.components, torch.nan)),
        ),
    )


def _assess_samples(
    comparison: _Comparison, latent: Tensor, actions: Tensor, ids: Tensor, config: FidelityConfig
) -> dict[str, _Assessment]:
    """Sampled futures: the expected assessment of one, and that of their mean."""
    simulator, mixture = comparison.simulator, MeanReaction()
    total, assessments = torch.zeros_like(comparison.truth.images), []
    for sample in range(config.num_samples):
        noise = SimulationNoise(config.seed, ids * config.num_samples + sample)
        states = imagined_states(simulator, latent, actions, "sample", noise)
        images = decode(simulator, states)
        reaction = comparison.react(images)
        mixture.add(reaction)
        total += images
        assessments.append(comparison.assess(score_images(images, comparison.truth), reaction))
    mean_scores = score_images(total / config.num_samples, comparison.truth)
    first, *others = assessments
    return {
        "mean_of_samples": comparison.assess(mean_scores, mixture.mean()),
        "single_sample": sum(others, first) / config.num_samples,
    }


def _window_major(values: Tensor) -> NDArray[np.float64]:
    """(..., K, B, C) → (..., B, K, C)."""
    return values.transpose(-3, -2).double().cpu().numpy()


def _held(windows: WindowTensors) -> Tensor:
    """(K, B, H, W, C) frames, the last of an episode repeated after its end."""
    last = windows.valid.sum(0) - 1
    steps = torch.arange(len(windows.valid), device=last.device)[:, None].minimum(last)
    return windows.frames[steps, torch.arange(windows.num_windows, device=last.device)]


def _index(names: dict[str, str], name: str) -> int:
    return list(names).index(name)
