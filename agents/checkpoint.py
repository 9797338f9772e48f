"""Agents to load: our own folders, and those from elsewhere.

An agent folder holds `weights.safetensors` and `agent.json` (network, environment, number of
environment steps, provenance, hash). A `.pth` of the reference layout is converted on the fly; a
`.zip` of sb3-contrib and `module:factory` are the affair of `agents.sb3_policy` and
`agents.foreign`.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from agents.foreign import finish_agent, make_agent, parse_reference, require_own_code
from agents.identity import hash_weights
from agents.networks import NetworkConfig, RecurrentPolicy, make_policy
from agents.protocol import Agent
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from experiment.files import atomic_folder, hash_file, read_json, write_json
from experiment.provenance import Provenance, collect_provenance, to_plain
from experiment.runs import load_torch_file

FORMAT = "dreamscope-agent"
FORMAT_VERSION = 1
WEIGHTS_FILE = "weights.safetensors"
DESCRIPTION_FILE = "agent.json"
SB3_PREFIX = "sb3:"


@dataclass(frozen=True)
class LoadedAgent:
    """An agent ready to act: in evaluation mode, parameters frozen."""

    policy: Agent
    environment: EnvironmentSpec | None
    """What it was trained in; None for an agent from elsewhere, which does not say."""
    hash: str
    """SHA-256 of weights and network shape: the agent's identity."""
    path: Path | str
    """Folder or file it was read from; a string where it is `module:factory`."""
    env_steps: int
    """Environment steps it was trained for; 0 where unknown."""

    @property
    def reference(self) -> str:
        """What finds the agent again, from any folder: what a dataset records."""
        return self.path if isinstance(self.path, str) else str(self.path.resolve())


def save_agent(
    folder: Path | str,
    policy: RecurrentPolicy,
    environment: EnvironmentSpec | None,
    provenance: Provenance | Mapping[str, Any],
    env_steps: int,
) -> Path:
    """Write an agent folder as a whole; an existing one is replaced. Returns its path."""
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()
    }
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
        (temporary / WEIGHTS_FILE).write_bytes(save(weights))
        write_json(temporary / DESCRIPTION_FILE, description)
    return Path(folder)


def load_agent(
    reference: Path | str,
    device: torch.device | str = "cpu",
    environment: EnvironmentSpec | None = None,
) -> LoadedAgent:
    """Load an agent from wherever it comes.

    Args:
        reference: an agent folder, a `.pth` of the reference system, a `.zip` of sb3-contrib (also
            written `sb3:FILE.zip`), or `module:factory`, whose code is run.
        device: where the agent is to compute.
        environment: what it is to play in; a factory may ask for it.

    Raises:
        UserError: nothing there, not an agent, of an unknown version, damaged, or unlike the
            protocol.
    """
    path = Path(str(reference).removeprefix(SB3_PREFIX))
    is_sb3 = str(reference).startswith(SB3_PREFIX) or path.suffix == ".zip"
    if is_sb3 and path.is_file():
        return _load_sb3(path, device)
    if not path.exists():
        return _load_from_code(str(reference), device, environment)
    return _load_folder(path, device) if path.is_dir() else _import_reference(path, device)


def load_chosen_agent(
    chosen: str | None,
    recorded: str,
    source: str,
    environment: EnvironmentSpec | None,
    device: torch.device | str = "cpu",
    flag: str = "--agent_file",
) -> LoadedAgent:
    """Load the agent that `flag` names, or else the one that a dataset records.

    Args:
        chosen: value of `flag`.
        recorded: the dataset's `agent_file`.
        source: the dataset as the user named it, as in `--data_dir data`.
        environment: what the agent is to play in.
        device: where it is to compute.
        flag: what the user may name the agent by.

    Raises:
        UserError: as `load_agent`; or the dataset names code that is not the user's own.
    """
    if chosen is not None:
        return load_agent(chosen, device, environment)
    if not Path(recorded).exists():
        parsed = parse_reference(recorded)
        if parsed is None:
            raise UserError(
                f"{flag}: none given, and the agent that {source} names is gone: {recorded}"
            )
        require_own_code(parsed, source, flag)
    return load_agent(recorded, device, environment)


