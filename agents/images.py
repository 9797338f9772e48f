"""From stored observations to what a network eats: the only place that divides by 255."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_float_observations(
    obs: NDArray[np.uint8] | NDArray[np.float32] | Tensor,
    device: torch.device | str | None = None,
) -> Tensor:
    """Frames as `to_float_images` gives them; vectors, whose type is floating, as they are.

    Args:
        obs: (..., H, W, C) uint8, or (..., D) float32.
        device: where they shall be; by default where they are.

    Returns:
        (..., C, H, W) in [0, 1], or (..., D); float32.
    """
    tensor = torch.as_tensor(obs)
    if tensor.dtype == torch.uint8:
        return to_float_images(tensor, device)
    return tensor.to(device, torch.float32, non_blocking=True)


def to_float_images(
    frames: NDArray[np.uint8] | Tensor, device: torch.device | str | None = None
) -> Tensor:
    """Turn frames into images without changing their memory layout.

    The frames travel to `device` as bytes; the axes are permuted as a view, so the result is
    `channels_last` in memory, the fast layout of convolutions.

    Args:
        frames: (..., H, W, C) uint8.
        device: where the images shall be; by default where the frames are.

    Returns:
        (..., C, H, W) float32 in [0, 1].
    """
    tensor = torch.as_tensor(frames)
    if device is not None:
        tensor = tensor.to(device, non_blocking=True)
    return tensor.movedim(-1, -3).to(torch.float32).div_(255.0)
