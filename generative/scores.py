"""How near predicted frames come to true ones: in pixels, and in the eyes of the agent.

The agent's half is what a simulator of agent and environment is for: a prediction may be blurred
where the agent does not look, and sharp where it should not be. So the agent is run over predicted
frames, and what it would do is set beside what it did on the true ones.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.protocol import Agent
from generative.networks import in_one_batch
from generative.objective import advance_over
from projections.intervention import Intervention

IMAGE_SCORES = {
    "mse": "mean squared error over pixels in [0, 1]",
    "psnr": "peak signal-to-noise ratio, dB",
    "ssim": "structural similarity",
}
REACTION_SCORES = {
    "policy_kl": "KL(policy on true frames ‖ policy on predicted frames), nats",
    "greedy_agreement": "share of rows where the agent's most probable action is the same",
    "value_error": "absolute error of the agent's value",
    "hidden_cosine": "cosine between the agent's hidden states on true and predicted frames",
}
SCORES = {**IMAGE_SCORES, **REACTION_SCORES}
"""Scores by name, each with what it says."""
RISING_SCORES = ("psnr", "ssim", "greedy_agreement", "hidden_cosine")
"""Those of which more is better."""
SMALLEST_SQUARED_ERROR = 1 / (12 * 255**2)
"""Mean squared error of rounding to 8 bits: what an identical frame counts as in `psnr`, which
would be infinite otherwise. So it ends at 58.9 dB."""
SSIM_WINDOW = 7
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class TrueImages:
    """Frames that predictions are compared with, and what every comparison needs of them."""

    images: Tensor
    """(K, B, C, H, W) in [0, 1]."""
    local_mean: Tensor
    """(K · B, C, H − 6, W − 6) over windows of 7 × 7 pixels."""
    local_variance: Tensor
    """The same shape; unbiased."""


def describe_true_images(images: Tensor) -> TrueImages:
    """(K, B, C, H, W) in [0, 1] → the same with their local moments."""
    flat = images.flatten(0, 1).contiguous()
    mean = _local_mean(flat)
    return TrueImages(images, mean, _UNBIASED * (_local_mean(flat * flat) - mean * mean))


@dataclass(frozen=True)
class Reaction:
    """What the agent makes of K frames of B windows."""

    log_probs: Tensor
    """(K, B, num_actions)"""
    value: Tensor
    """(K, B)"""
    hidden: Tensor
    """(K, B, hidden_dim)"""


def read_reaction(agent: Agent, states: Tensor) -> Reaction:
    """From the agent's states, (K, B, state_dim), after the frames."""
    readout = agent.read_out(states)
    return Reaction(
        readout.action_logits.log_softmax(-1), readout.value, states[..., agent.hidden_slice]
    )


def embed(agent: Agent, images: Tensor) -> Tensor:
    """(K, B, C, H, W) in [0, 1] → (K, B, embedding_dim)."""
    return in_one_batch(agent.embed, images)


def react(
    agent: Agent,
    embeddings: Tensor,
    agent_state: Tensor,
    intervention: Intervention | None = None,
) -> Reaction:
    """Show embedded frames to the agent.

    Args:
        agent: who sees them.
        embeddings: (K, B, embedding_dim), as `embed` gives them.
        agent_state: (B, state_dim) before the first of them.
        intervention: changes each new state before the heads read it.
    """
    return read_reaction(agent, advance_over(agent, embeddings, agent_state, intervention))


class MeanReaction:
    """The mixture of what the agent makes of several predictions: mean probabilities, mean value,
    mean hidden state."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: tuple[Tensor, ...] = ()

    def add(self, reaction: Reaction) -> None:
        """Take in another prediction's."""
        parts = (reaction.log_probs.exp(), reaction.value, reaction.hidden)
        before = self._sums or (torch.zeros(()),) * len(parts)
        self._sums = tuple(a.to(b.device) + b for a, b in zip(before, parts, strict=True))
        self._count += 1

    def mean(self) -> Reaction:
        """Of those taken in, at least one."""
        probs, value, hidden = (total / self._count for total in self._sums)
        return Reaction(probs.clamp_min(torch.finfo(probs.dtype).tiny).log(), value, hidden)


def score_images(images: Tensor, truth: TrueImages) -> Tensor:
    """(len(IMAGE_SCORES), K, B) of predicted images, (K, B, C, H, W) in [0, 1]."""
    mse = squared_error(images, truth.images)
    return torch.stack([mse, peak_signal_to_noise(mse), structural_similarity(images, truth)])


def score_reaction(reaction: Reaction, truth: Reaction) -> Tensor:
    """(len(REACTION_SCORES), K, B) of what the agent makes of predictions, beside the truth."""
    return torch.stack(
        [
            policy_divergence(truth.log_probs, reaction.log_probs),
            (reaction.log_probs.argmax(-1) == truth.log_probs.argmax(-1)).to(reaction.value.dtype),
            (reaction.value - truth.value).abs(),
            F.cosine_similarity(reaction.hidden, truth.hidden, dim=-1),
        ]
    )


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """(K, B, C, H, W) twice → (K, B)."""
    return (predicted - target).square().flatten(2).mean(-1)


def peak_signal_to_noise(mse: Tensor) -> Tensor:
    """Mean squared errors of images in [0, 1] → decibels, −10 log10(mse)."""
    return -10 * mse.clamp_min(SMALLEST_SQUARED_ERROR).log10()


def policy_divergence(true_log_probs: Tensor, log_probs: Tensor) -> Tensor:
    """KL(true ‖ predicted) over the last dimension, in nats."""
    return (true_log_probs.exp() * (true_log_probs - log_probs)).sum(-1)


def structural_similarity(predicted: Tensor, truth: TrueImages) -> Tensor:
    """Mean structural similarity over windows of 7 × 7 pixels and over channels.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004),
    equation 13, with a uniform window, unbiased variances and a dynamic range of 1.

    Args:
        predicted: (K, B, C, H, W) in [0, 1].
        truth: frames of the same shape.

    Returns:
        (K, B)
    """
    x, y = (images.flatten(0, 1).contiguous() for images in (predicted, truth.images))
    mean_x, mean_y = _local_mean(x), truth.local_mean
    variance_x = _UNBIASED * (_local_mean(x * x) - mean_x * mean_x)
    covariance = _UNBIASED * (_local_mean(x * y) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + truth.local_variance + SSIM_C2)
    return (luminance * structure).flatten(1).mean(-1).unflatten(0, predicted.shape[:2])


_UNBIASED = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)


def _local_mean(images: Tensor) -> Tensor:
    """(N, C, H, W) → (N, C, H − 6, W − 6)."""
    # Two matrix products are many times faster on a CPU than pooling.
    height, width = images.shape[-2:]
    return _moving_mean(height).to(images) @ images @ _moving_mean(width).to(images).t()


def _moving_mean(size: int) -> Tensor:
    """(size − 6, size) matrix that averages over runs of 7."""
    starts = torch.arange(size - SSIM_WINDOW + 1)[:, None]
    offsets = torch.arange(size)[None] - starts
    return ((offsets >= 0) & (offsets < SSIM_WINDOW)).double() / SSIM_WINDOW
