"""The simulator: from a few frames, an environment and an agent state, rolled forward together.

Three ways to run it, all over simulated steps k (row `init − 1 + k` of the window):

- *observe*: posteriors from the true frames under the true actions, for training;
- *imagine*: priors only, under given actions;
- *simulate*: imagine, decode, and let the frozen agent act on the decoded images.

In *observe* and *imagine* nothing that the agent says feeds back into the environment state. So
frames are embedded in one batch, the small recurrence runs alone, and every image is decoded, and
shown to the agent's convolutions, in one batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from agents.images import to_float_observations
from agents.protocol import Agent
from experiment.errors import UserError
from experiment.randomness import keyed_uniform
from generative.bottleneck import BottleneckKind, LatentDistribution, make_bottleneck
from generative.gradient_edges import GradientEdges
from generative.networks import (
    LARGEST_DECODER_BASE,
    DecoderKind,
    FrameEncoder,
    ImageDecoder,
    ImageSize,
    InitialEncoder,
    InitialFramesEncoder,
    InitialVectorsEncoder,
    ScalarHead,
    Standardisation,
    SubpixelDecoder,
    VectorDecoder,
    VectorEncoder,
    in_one_batch,
    make_image_decoder,
    make_mlp,
)
from generative.rssm import Rssm
from generative.straight_through import clamp_to_image, onehot_from_logits, round_to_8_bits
from generative.types import EnvironmentState, InitialState, LatentChoice, SimulatedSteps
from projections.intervention import Intervention

PROCGEN_SHAPE = (64, 64, 3)

Precision = Literal["float32", "bfloat16"]
"""What convolutions compute in while a simulator is trained."""


@dataclass(frozen=True)
class SimulatorConfig:
    """Sizes of the simulator; presets differ in these numbers only."""

    num_init_steps: Annotated[int, tyro.conf.arg(name="num_initializing_steps")] = 3
    """Frames given to the encoder, at least 2."""
    bottleneck: BottleneckKind = "sphere"
    """Where the bottleneck vector lies: on the unit `sphere`, or, with a standard normal prior,
    anywhere (`vae`)."""
    latent_dim: int = 128
    """Size of the bottleneck vector."""
    deter_dim: int = 512
    """Size of the deterministic part of the environment state."""
    num_categoricals: int = 32
    """Categorical variables in the stochastic part."""
    num_classes: int = 32
    """Classes of each categorical variable."""
    hidden_dim: int = 1000
    """Width of the transition, prior and posterior layers."""
    encoder_channels: tuple[int, ...] = (64, 64, 64, 128)
    """Channels of the residual blocks that read the initial frames; each halves the image."""
    encoder_downsampling: int = 1
    """Side of the squares of pixels over which the initial frames are averaged first."""
    encoder_rnn_dim: int = 512
    """State size of the recurrent cell that reads the initial frames in order."""
    encoder_mlp: tuple[int, ...] = (512, 512)
    """Hidden layers between that cell and the latent."""
    environment_mlp: tuple[int, ...] = (832, 832)
    """Hidden layers from the latent to the initial environment state."""
    agent_mlp: tuple[int, ...] = (96, 96)
    """Hidden layers from the latent to the initial agent state."""
    action_mlp: tuple[int, ...] = (71, 71)
    """Hidden layers from the latent to the previous action."""
    embedding_depth: int = 32
    """Channels of the first convolution that embeds frames for the posterior; doubles per layer."""
    decoder: DecoderKind = "transposed"
    """How images are made: by `transposed` convolutions, as in the reference system, or by
    convolutions at low resolution whose channels become pixels (`subpixel`): cheaper and, for the
    same time of training, sharper."""
    decoder_depth: int = 48
    """Channels before the last convolution of the image decoder."""
    head_mlp: tuple[int, ...] = (400, 400, 400, 400)
    """Hidden layers of the reward and terminal heads."""
    vector_mlp: tuple[int, ...] = (256, 256)
    """Hidden layers of the networks that embed observations which are vectors, and, in reverse, of
    the one that decodes them. The settings of convolutions have no effect there."""
    bounded_agent_state: bool = True
    """Whether the predicted initial agent state passes through tanh, as a GRU's state does."""


