"""Let an agent play and keep its rollouts."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from agents.recorder import record_episodes
from agents.recording_config import RecordingConfig, apply_slurm_defaults
from agents.selection import AgentFlags, select_agent
from experiment.command_line import parse_command_line
from experiment.errors import run_entry_point
from experiment.files import require_writable_folder
from experiment.report import stage_report


@dataclass(frozen=True)
class RecordConfig:
    """Flags of `record.py`."""

    who: Annotated[AgentFlags, tyro.conf.arg(name="")] = field(default_factory=AgentFlags)
    """Who plays what, and where the network runs."""
    interpreting_params_name: str = "defaults"
    """Preset of hyperparams/recording.yml: defaults (full size), demo, tiny."""
    logdir: Path = Path(".")
    """The dataset goes to LOGDIR/data/; a dataset that is there already is continued."""
    data_dir: Path | None = None
    """Dataset folder, in place of LOGDIR/data/."""
    recording: Annotated[RecordingConfig, tyro.conf.arg(name="")] = field(
        default_factory=RecordingConfig
    )
    """How much to record, where, and how the agent acts."""
    report: Path | None = None
    """Write seconds, outputs and metrics to this JSON file."""


def main() -> None:
    """Record until the dataset has the episodes asked for."""
    config = parse_command_line(
        RecordConfig,
        "Let an agent play and keep its rollouts: frames, hidden states, action logits, values, "
        "actions and rewards of every decision.",
        preset_flag="interpreting_params_name",
        preset_file="recording.yml",
    )
    recording = apply_slurm_defaults(config.recording, os.environ)
    share = recording.share
    selection = select_agent(config.who, recording.start_level, recording.num_levels)
    flag = "--logdir" if config.data_dir is None else "--data_dir"
    folder = require_writable_folder(config.data_dir or config.logdir / "data", flag)
    if share.count > 1:
        print(f"recording shard {share.index} of {share.count} (counted from 0)")
    with stage_report("record", config.report) as report:
        summary = record_episodes(
            selection.agent, selection.environment, folder, recording, selection.device
        )
        report.outputs.append(str(folder))
        report.metrics.update(asdict(summary))


if __name__ == "__main__":
    run_entry_point(main)