def import_agent(
    file: Path | str, out: Path | str, environment: EnvironmentSpec | None = None
) -> LoadedAgent:
    """Turn a `.pth` of the reference system into an agent folder, which appears as a whole.

    Args:
        file: the checkpoint; code pickled into it is never run.
        out: the folder to make; it must not exist.
        environment: what the agent was trained in, which the checkpoint does not say.

    Raises:
        UserError: not such a checkpoint, or `out` is there already.
    """
    file, out = Path(file), Path(out)
    if out.exists():
        raise UserError(f"--out {out}: is there already; choose a name that is free")
    if not file.is_file():
        raise UserError(f"{file}: no such file (a .pth of train-procgen-pytorch is expected)")
    loaded = _import_reference(file, "cpu")
    provenance = collect_provenance(
        {"file": str(file), "out": str(out)}, seed=0, inputs={"checkpoint": hash_file(file)}
    )
    policy = require_recurrent_policy(loaded, "FILE")
    save_agent(out, policy, environment, provenance, loaded.env_steps)
    return load_agent(out)


def require_recurrent_policy(agent: LoadedAgent, flag: str) -> RecurrentPolicy:
    """The agent's network, where it must be one of ours; `UserError` naming `flag` otherwise."""
    if isinstance(agent.policy, RecurrentPolicy):
        return agent.policy
    raise UserError(
        f"{flag} {agent.path}: its network, {type(agent.policy).__name__}, is not one of ours; an "
        "agent folder or a .pth of the reference system is expected"
    )


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
    return hash_weights(asdict(policy.config), policy.state_dict())


def _load_sb3(file: Path, device: torch.device | str) -> LoadedAgent:
    from agents.sb3_policy import load_sb3_policy  # an optional dependency, and slow to import

    found = finish_agent(load_sb3_policy(file), str(file), None, device)
    return LoadedAgent(found.policy, None, found.hash, file, found.env_steps)


def _load_from_code(
    reference: str, device: torch.device | str, environment: EnvironmentSpec | None
) -> LoadedAgent:
    parsed = None if reference.startswith(SB3_PREFIX) else parse_reference(reference)
    if parsed is None:
        raise UserError(
            f"{reference}: no such agent (expected an agent folder, a reference .pth, a .zip of "
            "sb3-contrib, or module:factory)"
        )
    found = finish_agent(make_agent(parsed, environment), reference, environment, device)
    return LoadedAgent(found.policy, None, found.hash, parsed.lasting, found.env_steps)


def _steps_in_name(path: Path) -> int:
    digits = re.search(r"model_(\d+)", path.name)
    return int(digits.group(1)) if digits else 0


def _load_folder(folder: Path, device: torch.device | str) -> LoadedAgent:
    description = _read_description(folder)
    network = description["network"]
    config = NetworkConfig(**{**network, "obs_shape": tuple(network["obs_shape"])})
    policy = _policy_with_weights(config, _read_weights(folder / WEIGHTS_FILE), folder)
    digest = hash_agent(policy)
    if digest != description["hash"]:
        raise UserError(f"{folder}: damaged agent; its weights do not have the recorded hash")
    environment = description["environment"]
    spec = EnvironmentSpec.from_dict(environment) if environment is not None else None
    return LoadedAgent(policy.to(device), spec, digest, folder, description["env_steps"])


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
    return policy.requires_grad_(False).eval()


def _import_reference(file: Path, device: torch.device | str) -> LoadedAgent:
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
    return LoadedAgent(policy.to(device), None, hash_agent(policy), file, _steps_in_name(file))


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