@dataclass(frozen=True)
class SimulationNoise:
    """Uniform draws for sampled simulations, keyed by (seed, sample id, step).

    A sample's draws depend on nothing else: not on the batch it is in, nor on what was drawn
    before; an intervened sample shares those of its clean twin.
    """

    seed: int
    ids: Tensor
    """(B,) int64 sample ids."""

    def initial(self, num_categoricals: int) -> Tensor:
        """(B, num_categoricals) for `decode_initial`."""
        return self._draw("simulator-initial", 0, num_categoricals)

    def latents(self, step: int, num_categoricals: int) -> Tensor:
        """(B, num_categoricals) for the stochastic part at one step."""
        return self._draw("simulator-latents", step, num_categoricals)

    def action(self, step: int) -> Tensor:
        """(B,) for the agent's action at one step."""
        return self._draw("simulator-action", step, 1)[:, 0]

    def _draw(self, stream: str, step: int, size: int) -> Tensor:
        draws = keyed_uniform(self.seed, stream, self.ids.cpu().numpy(), step, size)
        return torch.from_numpy(draws).to(self.ids.device)


@dataclass(frozen=True)
class EnvironmentSteps:
    """K steps of the environment state, time first."""

    state: EnvironmentState
    """(K, B, ...)"""
    prior_logits: Tensor
    """(K, B, num_categoricals, num_classes)"""
    posterior_logits: Tensor | None = None
    """The same shape; None where the steps were imagined."""


