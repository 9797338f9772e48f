"""The card of a trained agent: how it was made, and how well it plays levels it never saw."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.checkpoint import LoadedAgent
from agents.evaluation import evaluate, held_out_levels
from agents.protocol import Agent
from agents.scripted import RUN_RIGHT_AND_JUMP, run_right_and_jump
from environments.factory import make_environment_from_spec
from environments.protocol import EnvironmentSpec
from experiment.progress import Progress

NUM_SLOTS = 64
NUM_RESAMPLES = 10_000

PUBLISHED_RETURNS = {
    "easy": "9.07 ± 0.33 after 25M steps",
    "hard": "8.35 ± 0.40 after 80M steps",
}
"""CoinRun, all levels: the feed-forward IMPALA agent that came with Procgen (Cobbe et al.,
"Leveraging Procedural Generation to Benchmark Reinforcement Learning", 2020), three seeds, trained
with backgrounds."""


@dataclass(frozen=True)
class MeanWithInterval:
    """A mean over levels and its 95% interval from resampling levels."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class PlayingRecord:
    """How one policy played the held-out levels."""

    policy: str
    mean_return: MeanWithInterval
    difference: MeanWithInterval | None
    """The agent's return minus this policy's on the same levels; None for the agent itself."""
    mean_length: float
    """Decisions per episode."""


@dataclass(frozen=True)
class AgentCard:
    """What is to be known of a trained agent."""

    command: str
    code_version: str
    """Of the process that ended the training."""
    env_steps: int
    seed: int
    wall_hours: float
    machine: str
    """What the training ran on, in words."""
    environment: EnvironmentSpec
    num_parameters: int
    agent_hash: str
    num_evaluations: int
    """How often held-out levels were played during the training: points of their curve."""
    num_levels: int
    """Held-out levels, each played once by each policy."""
    records: tuple[PlayingRecord, ...]
    """The agent with sampled actions first."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def bootstrap_mean(values: NDArray[np.float64], seed: int = 0) -> MeanWithInterval:
    """Percentile bootstrap of the mean of (L,) values, one per level."""
    random = np.random.default_rng(seed)
    counts = random.multinomial(len(values), np.full(len(values), 1 / len(values)), NUM_RESAMPLES)
    low, high = np.percentile(counts @ values / len(values), [2.5, 97.5])
    return MeanWithInterval(float(values.mean()), float(low), float(high))


def measure_playing(
    agent: LoadedAgent, environment: EnvironmentSpec, num_levels: int, seed: int
) -> tuple[PlayingRecord, ...]:
    """Let the agent, a random policy and, where its action exists, a script play held-out levels.

    Args:
        agent: plays with sampled actions.
        environment: options of the game.
        num_levels: held-out levels, each played exactly once by each policy.
        seed: keys the draws of actions and the resampling of levels.
    """
    policies: dict[str, Agent | None] = {
        "agent": agent.policy,
        "random actions": None,
    }
    if RUN_RIGHT_AND_JUMP in environment.action_names:
        policies["script: run right and jump"] = run_right_and_jump(environment)
    levels = held_out_levels(num_levels)
    vector = make_environment_from_spec(environment, min(NUM_SLOTS, num_levels), seed)
    evaluations = {}
    with Progress(len(policies), "policy") as progress:
        for name, policy in policies.items():
            evaluations[name] = evaluate(policy, vector, levels, seed)
            progress.advance(f"{name}: return {evaluations[name].returns.mean():.2f}")
    vector.close()
    own = evaluations["agent"].returns
    return tuple(
        PlayingRecord(
            policy=name,
            mean_return=bootstrap_mean(evaluation.returns, seed),
            difference=None if name == "agent" else bootstrap_mean(own - evaluation.returns, seed),
            mean_length=float(evaluation.lengths.mean()),
        )
        for name, evaluation in evaluations.items()
    )


def portable_provenance(
    provenance: Mapping[str, Any], machine_settings: tuple[str, ...]
) -> dict[str, Any]:
    """Provenance without what holds on one machine only: folders, files, threads.

    Args:
        provenance: of a training.
        machine_settings: names of such settings; a dotted one is `section.name`.
    """
    config = dict(provenance["config"])
    for setting in machine_settings:
        section, _, name = setting.rpartition(".")
        if section:
            config[section] = {k: v for k, v in config[section].items() if k != name}
        else:
            config.pop(name, None)
    command = _without_flags(provenance["command"], machine_settings)
    return {**provenance, "config": config, "command": command}


def _without_flags(command: list[str], settings: tuple[str, ...]) -> list[str]:
    """The command line less the settings: `--name value`, `--name=value`, `--name`, `--no-name`."""
    names = {setting.rpartition(".")[2] for setting in settings}
    kept: list[str] = []
    is_dropped = False
    for word in command:
        if word.startswith("--"):
            flag = word.partition("=")[0].removeprefix("--").replace("-", "_")
            is_dropped = flag.removeprefix("no_") in names
        if not is_dropped:
            kept.append(word)
    return kept


def _describe_code(version: str) -> str:
    commit, separator, _ = version.partition("+changes")
    changes = ", with changes that were not committed then; agent.json holds all settings"
    return f"`{commit[:12]}`{changes if separator else ''}"


def _describe_curve(num_evaluations: int) -> str:
    shown = (
        "Mean and standard deviation of the return during training, over the episodes on training "
        "levels that ended last"
    )
    if num_evaluations == 0:
        return f"{shown}. Held-out levels were not played then, only afterwards, for the table."
    return f"{shown},\nand over the held-out levels that were played {num_evaluations} times."


def render_card(name: str, card: AgentCard) -> str:
    """The card as Markdown; beside it lie `curve.png` and `curve.csv`."""
    options = ", ".join(f"{key} {value}" for key, value in card.environment.options.items())
    rows = [
        f"| {record.policy} | {record.mean_return} "
        f"| {record.difference or ''} | {record.mean_length:.0f} |"
        for record in card.records
    ]
    if card.environment.name == "coinrun":
        published = "published PPO agent, trained with backgrounds (Cobbe et al. 2020)"
        rows += [f"| {published}, {m} | {told} | | |" for m, told in PUBLISHED_RETURNS.items()]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A recurrent PPO agent for {card.environment.name} ({options}).",
            "",
            "| | |",
            "| --- | --- |",
            f"| command | `{card.command}` |",
            f"| code | {_describe_code(card.code_version)} |",
            f"| environment steps | {card.env_steps:,} |",
            f"| seed | {card.seed} |",
            f"| wall time | {card.wall_hours:.1f} h{card.machine and f', {card.machine}'} |",
            f"| parameters | {card.num_parameters:,} |",
            f"| hash | `{card.agent_hash}` |",
            "",
            f"Mean return on {card.num_levels:,} held-out levels, each played once with sampled "
            "actions,",
            "and 95% intervals from resampling levels:",
            "",
            "| policy | mean return | the agent's return less this one's | decisions per episode |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "![Return during training](curve.png)",
            "",
            _describe_curve(card.num_evaluations),
            "",
        ]
    )
