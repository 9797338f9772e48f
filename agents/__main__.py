"""Agents at the command line: `python -m agents import|info`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import nn
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, subcommand

from agents.checkpoint import LoadedAgent, import_agent, load_agent
from agents.environment_match import environment_from_flags, require_fitting_agent
from agents.networks import RecurrentPolicy
from agents.protocol import Agent
from environments.factory import environment_name
from environments.protocol import EnvironmentSpec
from experiment.command_line import load_preset, parse_flags
from experiment.errors import UserError, run_entry_point

APPEARANCE = ("use_backgrounds", "restrict_themes", "use_monochrome_assets")
"""Options that change what a Procgen game looks like."""


@dataclass(frozen=True)
class EnvironmentFlags:
    """What an agent was trained in, where it does not say so itself."""

    env_name: str | None = None
    """A Procgen game, or gymnasium:ID."""
    distribution_mode: str | None = None
    """Procgen's difficulty (easy, hard, extreme, memory); by default that of PARAM_NAME."""
    param_name: str = "easy-200"
    """Preset of hyperparams/agents.yml; one of yours may give options of the environment."""
    use_backgrounds: bool = False
    """Whether it saw Procgen's background pictures."""
    restrict_themes: bool = False
    """Whether it saw one theme only."""
    use_monochrome_assets: bool = False
    """Whether it saw plain coloured shapes."""

    def __post_init__(self) -> None:
        named = [name for name in ("distribution_mode", *APPEARANCE) if getattr(self, name)]
        if self.env_name is None and named:
            raise UserError(f"--{named[0]}: says more of a game that --env_name names; give both")

    @property
    def environment(self) -> EnvironmentSpec | None:
        """What the flags name; None when they name none."""
        if self.env_name is None:
            return None
        options = load_preset("agents.yml", self.param_name).get("environment") or {}
        given = {name: True for name in APPEARANCE if getattr(self, name)}
        return environment_from_flags(self.env_name, self.distribution_mode, {**options, **given})


@dataclass(frozen=True)
class Import:
    """Turn a checkpoint of train-procgen-pytorch (.pth) into an agent folder. Code that may be
    pickled into the file is never run."""

    file: Positional[Path]
    """The .pth file, with `model_state_dict` in it."""
    out: Path
    """Folder to make; it must not exist."""
    played: EnvironmentFlags = EnvironmentFlags()
    """With --env_name the agent remembers its environment; commands then need no such flag."""


@dataclass(frozen=True)
class Info:
    """Print what an agent is. The code of module:factory is run, as everywhere."""

    agent: Positional[str]
    """Agent folder, .pth, .zip of sb3-contrib's RecurrentPPO, or module:factory."""
    played: EnvironmentFlags = EnvironmentFlags()
    """What a factory is told that asks for an environment."""


@dataclass(frozen=True)
class Config:
    """What to do with which agent."""

    task: OmitSubcommandPrefixes[
        OmitArgPrefixes[
            Annotated[Import, subcommand("import")] | Annotated[Info, subcommand("info")]
        ]
    ]


def main() -> None:
    """Entry point."""
    task = parse_flags(Config, "Look at agents, and import them from elsewhere.").task
    environment = task.played.environment
    if isinstance(task, Import):
        print(describe(import_checkpoint(task.file, task.out, environment)))
    else:
        print(describe(load_agent(task.agent, environment=environment)))


def import_checkpoint(file: Path, out: Path, environment: EnvironmentSpec | None) -> LoadedAgent:
    """Import, after a look whether the environment fits."""
    if environment is not None and file.is_file():
        require_fitting_agent(load_agent(file), environment)
    return import_agent(file, out, environment)


def describe(agent: LoadedAgent) -> str:
    """An agent in a few lines."""
    policy, environment = agent.policy, agent.environment
    hidden = policy.hidden_slice
    lines = {
        "agent": agent.reference,
        "network": describe_network(policy),
        "parameters": count_parameters(policy),
        "state": f"{policy.state_dim} numbers, of which analyses look at "
        f"{hidden.start} to {hidden.stop - 1}",
        "actions": policy.num_actions,
        "environment": "unknown" if environment is None else describe_environment(environment),
        "steps": agent.env_steps or "unknown",
        "hash": agent.hash,
    }
    return "\n".join(f"{name:<12} {value}" for name, value in lines.items())


def describe_network(policy: Agent) -> str:
    """What computes."""
    if not isinstance(policy, RecurrentPolicy):
        return type(policy).__name__
    network = policy.config
    memory = f"GRU of {network.num_features}" if network.recurrent else "no memory"
    frames = " × ".join(map(str, network.obs_shape))
    return (
        f"IMPALA of width {network.width:g}, {network.num_features} features, {memory}, "
        f"for frames {frames}"
    )


def describe_environment(environment: EnvironmentSpec) -> str:
    """Name and options."""
    options = ", ".join(f"{name} {value}" for name, value in environment.options.items())
    return environment_name(environment) + (f" ({options})" if options else "")


def count_parameters(policy: Agent) -> int | str:
    """Number of weights, where the agent is a module."""
    if not isinstance(policy, nn.Module):
        return "unknown"
    return sum(parameter.numel() for parameter in policy.parameters())


if __name__ == "__main__":
    run_entry_point(main)
