"""The agent's network: IMPALA convolutions, a GRU, and two linear heads.

The convolutions are those of Espeholt et al., "IMPALA" (2018), the recurrence that of Cho et al.,
"Learning Phrase Representations using RNN Encoder-Decoder" (2014).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.images import to_float_images
from agents.protocol import AgentOutput, Readout
from experiment.errors import UserError

IMPALA_CHANNELS = (16, 32, 32)


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the agent's network."""

    width: float = 1.0
    """Multiplier of the convolutions' 16, 32 and 32 channels."""
    num_features: int = 64
    """Size of the feature vector, and of the recurrent state."""
    recurrent: bool = True
    """Whether a GRU follows the features; without it the agent sees one frame at a time."""
    obs_shape: tuple[int, int, int] = (64, 64, 3)
    """(H, W, C) of the frames."""
    num_actions: int = 15


class RecurrentPolicy(nn.Module):
    """A policy with value function that carries one flat state per environment.

    The state before the first observation is zero. The reference system has a learnable initial
    state, but its masks zero it at every episode start, so that agents trained there know only
    zeros; and a constant zero needs no training, no gradient and no bookkeeping across rollouts.

    Implements `agents.protocol.Agent`. Works under `torch.func` transforms.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.num_actions = config.num_actions
        self.obs_shape = config.obs_shape
        self.has_bounded_state = config.recurrent
        self.state_dim = config.num_features
        self.hidden_slice = slice(0, config.num_features)
        self.embedder = ImpalaEmbedder(config)
        self.gru = GRUCell(config.num_features, config.num_features) if config.recurrent else None
        self.policy_head = _orthogonal_linear(config.num_features, config.num_actions, gain=0.01)
        self.value_head = _orthogonal_linear(config.num_features, 1, gain=1.0)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def initial_state(self, batch_size: int) -> Tensor:
        """(B, state_dim) zeros."""
        return self.value_head.weight.new_zeros(batch_size, self.state_dim)

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float images in [0, 1], or (B, H, W, C) uint8 → (B, num_features)."""
        return self.embedder(to_float_images(images) if images.dtype == torch.uint8 else images)

    def advance(self, embedding: Tensor, state: Tensor, first: Tensor | None = None) -> Tensor:
        """(B, num_features), (B, state_dim), (B,) bool → (B, state_dim).

        Where `first` is true the state is set to zero before the update. A feed-forward agent's
        state is the embedding itself.
        """
        if self.gru is None:
            return embedding
        return self.gru.update(self.gru.project_input(embedding), _reset(state, first))

    def advance_sequence(
        self, embeddings: Tensor, state: Tensor, first: Tensor | None = None
    ) -> Tensor:
        """`advance` over time: (T, B, num_features), (B, state_dim), (T, B) → (T, B, state_dim).

        The input side of all steps is one matrix product; only the hidden side is sequential.
        """
        if self.gru is None:
            return embeddings
        resets = [None] * len(embeddings) if first is None else first.unbind(0)
        states = []
        for gates, reset in zip(self.gru.project_input(embeddings).unbind(0), resets, strict=True):
            state = self.gru.update(gates, _reset(state, reset))
            states.append(state)
        return torch.stack(states)

    def read_out(self, state: Tensor) -> Readout:
        """(..., state_dim) → logits (..., num_actions) and value (...)."""
        return Readout(self.policy_head(state), self.value_head(state).squeeze(-1))

    def step(self, images: Tensor, state: Tensor, first: Tensor | None = None) -> AgentOutput:
        """One decision for B environments; see `embed` and `advance` for the shapes."""
        state = self.advance(self.embed(images), state, first)
        readout = self.read_out(state)
        return AgentOutput(state, readout.action_logits, readout.value)

    def unroll(self, images: Tensor, state: Tensor, first: Tensor | None = None) -> AgentOutput:
        """T decisions; equals T calls of `step`, with all convolutions in one batch.

        Args:
            images: (T, B, C, H, W) float in [0, 1], or (T, B, H, W, C) uint8.
            state: (B, state_dim) state before the first image.
            first: (T, B) bool, where an episode begins; None means nowhere.
        """
        embeddings = self.embed(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        states = self.advance_sequence(embeddings, state, first)
        readout = self.read_out(states)
        return AgentOutput(states, readout.action_logits, readout.value)


class ImpalaEmbedder(nn.Module):
    """Three stages that each halve the frame, then one linear layer."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        height, width, channels = config.obs_shape
        stages = []
        for base_channels in IMPALA_CHANNELS:
            out_channels = max(1, round(base_channels * config.width))
            stages.append(ImpalaStage(channels, out_channels))
            channels, height, width = out_channels, math.ceil(height / 2), math.ceil(width / 2)
        self.stages = nn.ModuleList(stages)
        self.fc = nn.Linear(channels * height * width, config.num_features)
        _xavier_initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, num_features)."""
        for stage in self.stages:
            images = stage(images)
        return F.relu(self.fc(F.relu(images).flatten(1)))


class ImpalaStage(nn.Module):
    """Convolution, pooling, two residual blocks."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.res1 = ResidualBlock(out_channels)
        self.res2 = ResidualBlock(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌈H/2⌉, ⌈W/2⌉)."""
        pooled = F.max_pool2d(self.conv(images), kernel_size=3, stride=2, padding=1)
        return self.res2(self.res1(pooled))


class ResidualBlock(nn.Module):
    """Two convolutions, each after a ReLU, around which the input is carried."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return images + self.conv2(F.relu(self.conv1(F.relu(images))))


class GRUCell(nn.Module):
    """A GRU step in two parts, so that the input side can be batched over time.

    Parameters have the names and layout of `nn.GRUCell`, which are those of a one-layer `nn.GRU`
    without the suffix `_l0`. Unlike those modules, plain operations work under `torch.func`.
    """

    def __init__(self, input_dim: int, state_dim: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(3 * state_dim, input_dim))
        self.weight_hh = nn.Parameter(torch.empty(3 * state_dim, state_dim))
        self.bias_ih = nn.Parameter(torch.empty(3 * state_dim))
        self.bias_hh = nn.Parameter(torch.empty(3 * state_dim))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(state_dim**-0.5), state_dim**-0.5)

    def project_input(self, inputs: Tensor) -> Tensor:
        """(..., input_dim) → (..., 3 · state_dim), what the input adds to the gates."""
        return F.linear(inputs, self.weight_ih, self.bias_ih)

    def update(self, input_gates: Tensor, state: Tensor) -> Tensor:
        """(B, 3 · state_dim) from `project_input`, (B, state_dim) → (B, state_dim)."""
        hidden_gates = F.linear(state, self.weight_hh, self.bias_hh)
        input_reset, input_update, input_new = input_gates.chunk(3, dim=-1)
        hidden_reset, hidden_update, hidden_new = hidden_gates.chunk(3, dim=-1)
        reset = torch.sigmoid(input_reset + hidden_reset)
        update = torch.sigmoid(input_update + hidden_update)
        new = torch.tanh(input_new + reset * hidden_new)
        return new + update * (state - new)


def make_policy(config: NetworkConfig) -> RecurrentPolicy:
    """Build a policy with fresh weights; raises `UserError` for a shape that makes no sense."""
    if config.width <= 0 or config.num_features < 1:
        raise UserError(
            f"--width {config.width} --num_features {config.num_features}: both must be positive"
        )
    return RecurrentPolicy(config)


def _reset(state: Tensor, first: Tensor | None) -> Tensor:
    # A product would keep a NaN of the episode before; a selection cannot.
    return state if first is None else torch.where(first.unsqueeze(-1), 0.0, state)


def _orthogonal_linear(in_features: int, out_features: int, gain: float) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _xavier_initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