class Simulator(nn.Module):
    """Latent-variable model of the environment with the frozen agent inside.

    Args:
        config: sizes.
        agent: the agent; its parameters are frozen.
        obs_shape: (H, W, C) of the environment's frames, or (D,) of its vectors. What is called
            an image or a frame here is then a vector.
    """

    def __init__(
        self, config: SimulatorConfig, agent: Agent, obs_shape: tuple[int, ...] = PROCGEN_SHAPE
    ) -> None:
        super().__init__()
        self.config = config
        self.agent = agent
        self.obs_shape = obs_shape
        _freeze(agent)
        stoch_dim = config.num_categoricals * config.num_classes
        features_dim = config.deter_dim + stoch_dim
        self.bottleneck = make_bottleneck(config.bottleneck, config.latent_dim)
        make_networks = _image_networks if self.sees_images else _vector_networks
        networks = make_networks(config, obs_shape, features_dim, self.bottleneck.num_outputs)
        self.encoder = networks.encoder
        self.initial_environment = make_mlp(
            [config.latent_dim, *config.environment_mlp, features_dim]
        )
        self.initial_agent = make_mlp([config.latent_dim, *config.agent_mlp, agent.state_dim])
        self.initial_action = make_mlp([config.latent_dim, *config.action_mlp, agent.num_actions])
        self.frame_encoder = networks.frame_encoder
        self.rssm = Rssm(
            config.deter_dim,
            config.num_categoricals,
            config.num_classes,
            config.hidden_dim,
            agent.num_actions,
            self.frame_encoder.embedding_dim,
        )
        self.image_decoder = networks.image_decoder
        self.reward_head = ScalarHead(features_dim, agent.num_actions, config.head_mlp)
        self.terminal_head = ScalarHead(features_dim, agent.num_actions, config.head_mlp)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.precision: Precision = "float32"
        self._advance: Callable[..., _Advance] = self._advance_eagerly

    def train(self, mode: bool = True) -> "Simulator":
        """As `nn.Module.train`, but the frozen agent stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.agent, nn.Module):
            self.agent.eval()
        return self

    def compile_recurrence(self, backend: str = "inductor") -> None:
        """Compile the step of the environment's recurrence.

        It is a few dozen operations on small tensors, whose launches cost a GPU more than their
        computation.
        """
        self._advance = torch.compile(self._advance_eagerly, backend=backend)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type that the simulator computes in."""
        return self.rssm.stoch_weights.weight.dtype

    @property
    def sees_images(self) -> bool:
        """Whether the environment's observations are frames; otherwise they are vectors."""
        return len(self.obs_shape) == 3

    @property
    def num_parameters(self) -> int:
        """Parameters of the simulator, without those of the agent."""
        return sum(p.numel() for p in simulator_parameters(self).values())

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 (num_init, B, H, W, C) → the most probable latent, (B, latent_dim)."""
        return self.encode_distribution(frames).mode

    def encode_distribution(self, frames: Tensor) -> LatentDistribution:
        """uint8 (num_init, B, H, W, C), or (num_init, B, D) → what they tell of the latent."""
        images = to_float_observations(frames).to(self.dtype)
        embeddings = self.convolve(partial(in_one_batch, self.encoder.embed), images)
        return self.bottleneck.distribution(self.encoder.summarise(embeddings))

    def convolve(self, network: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Apply a convolutional network in the chosen precision; the result has `dtype`.

        What is recurrent, the heads and all losses stay in `dtype`: errors of a recurrence add up,
        and the deterministic state moves by less than bfloat16 resolves.
        """
        in_bfloat16 = self.precision == "bfloat16"
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=in_bfloat16):
            return network(inputs).to(self.dtype)

    def decode_initial(
        self, latent: Tensor, latents: LatentChoice = "mode", uniform: Tensor | None = None
    ) -> InitialState:
        """Latent (B, latent_dim) → everything at row `init − 2`.

        Args:
            latent: bottleneck vector; it need not come from `encode`.
            latents: how the stochastic part is picked.
            uniform: (B, num_categoricals) draws, needed for `sample`.
        """
        return InitialState(
            environment=self._initial_environment(latent, latents, uniform),
            agent_state=self.initial_agent_state(latent),
            action=onehot_from_logits(self.initial_action(latent), "mode"),
        )

    def initial_agent_state(self, latent: Tensor) -> Tensor:
        """(B, latent_dim) → (B, state_dim)."""
        state = self.initial_agent(latent)
        return torch.tanh(state) if self.config.bounded_agent_state else state

    def _initial_environment(
        self, latent: Tensor, latents: LatentChoice, uniform: Tensor | None
    ) -> EnvironmentState:
        config = self.config
        deter, flat = self.initial_environment(latent).split(
            [config.deter_dim, config.num_categoricals * config.num_classes], dim=-1
        )
        logits = flat.unflatten(-1, (config.num_categoricals, config.num_classes))
        return EnvironmentState(deter, onehot_from_logits(logits, latents, uniform))

    def observe(
        self,
        initial: EnvironmentState,
        initial_action: Tensor,
        images: Tensor,
        actions: Tensor,
        latents: LatentChoice = "sample",
        uniform: Tensor | None = None,
    ) -> EnvironmentSteps:
        """Follow true frames and actions with the posterior.

        Args:
            initial: environment state at row `init − 2`.
            initial_action: (B, num_actions) one-hot action taken there.
            images: (K, B, C, H, W) true frames of steps 0 .. K−1.
            actions: (K, B, num_actions) one-hot true actions; the last is not read.
            latents: how the stochastic part is picked from the posterior.
            uniform: (K, B, num_categoricals) draws, needed for `sample`.
        """
        embeddings = self.convolve(partial(in_one_batch, self.frame_encoder), images)
        projected = self.rssm.project_embedding(embeddings)
        return self._roll(initial, initial_action, actions, latents, uniform, projected)

    def imagine(
        self,
        initial: EnvironmentState,
        initial_action: Tensor,
        actions: Tensor,
        latents: LatentChoice = "mode",
        uniform: Tensor | None = None,
    ) -> EnvironmentSteps:
        """Follow given actions with the prior alone; arguments as for `observe`."""
        return self._roll(initial, initial_action, actions, latents, uniform, None)

    def _roll(
        self,
        state: EnvironmentState,
        action: Tensor,
        actions: Tensor,
        latents: LatentChoice,
        uniform: Tensor | None,
        projected_embeddings: Tensor | None,
    ) -> EnvironmentSteps:
        deters, stochs, posteriors = [], [], []
        for step in range(len(actions)):
            projected = None if projected_embeddings is None else projected_embeddings[step]
            draws = None if uniform is None else uniform[step]
            advance = self._advance(state.deter, state.stoch, action, projected, latents, draws)
            if projected is not None:
                posteriors.append(advance.logits)
            state = EnvironmentState(advance.deter, advance.stoch)
            action = actions[step]
            deters.append(state.deter)
            stochs.append(state.stoch)
        deter = torch.stack(deters)
        return EnvironmentSteps(
            state=EnvironmentState(deter, torch.stack(stochs)),
            prior_logits=self.rssm.prior_logits(deter),
            posterior_logits=torch.stack(posteriors) if posteriors else None,
        )

    def _advance_eagerly(
        self,
        deter: Tensor,
        stoch: Tensor,
        action: Tensor,
        projected_embedding: Tensor | None,
        latents: LatentChoice,
        uniform: Tensor | None,
    ) -> "_Advance":
        deter = self.rssm.transition(EnvironmentState(deter, stoch), action)
        if projected_embedding is None:
            logits = self.rssm.prior_logits(deter)
        else:
            logits = self.rssm.posterior_logits(deter, projected_embedding)
        return _Advance(deter, onehot_from_logits(logits, latents, uniform), logits)

    def decode_images(self, features: Tensor) -> Tensor:
        """(..., features_dim) → (..., C, H, W), not clamped."""
        images = self.convolve(self.image_decoder, features.flatten(0, -2))
        return images.unflatten(0, features.shape[:-1])

    def as_seen(self, decoded: Tensor) -> Tensor:
        """Decoded images in the range that an agent is used to; vectors as they are."""
        return clamp_to_image(decoded) if self.sees_images else decoded

    def as_recorded(self, decoded: Tensor) -> Tensor:
        """As a rollout keeps them: images of 8 bits, vectors as they are."""
        return round_to_8_bits(clamp_to_image(decoded)) if self.sees_images else decoded

    def simulate(
        self,
        initial: InitialState,
        num_steps: int,
        *,
        actions: Tensor | None = None,
        latents: LatentChoice = "mode",
        agent_actions: LatentChoice = "mode",
        noise: SimulationNoise | None = None,
        intervention: Intervention | None = None,
        cut_environment_gradient: bool = False,
        edges: GradientEdges | None = None,
    ) -> SimulatedSteps:
        """Roll environment and agent forward together, differentiably.

        Args:
            initial: what the latent decodes to, at row `init − 2`.
            num_steps: K ≥ 1; step 0 reconstructs the last frame given.
            actions: (K, B) int64 actions to take instead of the agent's own.
            latents: how the environment's stochastic part is picked from its prior.
            agent_actions: how the agent's action is picked from its logits.
            noise: keyed draws; needed where anything is sampled.
            intervention: changes the agent's new state before the heads read it and before it is
                carried on.
            cut_environment_gradient: stop gradients on the edge from an action to the next
                environment state, and nowhere else: the reward and terminal heads still see
                through the action.
            edges: switches of that edge, and of the agent's memory, to be moved between backward
                passes.
        """
        if noise is None and "sample" in (latents, agent_actions if actions is None else "mode"):
            raise ValueError("sampling needs `noise`")
        state, agent_state, action = initial.environment, initial.agent_state, initial.action
        rows: list[_Row] = []
        for step in range(num_steps):
            drive = action.detach() if cut_environment_gradient else action
            memory = agent_state
            if edges is not None:
                drive, memory = edges.action(drive), edges.memory(memory)
            deter = self.rssm.transition(state, drive)
            draws = noise and noise.latents(step, self.config.num_categoricals)
            stoch = onehot_from_logits(self.rssm.prior_logits(deter), latents, draws)
            state = EnvironmentState(deter, stoch)
            image = self.as_recorded(self.image_decoder(state.features))
            proposed = self.agent.advance(self.agent.embed(image), memory)
            agent_state = intervention(memory, proposed, step) if intervention else proposed
            readout = self.agent.read_out(agent_state)
            if actions is not None:
                action = self.one_hot_actions(actions[step])
            else:
                draw = noise and noise.action(step)
                action = onehot_from_logits(readout.action_logits, agent_actions, draw)
            rows.append(
                _Row(
                    deter,
                    stoch,
                    image,
                    agent_state,
                    readout.action_logits,
                    readout.value,
                    action,
                    self.reward_head(state.features, action),
                    self.terminal_head(state.features, action),
                )
            )
        return _collect(rows)

    def one_hot_actions(self, actions: Tensor) -> Tensor:
        """(...) int64 → (..., num_actions) in the simulator's floating-point type."""
        return F.one_hot(actions, self.agent.num_actions).to(self.dtype)


