"""From a batch of windows to the training loss, in the batched formulation.

Nothing that the agent says feeds back while true actions are given. So frames are embedded in one
batch, the environment's recurrence runs alone, all images are decoded in one batch, the agent's
convolutions see all of them in one batch, and only the agent's small recurrence follows.
"""

from dataclasses import dataclass, field, fields
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from numpy.typing import ArrayLike
from torch import Tensor

from agents.images import to_float_observations
from agents.protocol import Agent
from experiment.distributed import ALONE, Ranks
from experiment.randomness import keyed_normal, keyed_uniform
from generative import losses
from generative.bottleneck import BottleneckKind
from generative.losses import LossWeights
from generative.networks import VectorDecoder, in_one_batch
from generative.simulator import EnvironmentSteps, Simulator, SimulatorConfig
from generative.straight_through import straight_through
from generative.types import EnvironmentState, LatentChoice
from projections.intervention import Intervention
from rollouts.types import WindowBatch


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised."""

    weights: Annotated[LossWeights, tyro.conf.arg(name="")] = field(default_factory=LossWeights)
    kl_balance: float = 0.8
    """Share of the divergence that trains the prior; the rest trains the posterior."""
    kl_free_nats: float = 0.0
    """Divergence per step that costs nothing."""
    observed_share: float = 1.0
    """Share of the windows of a batch whose images are decoded from posterior states too. Matters
    where `imagined_image` trains the decoder already; at least `agent_share`."""
    agent_share: float = 1.0
    """Share of the windows of a batch whose decoded images are shown to the agent. Its
    convolutions cost more than the rest of a small simulator."""
    training_latents: LatentChoice = "sample"
    """How the stochastic part is picked along posterior states."""
    imagination_latents: LatentChoice = "mode"
    """How the stochastic part is picked along imagined states."""


@dataclass(frozen=True)
class WindowTensors:
    """A batch of windows on the compute device, split at the first simulated step.

    K = T − init + 1 simulated steps; step k is row `init − 1 + k`.
    """

    initial_frames: Tensor
    """(init, B, H, W, C) uint8, or (init, B, D) float32, as `frames`"""
    frames: Tensor
    """(K, B, H, W, C) uint8; frame 0 is the last initial frame."""
    initial_agent_state: Tensor
    """(B, state_dim) at row `init − 2`."""
    initial_action: Tensor
    """(B,) int64 at row `init − 2`."""
    agent_state: Tensor
    """(K, B, state_dim)"""
    action: Tensor
    """(K, B) int64"""
    reward: Tensor
    """(K, B)"""
    terminal: Tensor
    """(K, B) bool"""
    valid: Tensor
    """(K, B) bool"""

    @property
    def num_windows(self) -> int:
        """B."""
        return self.valid.shape[1]


@dataclass(frozen=True)
class TrainingNoise:
    """Uniform draws for the stochastic parts of one training step."""

    initial: Tensor
    """(B, num_categoricals)"""
    posterior: Tensor
    """(K, B, num_categoricals)"""
    imagined: Tensor
    """(K, B, num_categoricals)"""
    latent: Tensor
    """(B, latent_dim) standard normal draws; read where the bottleneck is a distribution."""

    def to(self, device: torch.device | str) -> "TrainingNoise":
        """The same draws on another device."""
        return TrainingNoise(
            self.initial.to(device),
            self.posterior.to(device),
            self.imagined.to(device),
            self.latent.to(device),
        )


@dataclass(frozen=True)
class Losses:
    """The weighted sum and its terms, unweighted.

    Among several processes each has its contribution: their values, and their gradients, add up
    to those of the whole batch.
    """

    total: Tensor
    terms: dict[str, Tensor]


def to_window_tensors(
    batch: WindowBatch, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> WindowTensors:
    """Move a batch to the device; frames travel as bytes."""
    init = batch.num_init_steps

    def move(values: object, convert: torch.dtype | None = None) -> Tensor:
        return torch.as_tensor(values).to(device, convert, non_blocking=True)

    obs, hidden, action = move(batch.obs), move(batch.agent_hidden, dtype), move(batch.action)
    return WindowTensors(
        initial_frames=obs[:init],
        frames=obs[init - 1 :],
        initial_agent_state=hidden[init - 2],
        initial_action=action[init - 2],
        agent_state=hidden[init - 1 :],
        action=action[init - 1 :],
        reward=move(batch.reward[init - 1 :], dtype),
        terminal=move(batch.terminal[init - 1 :]),
        valid=move(batch.valid[init - 1 :]),
    )


def draw_training_noise(
    num_steps: int, window_numbers: ArrayLike, config: SimulatorConfig, seed: int
) -> TrainingNoise:
    """Draws keyed by (seed, number of the window in the training, step).

    So a resumed training repeats them, and neither the size of a batch nor the number of
    processes that share it changes those of a window.

    Args:
        num_steps: K.
        window_numbers: (B,) as `WindowSampler.window_numbers` counts them.
        config: sizes of the simulator.
        seed: of the training.
    """
    numbers, steps = np.asarray(window_numbers), np.arange(num_steps)[:, None]

    def uniform(stream: str, t: ArrayLike) -> Tensor:
        draws = keyed_uniform(seed, f"training-{stream}", numbers, t, config.num_categoricals)
        return torch.from_numpy(draws)

    return TrainingNoise(
        initial=uniform("initial", 0),
        posterior=uniform("posterior", steps),
        imagined=uniform("imagined", steps),
        latent=torch.from_numpy(
            keyed_normal(seed, "training-latent", numbers, 0, config.latent_dim)
        ),
    )


def compute_losses(
    simulator: Simulator,
    windows: WindowTensors,
    config: ObjectiveConfig,
    noise: TrainingNoise,
    ranks: Ranks = ALONE,
) -> Losses:
    """All terms of non-zero weight, and their weighted sum.

    Args:
        simulator: what is trained.
        windows: B of them; among several processes each has as many, dealt out one by one.
        config: terms and their weights.
        noise: draws for these windows.
        ranks: the processes that share the batch.
    """
    weights = config.weights.of_bottleneck(simulator.config.bottleneck)
    distribution = simulator.encode_distribution(windows.initial_frames)
    latent = distribution.draw(noise.latent.to(simulator.dtype))
    initial = simulator.decode_initial(latent, config.training_latents, noise.initial).environment
    targets = to_float_observations(windows.frames).to(simulator.dtype)
    actions = simulator.one_hot_actions(windows.action)
    initial_action = simulator.one_hot_actions(windows.initial_action)
    steps = simulator.observe(
        initial, initial_action, targets, actions, config.training_latents, noise.posterior
    )
    terms = {
        **_initial_terms(simulator, latent, windows, weights),
        **_environment_terms(simulator, initial, steps, actions, windows, config),
    }
    if weights.latent_kl:
        terms["latent_kl"] = losses.latent_kl_loss(distribution)
    # Means over this process's windows so far.
    terms = {name: term / ranks.size for name, term in terms.items()}
    terms |= _image_terms(simulator, steps, targets, windows, config, ranks)
    if weights.imagined_image or _watches_imagined(weights):
        imagined = simulator.imagine(
            initial, initial_action, actions, config.imagination_latents, noise.imagined
        )
        terms |= _imagined_terms(simulator, imagined, targets, windows, config, ranks)
    if weights.spread:
        terms["spread"] = _spread_term(latent, ranks)
    total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
    return Losses(total, terms)


def term_names(weights: LossWeights, bottleneck: BottleneckKind) -> tuple[str, ...]:
    """Names of the terms that are computed under these weights."""
    weights = weights.of_bottleneck(bottleneck)
    return tuple(f.name for f in fields(weights) if getattr(weights, f.name))


def _initial_terms(
    simulator: Simulator, latent: Tensor, windows: WindowTensors, weights: LossWeights
) -> dict[str, Tensor]:
    # Detached, so that predicting the agent's state and action cannot shape the latent.
    detached = latent.detach()
    terms = {}
    if weights.initial_agent_hidden:
        terms["initial_agent_hidden"] = losses.initial_agent_hidden_loss(
            simulator.initial_agent_state(detached), windows.initial_agent_state
        )
    if weights.initial_action:
        terms["initial_action"] = losses.initial_action_loss(
            simulator.initial_action(detached), windows.initial_action
        )
    return terms


def _spread_term(latent: Tensor, ranks: Ranks) -> Tensor:
    """Over all pairs of the whole batch; the gradient reaches the latents of this process."""
    parts = list(ranks.concatenate(latent.detach()[None]))
    parts[ranks.rank] = latent
    loss = losses.spread_loss(torch.cat(parts))
    return straight_through(loss / ranks.size, loss)


def _environment_terms(
    simulator: Simulator,
    initial: EnvironmentState,
    steps: EnvironmentSteps,
    actions: Tensor,
    windows: WindowTensors,
    config: ObjectiveConfig,
) -> dict[str, Tensor]:
    weights, features, valid = config.weights, steps.state.features, windows.valid
    terms = {}
    if weights.reward:
        predicted = simulator.reward_head(features, actions)
        terms["reward"] = losses.reward_loss(predicted, windows.reward, valid)
    if weights.terminal:
        logit = simulator.terminal_head(features, actions)
        terms["terminal"] = losses.terminal_loss(logit, windows.terminal, valid)
    if weights.kl:
        assert steps.posterior_logits is not None
        terms["kl"] = losses.balanced_kl_loss(
            steps.posterior_logits,
            steps.prior_logits,
            valid,
            config.kl_balance,
            config.kl_free_nats,
        )
    if weights.env_update:
        terms["env_update"] = losses.env_update_loss(steps.state.deter, initial.deter, valid)
    return terms


def _image_terms(
    simulator: Simulator,
    steps: EnvironmentSteps,
    targets: Tensor,
    windows: WindowTensors,
    config: ObjectiveConfig,
    ranks: Ranks,
) -> dict[str, Tensor]:
    weights = config.weights
    needs_agent = weights.agent_hidden or weights.action_log_prob
    if not (weights.image or needs_agent):
        return {}
    shown = _shown(windows, max(config.observed_share, config.agent_share), ranks)
    if shown.num_own == 0:
        names = ("image", "agent_hidden", "action_log_prob")
        return {name: targets.new_zeros(()) for name in names if getattr(weights, name)}
    images = simulator.decode_images(steps.state.features[:, : shown.num_own])
    terms = {}
    if weights.image:
        valid = windows.valid[:, : shown.num_own]
        loss = _observation_loss(simulator, images, targets[:, : shown.num_own], valid)
        terms["image"] = loss * shown.portion
    if needs_agent:
        terms.update(_agent_terms(simulator, images, windows, config, ranks))
    return terms


def _watches_imagined(weights: LossWeights) -> bool:
    return bool(weights.imagined_agent_hidden or weights.imagined_action_log_prob)


def _imagined_terms(
    simulator: Simulator,
    steps: EnvironmentSteps,
    targets: Tensor,
    windows: WindowTensors,
    config: ObjectiveConfig,
    ranks: Ranks,
) -> dict[str, Tensor]:
    num_decoded = windows.num_windows
    if not config.weights.imagined_image:
        num_decoded = _shown(windows, config.agent_share, ranks).num_own
    images = simulator.decode_images(steps.state.features[:, :num_decoded])
    terms = {}
    if config.weights.imagined_image:
        loss = _observation_loss(simulator, images, targets, windows.valid)
        terms["imagined_image"] = loss / ranks.size
    if _watches_imagined(config.weights):
        terms |= _agent_terms(simulator, images, windows, config, ranks, "imagined_")
    return terms


def _agent_terms(
    simulator: Simulator,
    images: Tensor,
    windows: WindowTensors,
    config: ObjectiveConfig,
    ranks: Ranks,
    prefix: Literal["", "imagined_"] = "",
) -> dict[str, Tensor]:
    """What the agent makes of the first decoded images; `prefix` says which states they show."""
    hidden, log_prob = f"{prefix}agent_hidden", f"{prefix}action_log_prob"
    shown = _shown(windows, config.agent_share, ranks)
    own = shown.num_own
    if own == 0:
        names = (hidden, log_prob)
        return {name: images.new_zeros(()) for name in names if getattr(config.weights, name)}
    states = watch(simulator, images[:, :own], windows.initial_agent_state[:own])
    valid, targets = windows.valid[:, :own], windows.agent_state[:, :own]
    terms = {}
    if getattr(config.weights, hidden):
        terms[hidden] = losses.agent_hidden_loss(states, targets, valid)
    if getattr(config.weights, log_prob):
        read_out = simulator.agent.read_out
        terms[log_prob] = losses.action_log_prob_loss(
            read_out(states).action_logits, read_out(targets).action_logits, valid
        )
    return {name: term * shown.portion for name, term in terms.items()}


def _observation_loss(
    simulator: Simulator, predicted: Tensor, target: Tensor, valid: Tensor
) -> Tensor:
    """Of images over their pixels, of vectors on the scale where each number varies by one."""
    decoder = simulator.image_decoder
    if isinstance(decoder, VectorDecoder):
        return losses.vector_loss(
            decoder.standardise(predicted), decoder.standardise(target), valid
        )
    return losses.image_loss(predicted, target, valid)


@dataclass(frozen=True)
class _Shown:
    """The first windows of the whole batch, as far as they are this process's."""

    num_own: int
    """The process's windows among them; they are its first ones."""
    portion: float
    """What share of them those are."""


