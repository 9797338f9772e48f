"""How far saliency can be believed: its gradients, its maps, and the real agent on real frames.

Three questions, all about one target, the agent's value V at one step.

- *Finite changes*: do gradients predict what V changes by when the latent takes a step of finite
  size? In the simulator as it is, which is discrete, and in the one whose straight-through offsets
  are frozen, whose derivatives the gradients are.
- *Stability*: how alike are the maps of a sample and of perturbed copies of it?
- *Reality*: where the map says that V would change most, does changing the *real* frame there
  change the *real* agent's value more than elsewhere? Deletion and insertion, after Petsiuk et al.,
  "RISE: Randomized Input Sampling for Explanation of Black-box Models", 2018.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, sobel
from torch import Tensor

from agents.images import to_float_images
from agents.protocol import Agent
from analysis.saliency import CopySettings, perturbed_copies
from analysis.saliency_integration import BLUR_PIXELS
from analysis.saliency_plan import SaliencyPlan
from analysis.saliency_recording import simulate_batch
from analysis.sample_source import SampleBatch
from experiment.randomness import keyed_normal
from generative.straight_through import StraightThroughOffsets
from projections.intervention import Intervention
from rollouts.types import Rollout

STEP_SIZES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Lengths of steps from a latent; latents on the sphere have length one."""
NOISE_SCALES = (1.25e-4, 1e-3, 1e-2, 3e-2)
"""Standard deviations of the noise on each number of a latent; the first is saliency's own."""
FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Shares of the pixels that are deleted or inserted."""
MAPS = {
    "simulator": "saliency of the simulated frame",
    "real_gradient": "gradient of the value on the real frame itself",
    "edges": "edges of the real frame (Sobel)",
    "random": "blurred noise",
}
"""What can say where a frame matters. The second needs no simulator: what the first lacks to it is
the simulator's doing. The last two are baselines."""
MODES = ("deletion", "insertion")
MAP_BLUR_PIXELS = 1.5
"""Maps are blurred as they are drawn, the noise likewise: so all are equally smooth."""


@dataclass(frozen=True)
class TrustSettings:
    """What is measured."""

    target_step: int = 4
    """Step at which the value is read."""
    num_directions: int = 16
    """Random directions of each step size."""
    num_random_maps: int = 4
    """Maps of noise that are averaged over."""
    seed: int = 0
    """Seed of directions, noise and copies."""


@dataclass(frozen=True, eq=False)
class FiniteChanges:
    """Changes of the value, by S samples, step sizes and D directions."""

    predicted: NDArray[np.float64]
    """(S, num_sizes, D) gradient · step"""
    discrete: NDArray[np.float64]
    """(S, num_sizes, D) in the simulator as it is."""
    frozen: NDArray[np.float64]
    """(S, num_sizes, D) in the simulator with frozen offsets."""


def finite_changes(
    plan: SaliencyPlan, batch: SampleBatch, settings: TrustSettings
) -> FiniteChanges:
    """Let the latents of a batch take steps and compare what happens with what gradients say."""
    bottleneck, t = plan.source.simulator.simulator.bottleneck, settings.target_step
    latent = batch.latent.clone().requires_grad_(True)
    offsets = StraightThroughOffsets()
    with offsets.recorded():
        value = simulate_batch(plan, batch, latent, t + 1).value[t]
    (gradient,) = torch.autograd.grad(value.sum(), latent)
    directions = _directions(batch, settings).to(latent)
    clean, start = value.detach()[:, None], batch.latent[:, None]
    predicted, discrete, frozen = [], [], []
    for size in STEP_SIZES:
        moved = bottleneck.project(start + size * directions)
        predicted.append(((moved - start) * gradient[:, None]).sum(-1))
        with torch.no_grad():
            after = simulate_batch(plan, batch, moved.flatten(0, 1), t + 1).value[t]
            with offsets.frozen():
                relaxed = simulate_batch(plan, batch, moved.flatten(0, 1), t + 1).value[t]
        discrete.append(after.view_as(predicted[-1]) - clean)
        frozen.append(relaxed.view_as(predicted[-1]) - clean)
    return FiniteChanges(
        *(
            torch.stack(found, dim=1).double().cpu().numpy()
            for found in (predicted, discrete, frozen)
        )
    )


