"""Let an agent play and keep its rollouts, or what might have happened instead."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from agents.branching import BranchConfig, BranchPlan, check_branches, record_branches
from agents.checkpoint import LoadedAgent, load_chosen_agent
from agents.intervening import UNTOUCHED, Intervening
from agents.intervention_choice import load_intervention
from agents.intervention_strength import write_strength
from agents.recorder import RecordingSummary, check_recording, record_episodes
from agents.recording_config import RecordingConfig, apply_slurm_defaults
from agents.selection import AgentFlags, select_agent
from environments.factory import environment_name
from environments.protocol import EnvironmentSpec
from experiment.command_line import parse_command_line
from experiment.devices import resolve_device
from experiment.errors import UserError, require_at_least, run_entry_point
from experiment.files import require_writable_folder
from experiment.report import stage_report
from projections.intervention_flags import (
    InterventionConfig,
    require_steps_within,
    twin_folder,
)
from rollouts.episode_videos import write_episode_videos
from rollouts.store import RolloutDataset


@dataclass(frozen=True)
class RecordConfig:
    """Flags of `record.py`."""

    who: Annotated[AgentFlags, tyro.conf.arg(name="")] = field(default_factory=AgentFlags)
    """Who plays what, and where the network runs."""
    interpreting_params_name: str = "defaults"
    """Preset of hyperparams/recording.yml: defaults (full size), demo, tiny."""
    logdir: Path = Path(".")
    """The dataset goes to LOGDIR/data/, one of branches to LOGDIR/branches/; a dataset that is
    there already is continued."""
    data_dir: Path | None = None
    """Dataset folder, in place of that in LOGDIR."""
    recording: Annotated[RecordingConfig, tyro.conf.arg(name="")] = field(
        default_factory=RecordingConfig
    )
    """How much to record, where, and how the agent acts."""
    branch: Annotated[BranchConfig, tyro.conf.arg(name="")] = field(default_factory=BranchConfig)
    """Record other continuations of recorded episodes."""
    intervention: Annotated[InterventionConfig, tyro.conf.arg(name="")] = field(
        default_factory=InterventionConfig
    )
    """Interventions on the agent's hidden state."""
    num_videos: int = 0
    """Also write the episodes with ids below this number as MP4, to DATA_DIR/videos/, once the
    recording is complete."""
    report: Path | None = None
    """Write seconds, outputs and metrics to this JSON file."""

    def __post_init__(self) -> None:
        require_at_least(self, "num_videos", least=0)

    @property
    def output_folder(self) -> Path:
        """Where the dataset goes."""
        name = "data" if self.branch.branch_from is None else "branches"
        return self.data_dir or self.logdir / name


@dataclass(frozen=True, eq=False)
class Task:
    """What the flags ask for, loaded."""

    agent: LoadedAgent
    device: torch.device
    check: Callable[[Path, Intervening], None]
    """Raises `UserError` for what cannot be recorded to the folder."""
    record: Callable[[Path, Intervening], RecordingSummary]


def make_episode_task(config: RecordConfig, recording: RecordingConfig) -> Task:
    """Play new episodes."""
    chosen = select_agent(config.who, recording.start_level, recording.num_levels)
    who = (chosen.agent, chosen.environment)
    _require_drawable(config, chosen.environment)
    return Task(
        chosen.agent,
        chosen.device,
        lambda folder, how: check_recording(*who, folder, recording, how),
        lambda folder, how: record_episodes(*who, folder, recording, chosen.device, how),
    )


def make_branch_task(config: RecordConfig, recording: RecordingConfig, source: Path) -> Task:
    """Go on with recorded episodes; agent and environment are those of the dataset `source`."""
    device = resolve_device(config.who.device, config.who.gpu_device)
    dataset = RolloutDataset(source)
    environment = dataset.metadata.environment
    _require_same_environment(config.who, environment, source)
    _require_drawable(config, environment)
    recorded, named = dataset.metadata.agent_file, f"--branch_from {source}"
    agent = load_chosen_agent(
        config.who.model_file, recorded, named, environment, device, flag="--model_file"
    )

    def plan(how: Intervening) -> BranchPlan:
        return BranchPlan(agent, dataset, config.branch, recording, how)

    return Task(
        agent,
        device,
        lambda folder, how: check_branches(plan(how), folder),
        lambda folder, how: record_branches(plan(how), folder, device),
    )


def _require_drawable(config: RecordConfig, environment: EnvironmentSpec) -> None:
    if config.num_videos > 0:
        environment.require_images("--num_videos")


def _require_same_environment(who: AgentFlags, recorded: EnvironmentSpec, source: Path) -> None:
    for flag, asked, found in (
        ("env_name", who.env_name, environment_name(recorded)),
        ("distribution_mode", who.distribution_mode, recorded.options.get("distribution_mode")),
    ):
        if asked not in (None, found):
            raise UserError(f"--{flag} {asked}: --branch_from {source} was recorded with {found}")


def _with_shard_of_array(recording: RecordingConfig, source: Path | None) -> RecordingConfig:
    """A task of a job array records its part of the episodes, but all branches it is asked for."""
    if source is None:
        return apply_slurm_defaults(recording, os.environ)
    if "SLURM_ARRAY_TASK_ID" in os.environ and recording.num_shards is None:
        print(
            "in a task of a job array: recording all these branches; "
            "--shard_index and --num_shards would divide them among the tasks"
        )
    return recording


def main() -> None:
    """Record until the dataset has what was asked for, and its unmodified twin where it has one."""
    config = parse_command_line(
        RecordConfig,
        "Let an agent play and keep its rollouts: frames, hidden states, action logits, values, "
        "actions and rewards of every decision. With --branch_from, keep other continuations of "
        "recorded episodes.",
        preset_flag="interpreting_params_name",
        preset_file="recording.yml",
    )
    source = config.branch.branch_from
    recording = _with_shard_of_array(config.recording, source)
    share, folder = recording.share, config.output_folder
    if source is None:
        task = make_episode_task(config, recording)
    else:
        task = make_branch_task(config, recording, source)
    recordings = {folder: UNTOUCHED}
    intervention = load_intervention(config.intervention, task.agent, task.device)
    if intervention is not None:
        limit = config.branch.branch_steps
        require_steps_within(config.intervention, limit, f"--branch_steps {limit}")
        twin = twin_folder(folder)
        recordings = {folder: Intervening(intervention, twin.name), twin: UNTOUCHED}
    for destination, intervening in recordings.items():
        task.check(destination, intervening)
        require_writable_folder(
            destination, "--logdir" if config.data_dir is None else "--data_dir"
        )
    if share.count > 1:
        print(f"recording shard {share.index} of {share.count} (counted from 0)")
    with stage_report("record", config.report) as report:
        for destination, intervening in recordings.items():
            summary = task.record(destination, intervening)
            write_episode_videos(destination, share.episode_ids(config.num_videos))
            report.outputs.append(str(destination))
            metrics = asdict(summary)
            report.metrics.update(metrics if destination == folder else {"twin": metrics})
        if intervention is not None:
            strength = write_strength(task.agent.policy, folder, task.device)
            report.metrics["intervention"] = asdict(strength)


if __name__ == "__main__":
    run_entry_point(main)
