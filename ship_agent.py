"""Make an asset of a trained agent: weights, card, training curve."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agents.card import AgentCard, measure_playing, portable_provenance, render_card
from agents.checkpoint import (
    DESCRIPTION_FILE,
    LoadedAgent,
    load_agent,
    require_recurrent_policy,
    save_agent,
)
from agents.training_config import OPERATIONAL
from environments.protocol import EnvironmentSpec
from experiment.command_line import parse_flags
from experiment.errors import UserError, require_at_least, run_entry_point
from experiment.files import (
    atomic_folder,
    read_json,
    require_small,
    require_writable_folder,
    write_json,
)
from experiment.report import stage_report
from experiment.runs import LOG_FILE, PROVENANCE_FILE
from plot_training_csv import read_log, write_curve

DESCRIPTION = """Make an asset of a trained agent: a folder with its weights, its description, its
training curve (CSV and PNG) and a card (README.md, card.json), which tells how it was trained and
how it plays held-out levels beside random actions and a script."""

MAX_BYTES = 5_000_000
"""An asset is part of every clone."""


@dataclass(frozen=True)
class ShipConfig:
    """What to ship, and where to."""

    run_dir: Path
    """Run folder of train.py."""
    out: Path
    """Folder of the asset, e.g. assets/agents/NAME; replaced as a whole if it is there."""
    machine: str = ""
    """What the training ran on, in words, for the card."""
    model_file: Path | None = None
    """Agent folder of that run; by default the one with the most steps."""
    num_levels: int = 1000
    """Held-out levels that the agent, random actions and the script play once each."""
    seed: int = 0
    """Keys the actions drawn and the resampling of levels."""
    report: Path | None = None
    """File for a JSON report of seconds, outputs and metrics."""


def ship(config: ShipConfig) -> dict[str, Any]:
    """Measure the agent and write the asset; returns the figures of the card.

    Raises:
        UserError: no training there, or an agent that does not belong to it.
    """
    require_at_least(config, "num_levels")
    require_writable_folder(config.out.absolute().parent, "--out")
    folder = config.model_file or _last_agent(config.run_dir)
    agent, log = load_agent(folder), read_log(config.run_dir)
    description = read_json(folder / DESCRIPTION_FILE)
    if agent.environment is None or agent.env_steps not in set(log["timesteps"]):
        raise UserError(f"{folder}: not an agent of the training {config.run_dir}")
    log = log.loc[np.asarray(log["timesteps"]) <= agent.env_steps, :]
    # What began the training says how to repeat it; a process that went on says --resume.
    command = read_json(config.run_dir / PROVENANCE_FILE)[0]["command"]
    provenance = portable_provenance({**description["provenance"], "command": command}, OPERATIONAL)
    policy = require_recurrent_policy(agent, "--model_file")
    card = make_card(config, agent, agent.environment, log, provenance)
    with atomic_folder(config.out) as temporary:
        save_agent(temporary / "agent", policy, agent.environment, provenance, card.env_steps)
        for file in (temporary / "agent").iterdir():
            file.rename(temporary / file.name)
        (temporary / "agent").rmdir()
        write_curve(temporary, log)
        write_json(temporary / "card.json", card.to_dict())
        (temporary / "README.md").write_text(render_card(config.out.absolute().name, card))
        require_small(temporary, MAX_BYTES, "--run_dir")
    return card.to_dict()


def make_card(
    config: ShipConfig,
    agent: LoadedAgent,
    environment: EnvironmentSpec,
    log: pd.DataFrame,
    provenance: dict[str, Any],
) -> AgentCard:
    """Let the agent play, and gather what else the card tells."""
    policy = require_recurrent_policy(agent, "--model_file")
    return AgentCard(
        command=shlex.join(["python", *provenance["command"]]),
        code_version=provenance["code_version"],
        env_steps=agent.env_steps,
        seed=provenance["seed"],
        wall_hours=round(float(log["wall_time"].iloc[-1]) / 3600, 2),
        machine=config.machine,
        environment=environment,
        num_parameters=sum(weight.numel() for weight in policy.parameters()),
        agent_hash=agent.hash,
        num_evaluations=_num_evaluations(log),
        num_levels=config.num_levels,
        records=measure_playing(agent, environment, config.num_levels, config.seed),
    )


def _num_evaluations(log: pd.DataFrame) -> int:
    # A column without any number is not read.
    held_out = "val_mean_episode_rewards"
    return int(np.isfinite(log[held_out]).sum()) if held_out in log else 0


def _last_agent(run: Path) -> Path:
    agents = [file.parent for file in run.glob(f"model_*/{DESCRIPTION_FILE}")]
    if not agents or not (run / LOG_FILE).is_file():
        raise UserError(f"--run_dir {run}: no run of train.py that has saved an agent")
    return max(agents, key=lambda path: read_json(path / DESCRIPTION_FILE)["env_steps"])


def main() -> None:
    """Parse the command line, measure, write."""
    config = parse_flags(ShipConfig, DESCRIPTION)
    with stage_report("ship_agent", config.report) as report:
        card = ship(config)
        report.outputs.append(str(config.out))
        report.metrics["records"] = card["records"]
        print((config.out / "README.md").read_text())


if __name__ == "__main__":
    run_entry_point(main)
