"""Building blocks of the simulator: encoders, decoders, the recurrent cell.

Images are channels-first tensors in channels-last memory, floats in [0, 1]. Their size decides how
many convolutions read and make them; sizes named in comments are those of Procgen's 64 × 64 × 3.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-3
CONSTANT_STD = 1e-6
"""Standard deviation below which a number of a vector counts as constant."""


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


LARGEST_DECODER_BASE = 7
"""Longest side of the small image that the decoder's matrix product makes, except where the image
is so oblong that no other layer fits."""


@dataclass(frozen=True)
class ImageSize:
    """Pixels of an image or of a layer's output."""

    height: int
    width: int

    def divided_by(self, divisor: int) -> "ImageSize":
        """Rounded down, as pooling does."""
        return ImageSize(self.height // divisor, self.width // divisor)


class ImageNorm(nn.Module):
    """Layer normalisation over (C, H, W) with a scale and shift per element.

    Computed as group normalisation with one group, which keeps channels-last memory as it is.
    """

    def __init__(self, channels: int, size: ImageSize) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, size.height, size.width))
        self.bias = nn.Parameter(torch.zeros(channels, size.height, size.width))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return F.group_norm(images, 1) * self.weight + self.bias


class ResidualDownBlock(nn.Module):
    """Two normalised 3 × 3 convolutions beside a 1 × 1 shortcut, then halving by max-pooling."""

    def __init__(self, inputs: int, outputs: int, size: ImageSize) -> None:
        super().__init__()
        self.norm1 = ImageNorm(inputs, size)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = ImageNorm(outputs, size)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, ⌊H/2⌋, ⌊W/2⌋)."""
        hidden = self.conv1(self.norm1(images))
        hidden = self.conv2(F.leaky_relu(self.norm2(hidden)))
        return F.max_pool2d(hidden + self.shortcut(images), 2)


class InitialEncoder(nn.Module, ABC):
    """The observations given → what the bottleneck makes a latent of: each is embedded by itself,
    then a recurrent cell reads them in order."""

    rnn: nn.GRUCell
    head: nn.Module

    def forward(self, obs: Tensor) -> Tensor:
        """(num_init, B, ...) → (B, num_outputs)."""
        return self.summarise(in_one_batch(self.embed, obs))

    @abstractmethod
    def embed(self, obs: Tensor) -> Tensor:
        """(B, ...) → (B, embedding_dim)."""

    def summarise(self, embeddings: Tensor) -> Tensor:
        """(num_init, B, embedding_dim) in the order of time → (B, num_outputs)."""
        state = embeddings.new_zeros(embeddings.shape[1], self.rnn.hidden_size)
        for embedding in embeddings:
            state = self.rnn(embedding, state)
        return self.head(state)


class InitialFramesEncoder(InitialEncoder):
    """The given frames → what the bottleneck makes a latent of.

    With `downsampling` above one, frames are first averaged over squares of that many pixels.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: ImageSize,
        channels: Sequence[int],
        rnn_dim: int,
        mlp_dims: Sequence[int],
        num_outputs: int,
        downsampling: int = 1,
    ) -> None:
        super().__init__()
        self.downsampling = downsampling
        size = image_size.divided_by(downsampling)
        blocks = []
        for inputs, outputs in pairwise([image_channels, *channels]):
            blocks.append(ResidualDownBlock(inputs, outputs, size))
            size = size.divided_by(2)
        self.blocks = nn.Sequential(*blocks)
        self.rnn = nn.GRUCell(channels[-1] * size.height * size.width, rnn_dim)
        self.head = make_mlp([rnn_dim, *mlp_dims, num_outputs])

    def embed(self, obs: Tensor) -> Tensor:
        """(B, C, H, W) → (B, embedding_dim)."""
        if self.downsampling > 1:
            obs = F.avg_pool2d(obs, self.downsampling)
        return self.blocks(obs).flatten(1)


class InitialVectorsEncoder(InitialEncoder):
    """The given vectors → what the bottleneck makes a latent of."""

    def __init__(
        self,
        standardise: "Standardisation",
        hidden: Sequence[int],
        rnn_dim: int,
        mlp_dims: Sequence[int],
        num_outputs: int,
    ) -> None:
        super().__init__()
        self.layers = VectorEncoder(standardise, hidden)
        self.rnn = nn.GRUCell(self.layers.embedding_dim, rnn_dim)
        self.head = make_mlp([rnn_dim, *mlp_dims, num_outputs])

    def embed(self, obs: Tensor) -> Tensor:
        """(B, D) → (B, embedding_dim)."""
        return self.layers(obs)


