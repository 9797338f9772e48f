"""What lies between the frames given and the simulation: a latent vector, on a sphere or Gaussian.

The reference system's latent is a point on the unit sphere, kept from collapsing by a spread loss.
The alternative is a variational autoencoder's (Kingma and Welling, "Auto-Encoding Variational
Bayes", 2014): the encoder gives mean and standard deviation of a Gaussian, training decodes a
draw of it, and its divergence from the standard normal keeps the space filled.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BottleneckKind = Literal["sphere", "vae"]

_MIN_NORM = 1e-8
_MAX_LOG_STD = 4.0
"""Bound on |log σ|, far outside of what is learnt, that keeps exp σ finite."""


@dataclass(frozen=True)
class LatentDistribution:
    """What the encoder knows of the latents of B windows."""

    mode: Tensor
    """(B, latent_dim) most probable latent."""
    log_std: Tensor | None = None
    """(B, latent_dim) log σ of a Gaussian around it; None where there is no doubt."""

    def draw(self, normal: Tensor) -> Tensor:
        """(B, latent_dim) standard normal draws → latents, differentiably; the mode of a point."""
        return self.mode if self.log_std is None else self.mode + self.log_std.exp() * normal


class SphereBottleneck:
    """Latents of norm one."""

    def __init__(self, latent_dim: int) -> None:
        self.latent_dim = latent_dim
        self.num_outputs = latent_dim

    def distribution(self, outputs: Tensor) -> LatentDistribution:
        """(B, num_outputs) of the encoder's last layer → what it says."""
        return LatentDistribution(self.project(outputs))

    def project(self, latent: Tensor) -> Tensor:
        """(..., latent_dim) → the nearest latent that can occur."""
        return F.normalize(latent, dim=-1, eps=_MIN_NORM)

    def from_normal(self, normal: Tensor) -> Tensor:
        """(..., latent_dim) standard normal draws → latents drawn from all that can occur."""
        return self.project(normal)

    def interpolate(self, start: Tensor, end: Tensor, share: Tensor) -> Tensor:
        """Point at (B,) shares of the arc from (B, latent_dim) `start` to `end`.

        Shoemake, "Animating rotation with quaternion curves" (1985).
        """
        angle = torch.acos((start * end).sum(-1).clamp(-1, 1))
        # On an arc of no length every point is the start.
        sine = torch.sin(angle).clamp(min=_MIN_NORM)
        weight_start = torch.where(angle > 1e-4, torch.sin((1 - share) * angle) / sine, 1 - share)
        weight_end = torch.where(angle > 1e-4, torch.sin(share * angle) / sine, share)
        return self.project(weight_start[:, None] * start + weight_end[:, None] * end)


class GaussianBottleneck:
    """Latents with a standard normal prior."""

    def __init__(self, latent_dim: int) -> None:
        self.latent_dim = latent_dim
        self.num_outputs = 2 * latent_dim

    def distribution(self, outputs: Tensor) -> LatentDistribution:
        """(B, num_outputs) of the encoder's last layer → what it says."""
        mean, log_std = outputs.chunk(2, dim=-1)
        return LatentDistribution(mean, log_std.clamp(-_MAX_LOG_STD, _MAX_LOG_STD))

    def project(self, latent: Tensor) -> Tensor:
        """(..., latent_dim) as it is: every vector can occur."""
        return latent

    def from_normal(self, normal: Tensor) -> Tensor:
        """(..., latent_dim) standard normal draws are latents."""
        return normal

    def interpolate(self, start: Tensor, end: Tensor, share: Tensor) -> Tensor:
        """Point at (B,) shares of the straight line from (B, latent_dim) `start` to `end`."""
        return torch.lerp(start, end, share[:, None])


Bottleneck = SphereBottleneck | GaussianBottleneck


def make_bottleneck(kind: BottleneckKind, latent_dim: int) -> Bottleneck:
    """The bottleneck of that kind."""
    kinds = {"sphere": SphereBottleneck, "vae": GaussianBottleneck}
    return kinds[kind](latent_dim)
