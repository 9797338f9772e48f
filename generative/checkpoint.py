"""What users load: a simulator as a folder of weights (safetensors) and a description (JSON)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from agents.checkpoint import LoadedAgent
from environments.protocol import EnvironmentSpec
from experiment.command_line import apply_values
from experiment.errors import UserError
from experiment.files import atomic_folder, hash_bytes, hash_file, read_json, write_json
from experiment.provenance import Provenance, to_plain
from generative.simulator import Simulator, SimulatorConfig, simulator_parameters

FORMAT = "dreamscope-simulator"
FORMAT_VERSION = 1
DESCRIPTION_NAME = "simulator.json"
WEIGHTS_NAME = "simulator.safetensors"


@dataclass(frozen=True)
class LoadedSimulator:
    """A simulator read from a folder, its agent inside."""

    simulator: Simulator
    """In evaluation mode."""
    environment: EnvironmentSpec
    """The environment it imitates."""
    hash: str
    """Hash of weights and description."""
    path: Path
    step: int
    """Training steps behind it."""


def save_simulator(
    folder: Path | str,
    simulator: Simulator,
    environment: EnvironmentSpec,
    agent_hash: str,
    provenance: Provenance | dict[str, Any],
    step: int,
) -> None:
    """Write the simulator atomically as `folder`; the agent is named by its hash, not included."""
    description = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "step": step,
        "agent_hash": agent_hash,
        "environment": environment.to_dict(),
        "config": to_plain(simulator.config),
        "provenance": to_plain(provenance),
    }
    weights = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in simulator_parameters(simulator).items()
    }
    with atomic_folder(folder) as temporary:
        (temporary / WEIGHTS_NAME).write_bytes(save(weights))
        write_json(temporary / DESCRIPTION_NAME, description)


def load_simulator(
    path: Path | str, agent: LoadedAgent, device: torch.device | str = "cpu"
) -> LoadedSimulator:
    """Read a simulator and put its agent inside.

    Raises:
        UserError: no simulator there, one of an unknown version, or one of another agent.
    """
    path = Path(path)
    description = read_description(path)
    if description["agent_hash"] != agent.hash:
        raise UserError(
            f"{path}: this simulator belongs to agent {description['agent_hash'][:12]}, "
            f"but {agent.path} is agent {agent.hash[:12]}"
        )
    config = apply_values(SimulatorConfig, description["config"], str(path / DESCRIPTION_NAME))
    environment = EnvironmentSpec.from_dict(description["environment"])
    simulator = Simulator(config, agent.policy, environment.obs_shape)
    load_weights(simulator, path)
    return LoadedSimulator(
        simulator=simulator.to(device).eval(),
        environment=environment,
        hash=simulator_hash(path),
        path=path,
        step=description["step"],
    )


def read_description(path: Path | str) -> dict[str, Any]:
    """The description of a saved simulator.

    Raises:
        UserError: `path` is not a simulator, or of an unknown version.
    """
    file = Path(path) / DESCRIPTION_NAME
    if not file.is_file():
        raise UserError(
            f"{path}: not a simulator (expected a folder made by train_gen_model.py, "
            f"with {DESCRIPTION_NAME} and {WEIGHTS_NAME})"
        )
    description = read_json(file)
    if description.get("format") != FORMAT:
        raise UserError(f"{file}: format {description.get('format')!r}, expected {FORMAT!r}")
    if description["version"] != FORMAT_VERSION:
        raise UserError(
            f"{file}: version {description['version']}, this code reads {FORMAT_VERSION}"
        )
    return description


def read_environment(path: Path | str) -> EnvironmentSpec:
    """The environment that a saved simulator imitates; raises as `read_description`."""
    return EnvironmentSpec.from_dict(read_description(path)["environment"])


def read_num_parameters(path: Path | str) -> int:
    """Number of a saved simulator's own parameters."""
    return sum(weight.numel() for weight in load_file(Path(path) / WEIGHTS_NAME).values())


def load_weights(simulator: Simulator, path: Path | str) -> None:
    """Replace the simulator's weights by saved ones of the same sizes.

    Raises:
        UserError: unreadable weights, or of another architecture.
    """
    file = Path(path) / WEIGHTS_NAME
    try:
        weights = load_file(file)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{file}: not readable ({error})") from None
    own = simulator_parameters(simulator)
    different = own.keys() ^ weights.keys() or {
        name for name in own if own[name].shape != weights[name].shape
    }
    if different:
        raise UserError(
            f"{file}: weights of another architecture (differs in {sorted(different)[0]}); "
            "choose the preset it was trained with"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def simulator_hash(path: Path | str) -> str:
    """Hash of a saved simulator's weights and description."""
    path = Path(path)
    parts = (hash_file(path / WEIGHTS_NAME), hash_file(path / DESCRIPTION_NAME))
    return hash_bytes(*(part.encode() for part in parts))


def newest_simulator(exp_name: str, results: Path | str = "generative/results") -> Path:
    """The most recently saved simulator of an experiment, `<results>/<exp_name>/*/model_<step>`.

    Raises:
        UserError: there is none.
    """
    folder = Path(results) / exp_name
    found = [file.parent for file in folder.glob(f"*/model_*/{DESCRIPTION_NAME}")]
    if not found:
        raise UserError(f"--model_file: no simulator in {folder}; train one or name one")
    return max(found, key=lambda path: ((path / DESCRIPTION_NAME).stat().st_mtime_ns, path.name))