def _directions(batch: SampleBatch, settings: TrustSettings) -> Tensor:
    """(S, D, latent_dim) of length one, keyed by sample."""
    numbers = np.arange(settings.num_directions)
    size = batch.latent.shape[-1]
    normal = keyed_normal(settings.seed, "saliency-steps", batch.ids[:, None], numbers, size)
    return torch.nn.functional.normalize(torch.from_numpy(normal), dim=-1)


@dataclass(frozen=True, eq=False)
class StabilityOfMaps:
    """Gradients of the value with respect to all frames up to the target step."""

    clean: NDArray[np.float32]
    """(S, pixels) of the clean samples; all frames in a row."""
    to_clean: NDArray[np.float64]
    """(S, num_scales) cosine of a perturbed copy's gradient to the clean one, mean over copies."""
    halves: NDArray[np.float64]
    """(S, num_scales) cosine between the mean gradients of two halves of the perturbed copies."""
    averaged: NDArray[np.float32]
    """(S, H, W, C) at the target step, averaged over the copies as saliency is."""


def map_stability(
    plan: SaliencyPlan, batch: SampleBatch, copies: CopySettings, settings: TrustSettings
) -> StabilityOfMaps:
    """Compare gradients of perturbed copies, at every noise scale.

    `copies` are those of saliency; its scale is replaced by each of `NOISE_SCALES`.
    """
    usual = _frame_gradients(plan, batch, copies, settings)
    averaged = usual[:, :, -1].mean(dim=1).movedim(1, -1)
    to_clean, halves = [], []
    for scale in NOISE_SCALES:
        scaled = CopySettings(copies.num_copies, scale)
        gradients = _frame_gradients(plan, batch, scaled, settings).flatten(2)
        clean, others = gradients[:, :1], gradients[:, 1:]
        to_clean.append(torch.cosine_similarity(others, clean, dim=-1).mean(dim=1))
        first, second = others.tensor_split(2, dim=1)
        halves.append(torch.cosine_similarity(first.mean(1), second.mean(1), dim=-1))
    return StabilityOfMaps(
        clean=usual[:, 0].flatten(1).cpu().numpy(),
        to_clean=torch.stack(to_clean, dim=1).double().cpu().numpy(),
        halves=torch.stack(halves, dim=1).double().cpu().numpy(),
        averaged=averaged.cpu().numpy(),
    )


def _frame_gradients(
    plan: SaliencyPlan, batch: SampleBatch, copies: CopySettings, settings: TrustSettings
) -> Tensor:
    """(S, num_copies, t + 1, C, H, W) of every copy by itself."""
    bottleneck, t = plan.source.simulator.simulator.bottleneck, settings.target_step
    latent = perturbed_copies(bottleneck, batch.latent, batch.ids, copies, settings.seed)
    steps = simulate_batch(plan, batch, latent.requires_grad_(True), t + 1)
    found = torch.autograd.grad(steps.value[t].sum(), steps.images)
    return torch.stack(found, dim=1).unflatten(0, (-1, copies.num_copies))


@dataclass(frozen=True, eq=False)
class RealRow:
    """One decision of the real agent."""

    frame: Tensor
    """(C, H, W) in [0, 1]"""
    state_before: Tensor
    """(state_dim,)"""
    step: int
    intervention: Intervention | None


def real_row(
    replay: Rollout, step: int, intervention: Intervention | None, device: torch.device
) -> RealRow:
    """Row `step` of a replay; row k of a replay is what row k of its sample imitates."""
    before = replay.agent_hidden[step - 1] if step else replay.info.agent_initial_state
    frame = to_float_images(torch.from_numpy(replay.obs[step : step + 1]))[0]
    return RealRow(frame.to(device), torch.from_numpy(before).to(device), step, intervention)


