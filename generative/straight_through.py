"""Discrete and clipped values that gradients pass through.

Every site computes `value + (carrier − carrier.detach())`. The bracket is exactly zero, so the
forward value is exactly `value`: a one-hot vector holds exact zeros and ones, an image exact
multiples of 1/255. The more usual `carrier + (value − carrier).detach()` is off by a rounding
error, so that what is stored would differ from what the agent saw. The gradient is the
carrier's (Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013);
it is not the derivative of the discrete program.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.types import LatentChoice


def straight_through(value: Tensor, carrier: Tensor) -> Tensor:
    """Exactly `value` forward, the gradient of `carrier` backward; same shapes."""
    return value.detach() + (carrier - carrier.detach())


def onehot_from_logits(
    logits: Tensor, choice: LatentChoice, uniform: Tensor | None = None
) -> Tensor:
    """One-hot pick from a categorical distribution, straight through its probabilities.

    Args:
        logits: (..., num_classes)
        choice: the most probable class, or a draw.
        uniform: (...) draws in [0, 1); needed for `sample`.

    Returns:
        (..., num_classes)
    """
    probabilities = torch.softmax(logits, dim=-1)
    if choice == "mode":
        index = logits.argmax(dim=-1)
    elif uniform is None:
        raise ValueError("choice 'sample' needs uniform draws")
    else:
        index = _invert_cumulative(probabilities.detach(), uniform)
    onehot = F.one_hot(index, logits.shape[-1]).to(logits.dtype)
    return straight_through(onehot, probabilities)


def clamp_to_image(pixels: Tensor) -> Tensor:
    """Clamp to [0, 1] with identity backward, so that clipped pixels still learn."""
    return straight_through(pixels.clamp(0.0, 1.0), pixels)


def round_to_8_bits(image: Tensor) -> Tensor:
    """Round an image in [0, 1] to multiples of 1/255, with identity backward."""
    return straight_through((image * 255.0).round() / 255.0, image)


def _invert_cumulative(probabilities: Tensor, uniform: Tensor) -> Tensor:
    cumulative = probabilities.double().cumsum(dim=-1)
    # Scaling by the last entry keeps the draw in range when rounding leaves the sum below one.
    threshold = uniform.double().unsqueeze(-1) * cumulative[..., -1:]
    return (cumulative <= threshold).sum(dim=-1)