class FrameEncoder(nn.Module):
    """A frame → the embedding that the posterior reads: 64-31-14-6-2 pixels.

    Convolutions of 4 × 4 pixels and stride 2 follow each other as long as they fit.
    """

    def __init__(self, image_channels: int, image_size: ImageSize, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, outputs, size = image_channels, depth, image_size
        while min(size.height, size.width) >= 4:
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2), nn.ELU()]
            size = ImageSize((size.height - 2) // 2, (size.width - 2) // 2)
            inputs, outputs = outputs, 2 * outputs
        self.layers = nn.Sequential(*layers)
        self.embedding_dim = inputs * size.height * size.width

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, embedding_dim)."""
        return self.layers(images).flatten(1)


class ImageDecoder(nn.Module):
    """Features → image by transposed convolutions: 1-5-13-30-64 pixels.

    The first of them acts on a single pixel, where it is a matrix product; written as one it is
    several times faster. The others have stride 2, and kernels of 6 pixels along an even side, of 5
    along an odd one, so that they end at exactly the image's size. The output is centred on 0.5 and
    not clamped.
    """

    def __init__(
        self, features_dim: int, image_channels: int, image_size: ImageSize, depth: int
    ) -> None:
        super().__init__()
        kernels: list[tuple[int, int]] = []
        size = image_size
        while max(size.height, size.width) > LARGEST_DECODER_BASE <= min(size.height, size.width):
            kernel = ImageSize(_kernel_onto(size.height), _kernel_onto(size.width))
            kernels.insert(0, (kernel.height, kernel.width))
            size = ImageSize(
                (size.height - kernel.height) // 2 + 1, (size.width - kernel.width) // 2 + 1
            )
        channels = [depth << doublings for doublings in reversed(range(len(kernels)))]
        base = channels[0] * size.height * size.width
        self.linear = nn.Linear(features_dim, 32 * depth)
        self.first = nn.Linear(32 * depth, base)
        self._base_shape = (channels[0], size.height, size.width)
        self.transposed = nn.ModuleList(
            nn.ConvTranspose2d(inputs, outputs, kernel, stride=2)
            for (inputs, outputs), kernel in zip(
                pairwise([*channels, image_channels]), kernels, strict=True
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, features_dim) → (B, C, H, W)."""
        hidden = self.first(self.linear(features)).unflatten(1, self._base_shape)
        for layer in self.transposed:
            hidden = layer(F.elu(hidden))
        return hidden + 0.5


class SubpixelDecoder(nn.Module):
    """Features → image by convolutions at low resolution: 8-16-64 pixels.

    No layer works at more than a quarter of the image's resolution: the last one makes the 4 × 4
    pixels of each place as channels (Shi et al., "Real-Time Single Image and Video Super-Resolution
    Using an Efficient Sub-Pixel Convolutional Neural Network", 2016). Images whose sides are no
    multiples of 8 are cut out of the next larger one. The output is centred on 0.5 and not clamped.
    """

    def __init__(
        self, features_dim: int, image_channels: int, image_size: ImageSize, depth: int
    ) -> None:
        super().__init__()
        self._image_size = image_size
        base = ImageSize(-(-image_size.height // 8), -(-image_size.width // 8))
        self._base_shape = (depth, base.height, base.width)
        self.linear = nn.Linear(features_dim, 8 * depth)
        self.first = nn.Linear(8 * depth, depth * base.height * base.width)
        self.doubling = nn.Conv2d(depth, 2**2 * depth, 3, padding=1)
        self.quadrupling = nn.Conv2d(depth, 4**2 * image_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, features_dim) → (B, C, H, W)."""
        hidden = self.first(F.elu(self.linear(features))).unflatten(1, self._base_shape)
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        hidden = F.pixel_shuffle(self.doubling(F.elu(hidden)), 2)
        images = F.pixel_shuffle(self.quadrupling(F.elu(hidden)), 4)
        return images[..., : self._image_size.height, : self._image_size.width] + 0.5


DecoderKind = Literal["transposed", "subpixel"]


def make_image_decoder(
    kind: DecoderKind, features_dim: int, image_channels: int, image_size: ImageSize, depth: int
) -> "ImageDecoder | SubpixelDecoder":
    """The image decoder of that kind, with `depth` channels in its last hidden layer."""
    kinds = {"transposed": ImageDecoder, "subpixel": SubpixelDecoder}
    return kinds[kind](features_dim, image_channels, image_size, depth)


def _kernel_onto(size: int) -> int:
    return 6 if size % 2 == 0 else 5


class Standardisation(nn.Module):
    """Vectors on the scale on which each of their numbers has mean 0 and standard deviation 1.

    Mean and deviation are those of the rollouts that a simulator learns from. They are parameters,
    so that they are kept with the weights, but not trained.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dim), requires_grad=False)
        self.std = nn.Parameter(torch.ones(dim), requires_grad=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., D) → the same shape."""
        return (vectors - self.mean) / self.std

    @torch.no_grad()
    def fit(self, chunks: Iterable[NDArray[np.float32]]) -> None:
        """Take mean and deviation of all (N, D) rows; what never changes is only shifted."""
        count = 0
        total = squares = np.zeros(len(self.mean))
        for chunk in chunks:
            rows = chunk.astype(np.float64)
            count += len(rows)
            total, squares = total + rows.sum(0), squares + np.square(rows).sum(0)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(np.where(std > CONSTANT_STD, std, 1.0)))

    def inverse(self, standardised: Tensor) -> Tensor:
        """(..., D) → the same shape."""
        return standardised * self.std + self.mean


class VectorEncoder(nn.Module):
    """A vector → the embedding that the posterior reads."""

    def __init__(self, standardise: Standardisation, hidden: Sequence[int]) -> None:
        super().__init__()
        self.standardise = standardise
        self.layers = nn.Sequential(make_mlp([len(standardise.mean), *hidden]), nn.ELU())
        self.embedding_dim = hidden[-1]

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) → (B, embedding_dim)."""
        return self.layers(self.standardise(vectors))


class VectorDecoder(nn.Module):
    """Features → vector, by a normalised MLP that ends on the standardised scale."""

    def __init__(
        self, standardise: Standardisation, features_dim: int, hidden: Sequence[int]
    ) -> None:
        super().__init__()
        self.standardise = standardise
        sizes = [features_dim, *reversed(hidden), len(standardise.mean)]
        self.layers = make_mlp(sizes, normalise=True)

    def forward(self, features: Tensor) -> Tensor:
        """(B, features_dim) → (B, D)."""
        return self.standardise.inverse(self.layers(features))


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