@dataclass(frozen=True)
class _ObservationNetworks:
    """What reads and makes observations."""

    encoder: InitialEncoder
    frame_encoder: FrameEncoder | VectorEncoder
    image_decoder: ImageDecoder | SubpixelDecoder | VectorDecoder


def _image_networks(
    config: SimulatorConfig, obs_shape: tuple[int, ...], features_dim: int, num_outputs: int
) -> _ObservationNetworks:
    height, width, channels = obs_shape
    size = ImageSize(height, width)
    encoder = InitialFramesEncoder(
        channels,
        size,
        config.encoder_channels,
        config.encoder_rnn_dim,
        config.encoder_mlp,
        num_outputs,
        config.encoder_downsampling,
    )
    return _ObservationNetworks(
        encoder,
        FrameEncoder(channels, size, config.embedding_depth),
        make_image_decoder(config.decoder, features_dim, channels, size, config.decoder_depth),
    )


def _vector_networks(
    config: SimulatorConfig, obs_shape: tuple[int, ...], features_dim: int, num_outputs: int
) -> _ObservationNetworks:
    standardise = Standardisation(obs_shape[0])
    return _ObservationNetworks(
        InitialVectorsEncoder(
            standardise,
            config.vector_mlp,
            config.encoder_rnn_dim,
            config.encoder_mlp,
            num_outputs,
        ),
        VectorEncoder(standardise, config.vector_mlp),
        VectorDecoder(standardise, features_dim, config.vector_mlp),
    )


