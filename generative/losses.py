"""What the simulator is trained on: one pure function per term.

Per-step terms are summed over the valid steps of a window and averaged over windows,

    L = (1/B) Σ_b Σ_k valid[k, b] · l[k, b],

so that padded rows, which follow the end of an episode, count in none of them.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from generative.bottleneck import BottleneckKind, LatentDistribution


def _flag(name: str) -> Any:
    return tyro.conf.arg(name=name)


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term; a term of weight zero is not computed."""

    image: Annotated[float, _flag("loss_scale_obs")] = 1.0
    """Squared error of the images decoded from posterior states."""
    imagined_image: Annotated[float, _flag("loss_scale_imagined_obs")] = 0.0
    """Squared error of the images decoded from prior states, rolled forward without frames: it
    trains the prior on the predictions that are asked of it later. Not in the reference system."""
    reward: Annotated[float, _flag("loss_scale_reward")] = 1.0
    """Squared error of the reward."""
    terminal: Annotated[float, _flag("loss_scale_done")] = 1.0
    """Cross-entropy of the end of the episode."""
    agent_hidden: Annotated[float, _flag("loss_scale_hx")] = 1.0
    """Squared error of the agent's state, driven by decoded images, against the recorded one."""
    action_log_prob: Annotated[float, _flag("loss_scale_act_log_probs")] = 0.0
    """Divergence of the agent's action distribution on decoded images from that on true ones."""
    imagined_agent_hidden: Annotated[float, _flag("loss_scale_imagined_hx")] = 0.0
    """As `agent_hidden`, on the images decoded from prior states. Not in the reference system."""
    imagined_action_log_prob: Annotated[float, _flag("loss_scale_imagined_act_log_probs")] = 0.0
    """As `action_log_prob`, on the images decoded from prior states: it makes predictions right
    where the agent looks. Not in the reference system."""
    kl: Annotated[float, _flag("loss_scale_kl")] = 12.0
    """Balanced divergence between posterior and prior."""
    env_update: Annotated[float, _flag("loss_scale_env_update")] = 1.0
    """Size of the steps of the deterministic state."""
    initial_agent_hidden: Annotated[float, _flag("loss_scale_initial_hx")] = 1.0
    """Squared error of the initial agent state."""
    initial_action: Annotated[float, _flag("loss_scale_initial_action")] = 1.0
    """Cross-entropy of the action before the first simulated step."""
    spread: Annotated[float, _flag("loss_scale_spread")] = 100.0
    """Nearness of the latents of a batch to one another; of the bottleneck `sphere`."""
    latent_kl: Annotated[float, _flag("loss_scale_latent_kl")] = 1.0
    """Divergence of the latent's distribution from the standard normal; of the bottleneck `vae`."""

    def of_bottleneck(self, kind: BottleneckKind) -> "LossWeights":
        """The same weights, zero for the term that this bottleneck has no use for."""
        unused = {"sphere": "latent_kl", "vae": "spread"}[kind]
        return replace(self, **{unused: 0.0})


def over_window(per_step: Tensor, valid: Tensor) -> Tensor:
    """(K, B) values and validity → sum over valid steps, mean over windows."""
    return torch.where(valid, per_step, 0.0).sum(dim=0).mean()


def image_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """½ ‖x̂ − x‖² over all pixels and channels; `predicted` is not clamped.

    Args:
        predicted: (K, B, C, H, W)
        target: the same shape, in [0, 1].
        valid: (K, B)
    """
    return over_window(0.5 * (predicted - target).square().sum(dim=(-3, -2, -1)), valid)


def vector_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """½ ‖x̂ − x‖² of standardised vectors (K, B, D)."""
    return over_window(0.5 * (predicted - target).square().sum(dim=-1), valid)


def reward_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """½ (r̂ − r)²; all (K, B)."""
    return over_window(0.5 * (predicted - target).square(), valid)


