"""Building blocks of the simulator: encoders, decoders, the recurrent cell.

Images are channels-first tensors in channels-last memory, 64 × 64 × 3, floats in [0, 1].
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_SIZE = 64
IMAGE_CHANNELS = 3
LAYER_NORM_EPS = 1e-3


def make_mlp(sizes: Sequence[int], normalise: bool = False) -> nn.Sequential:
    """Linear layers `sizes[0] → ... → sizes[-1]` with ELU between them, linear at the end.

    With `normalise`, layer normalisation stands between each hidden layer and its ELU.
    """
    layers: list[nn.Module] = []
    for position, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(inputs, outputs))
        if position < len(sizes) - 2:
            if normalise:
                layers.append(nn.LayerNorm(outputs, eps=LAYER_NORM_EPS))
            layers.append(nn.ELU())
    return nn.Sequential(*layers)


class ImageNorm(nn.Module):
    """Layer normalisation over (C, H, W) with a scale and shift per element.

    Computed as group normalisation with one group, which keeps channels-last memory as it is.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, size, size))
        self.bias = nn.Parameter(torch.zeros(channels, size, size))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return F.group_norm(images, 1) * self.weight + self.bias


class ResidualDownBlock(nn.Module):
    """Two normalised 3 × 3 convolutions beside a 1 × 1 shortcut, then halving by max-pooling."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.norm1 = ImageNorm(inputs, size)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = ImageNorm(outputs, size)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, S, S) → (B, outputs, S/2, S/2)."""
        hidden = self.conv1(self.norm1(images))
        hidden = self.conv2(F.leaky_relu(self.norm2(hidden)))
        return F.max_pool2d(hidden + self.shortcut(images), 2)


class InitialFramesEncoder(nn.Module):
    """The given frames → what the bottleneck makes a latent of.

    With `downsampling` above one, frames are first averaged over squares of that many pixels.
    """

    def __init__(
        self,
        channels: Sequence[int],
        rnn_dim: int,
        mlp_dims: Sequence[int],
        num_outputs: int,
        downsampling: int = 1,
    ) -> None:
        super().__init__()
        self.downsampling = downsampling
        image_size = IMAGE_SIZE // downsampling
        sizes = [IMAGE_CHANNELS, *channels]
        self.blocks = nn.Sequential(
            *(
                ResidualDownBlock(inputs, outputs, image_size >> position)
                for position, (inputs, outputs) in enumerate(pairwise(sizes))
            )
        )
        final_size = image_size >> len(channels)
        self.rnn = nn.GRUCell(channels[-1] * final_size**2, rnn_dim)
        self.head = make_mlp([rnn_dim, *mlp_dims, num_outputs])

    def forward(self, frames: Tensor) -> Tensor:
        """(num_init, B, C, H, W) → (B, num_outputs)."""
        num_init, batch_size = frames.shape[:2]
        images = frames.flatten(0, 1)
        if self.downsampling > 1:
            images = F.avg_pool2d(images, self.downsampling)
        embedded = self.blocks(images).flatten(1).unflatten(0, (num_init, batch_size))
        state = embedded.new_zeros(batch_size, self.rnn.hidden_size)
        for step in embedded:
            state = self.rnn(step, state)
        return self.head(state)


class FrameEncoder(nn.Module):
    """A frame → the embedding that the posterior reads: 64-31-14-6-2 pixels."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        sizes = [IMAGE_CHANNELS, depth, 2 * depth, 4 * depth, 8 * depth]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2), nn.ELU()]
        self.layers = nn.Sequential(*layers)
        self.embedding_dim = 8 * depth * 2 * 2

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, embedding_dim)."""
        return self.layers(images).flatten(1)


class ImageDecoder(nn.Module):
    """Features → image by transposed convolutions: 1-5-13-30-64 pixels.

    The first of them acts on a single pixel, where it is a matrix product; written as one it is
    several times faster. The output is centred on 0.5 and not clamped.
    """

    def __init__(self, features_dim: int, depth: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features_dim, 32 * depth)
        self.first = nn.Linear(32 * depth, 4 * depth * 5 * 5)
        sizes = [4 * depth, 2 * depth, depth, IMAGE_CHANNELS]
        self.transposed = nn.ModuleList(
            nn.ConvTranspose2d(inputs, outputs, kernel, stride=2)
            for (inputs, outputs), kernel in zip(pairwise(sizes), (5, 6, 6), strict=True)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, features_dim) → (B, C, H, W)."""
        hidden = self.first(self.linear(features)).unflatten(1, (-1, 5, 5))
        for layer in self.transposed:
            hidden = layer(F.elu(hidden))
        return hidden + 0.5


class ScalarHead(nn.Module):
    """(State features, action taken) → one number, by a normalised MLP.

    The action is an input because row t's reward and end answer action t, and no frame follows
    the last action of an episode.
    """

    def __init__(self, features_dim: int, num_actions: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.mlp = make_mlp([features_dim + num_actions, *hidden, 1], normalise=True)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """(..., features_dim), (..., num_actions) → (...)."""
        return self.mlp(torch.cat([features, action], dim=-1)).squeeze(-1)


class NormGRUCell(nn.Module):
    """GRU cell with layer normalisation of each gate.

    The update gate weighs the *new* value: h' = u · n + (1 − u) · h.
    """

    def __init__(self, input_dim: int, state_dim: int) -> None:
        super().__init__()
        self.input_weights = nn.Linear(input_dim, 3 * state_dim, bias=False)
        self.state_weights = nn.Linear(state_dim, 3 * state_dim, bias=False)
        self.reset_norm = nn.LayerNorm(state_dim, eps=LAYER_NORM_EPS)
        self.update_norm = nn.LayerNorm(state_dim, eps=LAYER_NORM_EPS)
        self.new_norm = nn.LayerNorm(state_dim, eps=LAYER_NORM_EPS)

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        """(B, input_dim), (B, state_dim) → (B, state_dim)."""
        input_reset, input_update, input_new = self.input_weights(inputs).chunk(3, dim=-1)
        state_reset, state_update, state_new = self.state_weights(state).chunk(3, dim=-1)
        reset = torch.sigmoid(self.reset_norm(input_reset + state_reset))
        update = torch.sigmoid(self.update_norm(input_update + state_update))
        new = torch.tanh(self.new_norm(input_new + reset * state_new))
        return update * new + (1 - update) * state


def in_one_batch(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Apply a function of (B, ...) to (T, B, ...) by folding time into the batch."""
    return function(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
