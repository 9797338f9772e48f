"""Integrated gradients of simulated samples, over what the agent saw and over their latents.

Over *frames*: what the agent makes of a sequence of frames, from its initial state on. The
environment does not answer, which is the same as cutting the edge from action to environment.
Baselines stand for frames without content.

Over the *latent*: everything, initial states, environment and agent. The simulator's own values are
discrete, so its gradients integrate to nothing in particular. What is integrated is the simulator
whose straight-through offsets are frozen at the sample: it agrees with the simulator there, and its
derivatives are the gradients that saliency is made of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from agents.protocol import Agent
from analysis.integrated_gradients import (
    IntegratedGradients,
    IntegrationSettings,
    integrate,
)
from analysis.saliency_targets import AgentSteps, Target, evaluate_targets
from generative.straight_through import StraightThroughOffsets
from generative.types import SimulatedSteps
from projections.intervention import Intervention

FRAME_BASELINES = ("black", "mean", "blurred")
BLUR_PIXELS = 8.0
"""Standard deviation of the Gaussian that makes the blurred baseline."""


@dataclass(frozen=True)
class AgentRows:
    """What the agent made of a sequence of frames, one tensor per step."""

    agent_state: tuple[Tensor, ...]
    """(B, state_dim) each"""
    action_logits: tuple[Tensor, ...]
    """(B, num_actions) each"""
    value: tuple[Tensor, ...]
    """(B,) each"""


def watch(
    agent: Agent, frames: Tensor, state: Tensor, intervention: Intervention | None = None
) -> AgentRows:
    """Let the agent watch (B, K, C, H, W) frames in [0, 1], from its (B, state_dim) state on."""
    embeddings = agent.embed(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    states: list[Tensor] = []
    for step, embedding in enumerate(embeddings.unbind(1)):
        proposed = agent.advance(embedding, state)
        state = intervention(state, proposed, step) if intervention else proposed
        states.append(state)
    readouts = [agent.read_out(state) for state in states]
    return AgentRows(
        tuple(states),
        tuple(readout.action_logits for readout in readouts),
        tuple(readout.value for readout in readouts),
    )


def frame_baseline(name: str, frames: Tensor, mean_frame: Tensor) -> Tensor:
    """Frames without content, of the shape of `frames`.

    Args:
        name: of `FRAME_BASELINES`.
        frames: (K, C, H, W) in [0, 1].
        mean_frame: (C, H, W) mean of the dataset.
    """
    if name == "black":
        return torch.zeros_like(frames)
    if name == "mean":
        return mean_frame.to(frames).expand_as(frames).clone()
    sigma = (0, 0, BLUR_PIXELS, BLUR_PIXELS)
    return torch.from_numpy(gaussian_filter(frames.cpu().numpy(), sigma)).to(frames)


@dataclass(frozen=True)
class IntegratedTargets:
    """Which targets are integrated, and how exactly."""

    targets: Sequence[Target]
    """Q of them."""
    target_steps: Sequence[int]
    """R of them."""
    settings: IntegrationSettings


@dataclass(frozen=True, eq=False)
class IntegratedSample:
    """Attributions of one sample; NaN where a target is not defined."""

    attribution: NDArray[np.float32]
    """(Q, R, *shape)"""
    difference: NDArray[np.float64]
    """(Q, R) F(input) − F(baseline)"""
    convergence_delta: NDArray[np.float64]
    """(Q, R)"""

    def meets(self, tolerance: float) -> NDArray[np.int8]:
        """(Q, R) whether |delta| ≤ tolerance · |difference|; −1 where the target is not defined."""
        is_met = np.abs(self.convergence_delta) <= tolerance * np.abs(self.difference)
        return np.where(np.isfinite(self.difference), is_met, -1).astype(np.int8)


def integrate_frames(
    agent: Agent,
    frames: Tensor,
    baseline: Tensor,
    state: Tensor,
    wanted: IntegratedTargets,
    intervention: Intervention | None = None,
) -> IntegratedSample:
    """Integrate over the frames up to each target step; later ones have attribution zero.

    Args:
        agent: frozen.
        frames: (K, C, H, W) that the agent saw, in [0, 1].
        baseline: (K, C, H, W)
        state: (state_dim,) of the agent before the first of them.
        wanted: targets.
        intervention: the one that acted on the agent, if any.
    """

    def at_step(targets: Sequence[Target], t: int) -> IntegratedGradients:
        def function(batch: Tensor) -> Tensor:
            steps = watch(agent, batch, state.expand(len(batch), -1), intervention)
            return evaluate_targets(targets, steps, t, len(batch))

        return integrate(function, frames[: t + 1], baseline[: t + 1], wanted.settings)

    return _at_all_steps(at_step, wanted, tuple(frames.shape))


def integrate_latent(
    simulate: Callable[[Tensor, int], SimulatedSteps],
    latent: Tensor,
    baseline: Tensor,
    wanted: IntegratedTargets,
) -> IntegratedSample:
    """Integrate over the latent, offsets frozen at the sample.

    Args:
        simulate: runs (B, latent_dim) latents, all with the draws of this sample, for so many
            steps.
        latent: (latent_dim,)
        baseline: (latent_dim,); it need not be a latent that can occur.
        wanted: targets.
    """

    def at_step(targets: Sequence[Target], t: int) -> IntegratedGradients:
        offsets = StraightThroughOffsets()
        with torch.no_grad(), offsets.recorded():
            simulate(latent[None], t + 1)

        def function(batch: Tensor) -> Tensor:
            with offsets.frozen():
                steps: AgentSteps = simulate(batch, t + 1)
            return evaluate_targets(targets, steps, t, len(batch))

        return integrate(function, latent, baseline, wanted.settings)

    return _at_all_steps(at_step, wanted, tuple(latent.shape))


def _at_all_steps(
    at_step: Callable[[Sequence[Target], int], IntegratedGradients],
    wanted: IntegratedTargets,
    shape: tuple[int, ...],
) -> IntegratedSample:
    table = (len(wanted.targets), len(wanted.target_steps))
    attribution = np.full((*table, *shape), np.nan, np.float32)
    difference, delta = np.full(table, np.nan), np.full(table, np.nan)
    for column, t in enumerate(wanted.target_steps):
        defined = [i for i, target in enumerate(wanted.targets) if t >= target.first_step]
        found = at_step([wanted.targets[i] for i in defined], t)
        rows = found.attribution.cpu().numpy()
        attribution[defined, column] = 0.0
        # Over frames, only those up to the target step were integrated.
        attribution[defined, column, : rows.shape[1]] = rows
        difference[defined, column] = found.difference.cpu().numpy()
        delta[defined, column] = found.convergence_delta.cpu().numpy()
    return IntegratedSample(attribution, difference, delta)