def terminal_loss(logit: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of the terminal flag; all (K, B)."""
    per_step = F.binary_cross_entropy_with_logits(logit, target.to(logit.dtype), reduction="none")
    return over_window(per_step, valid)


def agent_hidden_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """½ ‖ĥ − h‖², states (K, B, state_dim)."""
    return over_window(0.5 * (predicted - target).square().sum(-1), valid)


def action_log_prob_loss(predicted_logits: Tensor, target_logits: Tensor, valid: Tensor) -> Tensor:
    """KL(π(· | true frames) ‖ π(· | decoded frames)), logits (K, B, num_actions)."""
    target = F.log_softmax(target_logits, dim=-1)
    predicted = F.log_softmax(predicted_logits, dim=-1)
    return over_window((target.exp() * (target - predicted)).sum(-1), valid)


def categorical_kl(left_logits: Tensor, right_logits: Tensor) -> Tensor:
    """KL(left ‖ right) summed over categoricals: (..., categoricals, classes) → (...)."""
    left = F.log_softmax(left_logits, dim=-1)
    right = F.log_softmax(right_logits, dim=-1)
    return (left.exp() * (left - right)).sum(dim=(-2, -1))


def balanced_kl_loss(
    posterior_logits: Tensor,
    prior_logits: Tensor,
    valid: Tensor,
    balance: float = 0.8,
    free_nats: float = 0.0,
) -> Tensor:
    """β KL(sg(q) ‖ p) + (1 − β) KL(q ‖ sg(p)), each at least `free_nats`.

    KL balancing of DreamerV2 (Hafner et al. 2021, equation 3): the prior is trained towards the
    posterior faster than the posterior is pulled to the prior.

    Args:
        posterior_logits: (K, B, num_categoricals, num_classes) of q.
        prior_logits: the same of p.
        valid: (K, B)
        balance: β.
        free_nats: divergence per step that costs nothing.
    """
    train_prior = categorical_kl(posterior_logits.detach(), prior_logits).clamp(min=free_nats)
    train_posterior = categorical_kl(posterior_logits, prior_logits.detach()).clamp(min=free_nats)
    return over_window(balance * train_prior + (1 - balance) * train_posterior, valid)


def env_update_loss(deter: Tensor, initial_deter: Tensor, valid: Tensor) -> Tensor:
    """½ ‖h_k − h_{k−1}‖ (not squared), with h_{−1} the initial state.

    Args:
        deter: (K, B, deter_dim)
        initial_deter: (B, deter_dim)
        valid: (K, B)
    """
    previous = torch.cat([initial_deter.unsqueeze(0), deter[:-1]])
    return over_window(0.5 * torch.linalg.vector_norm(deter - previous, dim=-1), valid)


def initial_agent_hidden_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """‖ĥ − h‖² of the agent state at row `init − 2`, (B, state_dim), mean over windows."""
    return (predicted - target).square().sum(-1).mean()


def initial_action_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the action at row `init − 2`: logits (B, num_actions), target (B,)."""
    return F.cross_entropy(logits, target)


def spread_loss(latent: Tensor) -> Tensor:
    """log mean_{i≠j} exp(−‖z_i − z_j‖²) over the unit vectors (B, latent_dim) of a batch.

    The uniformity loss of Wang and Isola, "Understanding Contrastive Representation Learning
    through Alignment and Uniformity on the Hypersphere" (2020), equation 5 with t = 1. For unit
    vectors ‖z_i − z_j‖² = 2 − 2 cos. Self-pairs, which no training can part, are left out; a
    single vector has no pair and costs nothing.
    """
    batch_size = len(latent)
    if batch_size < 2:
        return latent.sum() * 0.0
    exponents = 2 * (latent @ latent.T) - 2
    is_self = torch.eye(batch_size, dtype=torch.bool, device=latent.device)
    pairs = exponents.masked_fill(is_self, -math.inf).flatten()
    return torch.logsumexp(pairs, dim=0) - math.log(batch_size * (batch_size - 1))


def latent_kl_loss(latent: LatentDistribution) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ (μ² + σ² − 1) − log σ, mean over windows.

    Kingma and Welling, "Auto-Encoding Variational Bayes" (2014), appendix B.
    """
    assert latent.log_std is not None
    variance = (2 * latent.log_std).exp()
    per_window = (0.5 * (latent.mode.square() + variance - 1) - latent.log_std).sum(-1)
    return per_window.mean()
