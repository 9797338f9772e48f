"""The flags by which a command that plays chooses its agent and the environment."""

from dataclasses import dataclass

import torch

from agents.checkpoint import LoadedAgent, load_agent, newest_agent
from agents.environment_match import (
    DEFAULT_ENV_NAME,
    environment_from_flags,
    environment_of_agent,
)
from agents.foreign import names_code
from environments.factory import require_levels
from environments.protocol import EnvironmentSpec
from experiment.command_line import load_preset
from experiment.devices import resolve_device


@dataclass(frozen=True)
class AgentFlags:
    """Who plays what, and where the network runs."""

    exp_name: str = "test"
    """Name of the training whose newest agent is taken when no --model_file is given."""
    env_name: str | None = None
    """Game to play; by default the agent's own. Another game than the agent's is refused."""
    model_file: str | None = None
    """The agent: a folder of ours, a reference .pth, a .zip of sb3-contrib's RecurrentPPO, or
    module:factory (docs/agents.md); by default the newest of logs/procgen/ENV_NAME/EXP_NAME/."""
    distribution_mode: str | None = None
    """Procgen's difficulty (easy, hard, extreme, memory); by default the agent's own."""
    param_name: str = "easy-200"
    """Preset of hyperparams/agents.yml whose environment options serve an agent that does not
    know its own, as imported reference agents."""
    device: str = "auto"
    """Where the network runs: auto, cpu, gpu, cuda, cuda:N."""
    gpu_device: int = 0
    """Which CUDA device `--device gpu` means."""
    log_level: int = 40
    """Without effect; accepted because the reference system has it."""
    num_checkpoints: int = 1
    """Without effect, since nothing is trained; accepted because the reference system has it."""


@dataclass(frozen=True)
class Selection:
    """What `AgentFlags` stand for."""

    agent: LoadedAgent
    environment: EnvironmentSpec
    device: torch.device


def select_agent(flags: AgentFlags, start_level: int, num_levels: int) -> Selection:
    """Load the agent that is asked for and match it with an environment that has the levels.

    Raises:
        UserError: an unknown preset, device, agent or environment, or two that do not fit.
    """
    options = load_preset("agents.yml", flags.param_name).get("environment") or {}
    device = resolve_device(flags.device, flags.gpu_device)
    model_file = flags.model_file or newest_agent(
        flags.env_name or DEFAULT_ENV_NAME, flags.exp_name
    )
    played_in = None
    if names_code(str(model_file)):
        played_in = environment_from_flags(flags.env_name, flags.distribution_mode, options)
    agent = load_agent(model_file, device, played_in)
    environment = environment_of_agent(agent, flags.env_name, flags.distribution_mode, options)
    require_levels(environment, start_level, num_levels)
    return Selection(agent, environment, device)
