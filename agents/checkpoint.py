"""Agents on disk: our own folders, and checkpoints of the reference system.

An agent folder holds `weights.safetensors` and `agent.json` (network, environment, number of
environment steps, provenance, hash). A `.pth` of the reference layout is converted on the fly.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.networks import NetworkConfig, RecurrentPolicy, make_policy
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from experiment.files import atomic_folder, hash_bytes, read_json, write_json
from experiment.provenance import Provenance, to_plain
from experiment.runs import load_torch_file

FORMAT = "dreamscope-agent"
FORMAT_VERSION = 1
WEIGHTS_FILE = "weights.safetensors"
DESCRIPTION_FILE = "agent.json"


@dataclass(frozen=True)
class LoadedAgent:
    """An agent read from disk, ready to act: in evaluation mode, parameters frozen."""

    policy: RecurrentPolicy
    environment: EnvironmentSpec | None
    """What it was trained in; None for an imported checkpoint, which does not say."""
    hash: str
    """SHA-256 of weights and network shape: the agent's identity."""
    path: Path
    env_steps: int
    """Environment steps it was trained for; 0 where unknown."""


def save_agent(
    folder: Path | str,
    policy: RecurrentPolicy,
    environment: EnvironmentSpec | None,
    provenance: Provenance | Mapping[str, Any],
    env_steps: int,
) -> Path:
    """Write an agent folder as a whole; an existing one is replaced. Returns its path."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _weights(policy)}
    description = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "hash": hash_agent(policy),
        "env_steps": env_steps,
        "network": asdict(policy.config),
        "environment": environment.to_dict() if environment is not None else None,
        "provenance": to_plain(provenance),
    }
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / WEIGHTS_FILE)
        write_json(temporary / DESCRIPTION_FILE, description)
    return Path(folder)


def load_agent(path: Path | str, device: torch.device | str = "cpu") -> LoadedAgent:
    """Read an agent folder, or a `.pth` of the reference system.

    Raises:
        UserError: nothing there, not an agent, of an unknown version, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such agent (an agent folder or a reference .pth is expected)")
    loaded = _load_folder(path) if path.is_dir() else _import_reference(path)
    loaded.policy.to(device).requires_grad_(False).eval()
    return loaded


def newest_agent(env_name: str, exp_name: str, logs: Path | str = "logs") -> Path:
    """The agent written last below `<logs>/procgen/<env_name>/<exp_name>/`.

    Raises:
        UserError: there is none.
    """
    experiment = Path(logs) / "procgen" / env_name / exp_name
    candidates = [
        *(file.parent for file in experiment.glob(f"*/model_*/{DESCRIPTION_FILE}")),
        *experiment.glob("*/model_*.pth"),
    ]
    if not candidates:
        raise UserError(
            f"--model_file: none given, and {experiment} holds no agent; train one with "
            f"`python train.py --env_name {env_name} --exp_name {exp_name}` or name one"
        )
    return max(candidates, key=lambda path: (path.stat().st_mtime_ns, _steps_in_name(path)))


def hash_agent(policy: RecurrentPolicy) -> str:
    """SHA-256 over the network's shape and, name by name, its weights."""
    parts = [json.dumps(asdict(policy.config), sort_keys=True).encode()]
    for name, tensor in sorted(_weights(policy)):
        parts.append(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        parts.append(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hash_bytes(*parts)


def _weights(policy: RecurrentPolicy) -> list[tuple[str, Tensor]]:
    return list(policy.state_dict().items())


def _steps_in_name(path: Path) -> int:
    digits = re.search(r"model_(\d+)", path.name)
    return int(digits.group(1)) if digits else 0


def _load_folder(folder: Path) -> LoadedAgent:
    description = _read_description(folder)
    network = description["network"]
    config = NetworkConfig(**{**network, "obs_shape": tuple(network["obs_shape"])})
    policy = _policy_with_weights(config, _read_weights(folder / WEIGHTS_FILE), folder)
    digest = hash_agent(policy)
    if digest != description["hash"]:
        raise UserError(f"{folder}: damaged agent; its weights do not have the recorded hash")
    environment = description["environment"]
    spec = EnvironmentSpec.from_dict(environment) if environment is not None else None
    return LoadedAgent(policy, spec, digest, folder, description["env_steps"])


def _read_description(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION_FILE
    if not file.exists():
        raise UserError(f"{folder}: not an agent folder; {DESCRIPTION_FILE} is missing")
    description = read_json(file)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"{file}: not the description of an agent (format {FORMAT!r} expected)")
    if description["version"] != FORMAT_VERSION:
        raise UserError(
            f"{file}: version {description['version']} of the agent format; "
            f"this release reads version {FORMAT_VERSION}"
        )
    missing = {"hash", "network", "environment", "env_steps"} - description.keys()
    if missing:
        raise UserError(f"{file}: damaged; {', '.join(sorted(missing))} missing")
    return description


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; the agent folder is incomplete") from None
    except SafetensorError as error:
        raise UserError(f"{file}: damaged weights ({error})") from None


def _policy_with_weights(
    config: NetworkConfig, weights: Mapping[str, Tensor], path: Path
) -> RecurrentPolicy:
    policy = make_policy(config)
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        first_line = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: weights do not fit the network ({first_line})") from None
    return policy


def _import_reference(file: Path) -> LoadedAgent:
    weights = _read_reference_weights(file)
    _require_reference_layout(weights, file)
    num_features, flat_dim = weights["embedder.fc.weight"].shape
    channels, obs_channels = weights["embedder.block1.conv.weight"].shape[:2]
    side = 8 * round((flat_dim / weights["embedder.block3.conv.bias"].numel()) ** 0.5)
    config = NetworkConfig(
        width=channels / 16,
        num_features=num_features,
        recurrent="gru.gru.weight_hh_l0" in weights,
        obs_shape=(side, side, obs_channels),
        num_actions=weights["fc_policy.bias"].numel(),
    )
    renamed = {
        _our_name(name): tensor.float() for name, tensor in weights.items() if name != "init_hx"
    }
    policy = _policy_with_weights(config, renamed, file)
    return LoadedAgent(policy, None, hash_agent(policy), file, _steps_in_name(file))


def _read_reference_weights(file: Path) -> dict[str, Tensor]:
    content = load_torch_file(file, "PyTorch checkpoint")
    weights = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise UserError(f"{file}: not an agent of the reference system (no model_state_dict in it)")
    return weights


def _require_reference_layout(weights: Mapping[str, Tensor], file: Path) -> None:
    num_dimensions = {
        "embedder.fc.weight": 2,
        "embedder.block1.conv.weight": 4,
        "embedder.block3.conv.bias": 1,
        "fc_policy.bias": 1,
        "fc_value.weight": 2,
    }
    missing = [name for name in num_dimensions if name not in weights]
    if missing:
        raise UserError(f"{file}: not an agent of the reference system ({missing[0]} is missing)")
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.dim() != num_dimensions.get(name, value.dim()):
            raise UserError(f"{file}: not an agent of the reference system (what is {name}?)")


def _our_name(name: str) -> str:
    name = re.sub(
        r"^embedder\.block(\d)\.", lambda block: f"embedder.stages.{int(block[1]) - 1}.", name
    )
    name = re.sub(r"^gru\.gru\.(.*)_l0$", r"gru.\1", name)
    return name.replace("fc_policy.", "policy_head.").replace("fc_value.", "value_head.")