def _freeze(agent: object) -> None:
    if isinstance(agent, nn.Module):
        agent.requires_grad_(False)


@dataclass(frozen=True)
class _Advance:
    """The environment state after a step, and the logits that its stochastic part is from."""

    deter: Tensor
    stoch: Tensor
    logits: Tensor


@dataclass(frozen=True)
class _Row:
    deter: Tensor
    stoch: Tensor
    images: Tensor
    agent_state: Tensor
    action_logits: Tensor
    value: Tensor
    action: Tensor
    reward: Tensor
    terminal_logit: Tensor


def _collect(rows: list[_Row]) -> SimulatedSteps:
    names = _Row.__dataclass_fields__
    return SimulatedSteps(**{name: tuple(getattr(row, name) for row in rows) for name in names})


def simulator_parameters(simulator: Simulator) -> dict[str, nn.Parameter]:
    """The simulator's own parameters by name, without those of the frozen agent."""
    return {
        name: parameter
        for name, parameter in simulator.named_parameters()
        if not name.startswith("agent.")
    }


def trained_parameters(simulator: Simulator) -> list[nn.Parameter]:
    """Those of the simulator's own parameters that learning changes."""
    return [p for p in simulator_parameters(simulator).values() if p.requires_grad]


def require_simulable(config: SimulatorConfig, obs_shape: tuple[int, ...], source: str) -> None:
    """Raise `UserError` naming `source` unless its observations are vectors, or frames that are
    large enough for the encoder."""
    if len(obs_shape) == 1:
        if not config.vector_mlp:
            raise UserError("--vector_mlp: observations that are vectors need at least one layer")
        return
    smallest = config.encoder_downsampling << len(config.encoder_channels)
    smallest = max(smallest, LARGEST_DECODER_BASE + 1)
    if len(obs_shape) != 3 or min(obs_shape[:2]) < smallest:
        raise UserError(
            f"{source}: frames are {tuple(obs_shape)}; an encoder of "
            f"{len(config.encoder_channels)} blocks (--encoder_channels) after averaging over "
            f"{config.encoder_downsampling} pixels (--encoder_downsampling) needs images of at "
            f"least {smallest} × {smallest}"
        )