def perturbation_curves(
    agent: Agent,
    row: RealRow,
    simulator_map: NDArray[np.floating],
    sample_id: int,
    settings: TrustSettings,
) -> NDArray[np.float64]:
    """How much the real agent's value changes as its real frame is perturbed.

    *Deletion* blurs the pixels that a map holds for the strongest, *insertion* blurs all others.

    Args:
        agent: of the replay.
        row: the decision.
        simulator_map: (H, W, C) gradient of the simulated value.
        sample_id: keys the noise.
        settings: number of random maps, seed.

    Returns:
        (num_maps, num_modes, num_fractions) |V(perturbed) − V(real frame)|, in the order of
        `MAPS`, `MODES` and `FRACTIONS`; random maps averaged.
    """
    pixels = row.frame.movedim(0, -1).cpu().numpy()
    strengths = [
        _strength(simulator_map),
        _strength(_real_gradient(agent, row)),
        _edges(pixels),
        *_random_strengths(pixels.shape[:2], sample_id, settings),
    ]
    chosen = np.stack([_strongest(strength) for strength in strengths])
    blurred = gaussian_filter(pixels, (BLUR_PIXELS, BLUR_PIXELS, 0))
    masks = np.stack([chosen, ~chosen], axis=1)[..., None]
    frames = torch.from_numpy(np.where(masks, blurred, pixels)).movedim(-1, -3)
    flat = frames.flatten(0, 2).to(row.frame)
    with torch.no_grad():
        changes = (_values(agent, row, flat) - _values(agent, row, row.frame[None])).abs()
    curves = changes.double().cpu().numpy().reshape(masks.shape[:3])
    fixed = len(MAPS) - 1
    return np.concatenate([curves[:fixed], curves[fixed:].mean(axis=0, keepdims=True)])


def _values(agent: Agent, row: RealRow, frames: Tensor) -> Tensor:
    """(N, C, H, W) versions of a row's frame → (N,) values."""
    before = row.state_before.expand(len(frames), -1)
    state = agent.advance(agent.embed(frames), before)
    if row.intervention is not None:
        state = row.intervention(before, state, row.step)
    return agent.read_out(state).value


def _real_gradient(agent: Agent, row: RealRow) -> NDArray[np.float32]:
    """(H, W, C)"""
    frame = row.frame[None].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(_values(agent, row, frame).sum(), frame)
    return gradient[0].movedim(0, -1).cpu().numpy()


def _strength(gradient: NDArray[np.floating]) -> NDArray[np.floating]:
    """(H, W, C) → (H, W), as saliency is drawn, without its sign."""
    return np.abs(gaussian_filter(gradient.mean(axis=-1), MAP_BLUR_PIXELS))


def _edges(pixels: NDArray[np.floating]) -> NDArray[np.floating]:
    grey = pixels.mean(axis=-1)
    return gaussian_filter(np.hypot(sobel(grey, 0), sobel(grey, 1)), MAP_BLUR_PIXELS)


def _random_strengths(
    shape: tuple[int, ...], sample_id: int, settings: TrustSettings
) -> list[NDArray[np.floating]]:
    numbers = np.arange(settings.num_random_maps)
    size = int(np.prod(shape))
    normal = keyed_normal(settings.seed, "saliency-random-maps", sample_id, numbers, size)
    return [np.abs(gaussian_filter(noise.reshape(shape), MAP_BLUR_PIXELS)) for noise in normal]


def _strongest(strength: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(H, W) → (num_fractions, H, W) which pixels are among the strongest."""
    rank = np.empty(strength.size, np.int64)
    rank[np.argsort(-strength, axis=None, kind="stable")] = np.arange(strength.size)
    counts = np.rint(np.array(FRACTIONS) * strength.size)
    return (rank < counts[:, None]).reshape(-1, *strength.shape)