def _shown(windows: WindowTensors, share: float, ranks: Ranks) -> _Shown:
    num_shown = max(1, round(share * windows.num_windows * ranks.size))
    num_own = len(range(ranks.rank, num_shown, ranks.size))
    return _Shown(num_own, num_own / num_shown)


def watch(simulator: Simulator, images: Tensor, agent_state: Tensor) -> Tensor:
    """States of the agent while it sees decoded images.

    Args:
        simulator: gives the agent.
        images: (K, B, C, H, W) decoded, not clamped.
        agent_state: (B, state_dim) before the first image.

    Returns:
        (K, B, state_dim)
    """
    embed = partial(in_one_batch, simulator.agent.embed)
    embeddings = simulator.convolve(embed, simulator.as_seen(images))
    return advance_over(simulator.agent, embeddings, agent_state)


def advance_over(
    agent: Agent,
    embeddings: Tensor,
    agent_state: Tensor,
    intervention: Intervention | None = None,
) -> Tensor:
    """States of the agent while it sees embedded images, (K, B, state_dim).

    Args:
        agent: whose recurrence it is.
        embeddings: (K, B, embedding_dim)
        agent_state: (B, state_dim) before the first of them.
        intervention: changes each new state before it is carried on.
    """
    states = []
    for step, embedding in enumerate(embeddings):
        proposed = agent.advance(embedding, agent_state)
        agent_state = intervention(agent_state, proposed, step) if intervention else proposed
        states.append(agent_state)
    return torch.stack(states)
