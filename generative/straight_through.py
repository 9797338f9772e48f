"""Discrete and clipped values that gradients pass through.

Every site computes `value + (carrier − carrier.detach())`. The bracket is exactly zero, so the
forward value is exactly `value`: a one-hot vector holds exact zeros and ones, an image exact
multiples of 1/255. The more usual `carrier + (value − carrier).detach()` is off by a rounding
error, so that what is stored would differ from what the agent saw. The gradient is the
carrier's (Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013);
it is not the derivative of the discrete program.

It is the derivative of another function: the one in which every site adds, to its carrier, the
offset `value − carrier` that it had in one run. `StraightThroughOffsets` computes that function.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.types import LatentChoice

_Site = Callable[[Tensor, Tensor], Tensor]
_SITE: ContextVar[_Site | None] = ContextVar("straight-through site", default=None)
"""What sites do in place of their usual work, in this thread."""


class StraightThroughOffsets:
    """The offsets of one run, in which others can then be frozen.

        offsets = StraightThroughOffsets()
        with offsets.recorded():
            run(point)
        with offsets.frozen():
            run(elsewhere)

    With frozen offsets a run is continuous in its input, equals the recorded one at the recorded
    point up to rounding, and has autograd's gradients as its derivatives.
    """

    def __init__(self) -> None:
        self._offsets: list[Tensor] = []

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep the offsets of the run inside, in place of earlier ones."""
        self._offsets.clear()

        def record(value: Tensor, carrier: Tensor) -> Tensor:
            self._offsets.append((value - carrier).detach())
            return _exact(value, carrier)

        with _sites_do(record):
            yield

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the run inside add these offsets, site by site.

        Its batch may be m times as large as the recorded one, with m adjacent elements per
        recorded one.

        Raises:
            RuntimeError: the run has another number of sites.
        """
        remaining = iter(self._offsets)

        def freeze(value: Tensor, carrier: Tensor) -> Tensor:
            offset = next(remaining, None)
            if offset is None:
                raise RuntimeError("the run has more straight-through sites than the recorded one")
            return carrier + offset.repeat_interleave(len(carrier) // len(offset), dim=0)

        with _sites_do(freeze):
            yield
        if next(remaining, None) is not None:
            raise RuntimeError("the run has fewer straight-through sites than the recorded one")


@contextmanager
def _sites_do(site: _Site) -> Iterator[None]:
    token = _SITE.set(site)
    try:
        yield
    finally:
        _SITE.reset(token)


def straight_through(value: Tensor, carrier: Tensor) -> Tensor:
    """Exactly `value` forward, the gradient of `carrier` backward; same shapes."""
    return (_SITE.get() or _exact)(value, carrier)


def _exact(value: Tensor, carrier: Tensor) -> Tensor:
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
