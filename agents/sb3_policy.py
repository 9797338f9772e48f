"""Agents that sb3-contrib's `RecurrentPPO` trained and saved.

The archive holds weights, and settings as JSON in which whatever JSON cannot say is pickled. The
pickles are never read: class, frames, actions and layers are taken from the readable part, and a
policy that cannot be told from it is refused.
"""

import contextlib
import io
import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.protocol import AgentOutput, Readout
from experiment.errors import UserError
from experiment.runs import load_torch_bytes

if TYPE_CHECKING:
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

POLICY_MODULE = "sb3_contrib.common.recurrent.policies"
ARCHITECTURE = (
    "net_arch",
    "activation_fn",
    "features_extractor_kwargs",
    "share_features_extractor",
    "normalize_images",
    "lstm_hidden_size",
    "n_lstm_layers",
    "shared_lstm",
    "enable_critic_lstm",
)
"""Arguments of a policy that say what it computes and that can be read without unpickling."""
OF_TRAINING = ("ortho_init", "log_std_init", "optimizer_class", "optimizer_kwargs")
"""Arguments without effect on a trained policy of discrete actions."""


class Sb3Agent(nn.Module):
    """A recurrent policy of sb3-contrib behind the protocol of `agents.protocol.Agent`.

    The state is the actor's h of all layers, its c, and what the value needs besides: the critic's
    own h and c, or, of a critic without memory, its features. The LSTMs are computed from their
    weights, since cuDNN's cannot be differentiated in evaluation mode.
    """

    def __init__(self, policy: "RecurrentActorCriticPolicy", env_steps: int = 0) -> None:
        super().__init__()
        shape = tuple(policy.observation_space.shape or ())
        self.policy = policy
        self.env_steps = env_steps
        self.channels_first = shape[0] < shape[-1]
        self.obs_shape = (*shape[1:], shape[0]) if self.channels_first else shape
        self.num_actions = policy.action_net.out_features
        layers, _, width = policy.lstm_hidden_state_shape
        self.width = width
        actor = [layers * width] * 2
        if policy.lstm_critic is not None:
            self.parts = [*actor, *actor]
        else:
            self.parts = actor if policy.shared_lstm else [*actor, width]
        self.state_dim = sum(self.parts)
        self.hidden_slice = slice(0, layers * width)

    def initial_state(self, batch_size: int) -> Tensor:
        """(B, state_dim) zeros."""
        return self.policy.value_net.weight.new_zeros(batch_size, self.state_dim)

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] → (B, features_dim), or twice that with two extractors."""
        if not self.policy.normalize_images:
            images = images * 255.0
        if not self.channels_first:
            images = images.movedim(-3, -1)
        policy = self.policy
        if policy.share_features_extractor:
            return policy.features_extractor(images)
        both = (policy.pi_features_extractor(images), policy.vf_features_extractor(images))
        return torch.cat(both, dim=-1)

    def advance(self, embedding: Tensor, state: Tensor, first: Tensor | None = None) -> Tensor:
        """(B, embedding_dim), (B, state_dim), (B,) bool → (B, state_dim)."""
        if first is not None:
            state = torch.where(first.unsqueeze(-1), 0.0, state)
        policy, before = self.policy, state.split(self.parts, dim=-1)
        for_actor, for_critic = self._split_features(embedding)
        after = _advance_lstm(policy.lstm_actor, for_actor, before[0], before[1])
        if policy.lstm_critic is not None:
            after += _advance_lstm(policy.lstm_critic, for_critic, before[2], before[3])
        elif policy.critic is not None:
            after.append(policy.critic(for_critic))
        return torch.cat(after, dim=-1)

    def read_out(self, state: Tensor) -> Readout:
        """(..., state_dim) → logits (..., num_actions) and value (...)."""
        policy, parts = self.policy, state.split(self.parts, dim=-1)
        of_actor = parts[0][..., -self.width :]
        of_critic = of_actor if policy.shared_lstm else parts[2][..., -self.width :]
        logits = policy.action_net(policy.mlp_extractor.forward_actor(of_actor))
        value = policy.value_net(policy.mlp_extractor.forward_critic(of_critic))
        return Readout(logits, value.squeeze(-1))

    def step(self, images: Tensor, state: Tensor, first: Tensor | None = None) -> AgentOutput:
        """One decision for B environments; see `embed` and `advance` for the shapes."""
        state = self.advance(self.embed(images), state, first)
        readout = self.read_out(state)
        return AgentOutput(state, readout.action_logits, readout.value)

    def _split_features(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        if self.policy.share_features_extractor:
            return embedding, embedding
        for_actor, for_critic = embedding.chunk(2, dim=-1)
        return for_actor, for_critic


def load_sb3_policy(file: Path) -> Sb3Agent:
    """Rebuild the policy of an archive that `RecurrentPPO.save` wrote, without unpickling.

    Raises:
        UserError: sb3-contrib is missing; no such archive; or a policy with parts (a feature
            extractor of its own, say) that only unpickling would tell.
    """
    settings, weights = _read_archive(file)
    policy = _build_policy(settings, file)
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        first_line = str(error).splitlines()[-1].strip()
        raise UserError(f"{file}: weights do not fit the policy ({first_line})") from None
    return Sb3Agent(policy, int(settings.get("num_timesteps", 0)))


def _advance_lstm(lstm: nn.LSTM, inputs: Tensor, hidden: Tensor, cell: Tensor) -> list[Tensor]:
    """One step of all layers: (B, input_size), two of (B, layers · width) → new h and c."""
    hiddens, cells = [], []
    layers = zip(
        lstm.all_weights,
        hidden.split(lstm.hidden_size, dim=-1),
        cell.split(lstm.hidden_size, dim=-1),
        strict=True,
    )
    for (weight_ih, weight_hh, bias_ih, bias_hh), before, cell_before in layers:
        gates = F.linear(inputs, weight_ih, bias_ih) + F.linear(before, weight_hh, bias_hh)
        take, keep, new, show = gates.chunk(4, dim=-1)
        after = torch.sigmoid(keep) * cell_before + torch.sigmoid(take) * torch.tanh(new)
        inputs = torch.sigmoid(show) * torch.tanh(after)
        hiddens.append(inputs)
        cells.append(after)
    return [torch.cat(hiddens, dim=-1), torch.cat(cells, dim=-1)]


def _read_archive(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with zipfile.ZipFile(file) as archive:
            settings = json.loads(archive.read("data"))
            content = archive.read("policy.pth")
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{file}: not an archive that RecurrentPPO.save of sb3-contrib wrote ({error})"
        ) from None
    return settings, load_torch_bytes(content, f"{file} (policy.pth in it)", "file of weights")


def _build_policy(settings: dict[str, Any], file: Path) -> "RecurrentActorCriticPolicy":
    with contextlib.redirect_stderr(io.StringIO()):  # sb3 imports gym, which prints an appeal
        try:
            from gymnasium.spaces import Box, Discrete
            from sb3_contrib.common.recurrent import policies
        except ModuleNotFoundError as error:
            raise UserError(
                f"{file}: {error.name} is not installed; "
                "in the project's folder, pip install -e '.[sb3]'"
            ) from None
    is_cnn = _read_class(settings, file)
    policy_class = (
        policies.RecurrentActorCriticCnnPolicy if is_cnn else policies.RecurrentActorCriticPolicy
    )
    shape, num_actions = _read_frames(settings, file), _read_num_actions(settings, file)
    return policy_class(
        Box(0, 255, shape, np.uint8),
        Discrete(num_actions),
        lambda _: 0.0,
        **_read_arguments(settings, file),
    )


def _read_class(settings: dict[str, Any], file: Path) -> bool:
    """Whether the policy is the CNN one, else the MLP one."""
    described = settings.get("policy_class", {})
    constructor = str(described.get("__init__"))
    names = {"RecurrentActorCriticCnnPolicy": True, "RecurrentActorCriticPolicy": False}
    found = [is_cnn for name, is_cnn in names.items() if f"function {name}.__init__" in constructor]
    if described.get("__module__") != POLICY_MODULE or not found:
        raise UserError(
            f"{file}: its policy is none of sb3-contrib's CnnLstmPolicy and MlpLstmPolicy, and "
            "another class could only be had by running code pickled into the file; write a "
            "factory that loads it (docs/agents.md)"
        )
    return found[0]


def _read_frames(settings: dict[str, Any], file: Path) -> tuple[int, ...]:
    space = settings.get("observation_space", {})
    shape = _read_list(space.get("_shape"))
    if "Box" not in str(space.get(":type:")) or space.get("dtype") != "uint8" or len(shape) != 3:
        raise UserError(
            f"{file}: trained on observations {space.get(':type:')} {shape} "
            f"{space.get('dtype')}; uint8 images are expected"
        )
    return tuple(shape)


def _read_num_actions(settings: dict[str, Any], file: Path) -> int:
    space = settings.get("action_space", {})
    kind = str(space.get(":type:"))
    if "discrete.Discrete" not in kind or str(space.get("start")) != "0":
        raise UserError(f"{file}: trained with actions {kind}; Discrete from 0 is expected")
    return int(space["n"])


def _read_arguments(settings: dict[str, Any], file: Path) -> dict[str, Any]:
    described = settings.get("policy_kwargs", {})
    arguments = {k: v for k, v in described.items() if not k.startswith(":") and v is not None}
    unknown = arguments.keys() - {*ARCHITECTURE, *OF_TRAINING}
    values = {k: _read_value(v) for k, v in arguments.items() if k in ARCHITECTURE}
    unknown |= {name for name, value in values.items() if isinstance(value, str)}
    if unknown:
        raise UserError(
            f"{file}: its policy has {', '.join(sorted(unknown))} = "
            f"{arguments[min(unknown)]}, which could only be had by running code pickled into the "
            "file; write a factory that loads it (docs/agents.md)"
        )
    return values


def _read_value(value: Any) -> Any:
    """A JSON value as it is; one of torch's activations from the name of its class."""
    known = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", str(value))
    return getattr(nn, known[1]) if known else value


def _read_list(value: Any) -> list[int]:
    """sb3 writes a shape as a list, newer releases as its text."""
    return [int(number) for number in re.findall(r"\d+", str(value))]
