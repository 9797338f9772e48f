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
from generative.objective import watch
from generative.simulator import Simulator

SCORES = {
    "mse": "mean squared error over pixels in [0, 1]",
    "ssim": "structural similarity",
    "policy_kl": "KL(policy on true frames ‖ policy on predicted frames), nats",
    "greedy_agreement": "share of rows where the agent's most probable action is the same",
    "value_error": "absolute error of the agent's value",
    "hidden_cosine": "cosine between the agent's hidden states on true and predicted frames",
}
"""Scores by name, each with what it says."""
RISING_SCORES = ("ssim", "greedy_agreement", "hidden_cosine")
"""Those of which more is better."""
SSIM_WINDOW = 7
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


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


def react(simulator: Simulator, images: Tensor, agent_state: Tensor) -> Reaction:
    """Show frames to the simulator's agent.

    Args:
        simulator: gives the agent.
        images: (K, B, C, H, W)
        agent_state: (B, state_dim) before the first of them.
    """
    return read_reaction(simulator.agent, watch(simulator, images, agent_state))


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


def score(
    images: Tensor, reaction: Reaction, true_images: Tensor, true_reaction: Reaction
) -> Tensor:
    """(len(SCORES), K, B) of predictions against the truth, in the order of `SCORES`.

    Args:
        images: (K, B, C, H, W) in [0, 1].
        reaction: what the agent makes of them.
        true_images: the same shape.
        true_reaction: what the agent made of those.
    """
    return torch.stack(
        [
            squared_error(images, true_images),
            structural_similarity(images, true_images),
            policy_divergence(true_reaction.log_probs, reaction.log_probs),
            (reaction.log_probs.argmax(-1) == true_reaction.log_probs.argmax(-1)).to(images.dtype),
            (reaction.value - true_reaction.value).abs(),
            F.cosine_similarity(reaction.hidden, true_reaction.hidden, dim=-1),
        ]
    )


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """(K, B, C, H, W) twice → (K, B)."""
    return (predicted - target).square().flatten(2).mean(-1)


def policy_divergence(true_log_probs: Tensor, log_probs: Tensor) -> Tensor:
    """KL(true ‖ predicted) over the last dimension, in nats."""
    return (true_log_probs.exp() * (true_log_probs - log_probs)).sum(-1)


def structural_similarity(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity over windows of 7 × 7 pixels and over channels.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004),
    equation 13, with a uniform window, unbiased variances and a dynamic range of 1.

    Args:
        predicted: (K, B, C, H, W) in [0, 1].
        target: the same shape.

    Returns:
        (K, B)
    """

    # As two matrix products, many times faster on a CPU than pooling.
    height, width = predicted.shape[-2:]
    over_rows = _moving_mean(height).to(predicted)
    over_columns = _moving_mean(width).to(predicted).t()

    def local_mean(images: Tensor) -> Tensor:
        return over_rows @ images @ over_columns

    x, y = predicted.flatten(0, 1).contiguous(), target.flatten(0, 1).contiguous()
    mean_x, mean_y = local_mean(x), local_mean(y)
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    variance_x = unbiased * (local_mean(x * x) - mean_x * mean_x)
    variance_y = unbiased * (local_mean(y * y) - mean_y * mean_y)
    covariance = unbiased * (local_mean(x * y) - mean_x * mean_y)
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return (luminance * structure).flatten(1).mean(-1).unflatten(0, predicted.shape[:2])


def _moving_mean(size: int) -> Tensor:
    """(size − 6, size) matrix that averages over runs of 7."""
    starts = torch.arange(size - SSIM_WINDOW + 1)[:, None]
    offsets = torch.arange(size)[None] - starts
    return ((offsets >= 0) & (offsets < SSIM_WINDOW)).double() / SSIM_WINDOW
