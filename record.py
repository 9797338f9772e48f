"""Let an agent play and keep its rollouts."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from agents.checkpoint import load_agent, newest_agent
from agents.environment_match import DEFAULT_ENV_NAME, environment_of_agent
from agents.recorder import RecordingConfig, record_episodes
from environments.factory import require_levels
from experiment.command_line import parse_command_line
from experiment.devices import resolve_device
from experiment.errors import run_entry_point
from experiment.files import require_writable_folder
from experiment.report import stage_report


@dataclass(frozen=True)
class RecordConfig:
    """Flags of `record.py`."""

    exp_name: str = "test"
    """Name of the training whose newest agent is taken when no --model_file is given."""
    env_name: str | None = None
    """Game to play; by default the agent's own. Another game than the agent's is refused."""
    model_file: Path | None = None
    """The agent: a folder of ours or a reference .pth; by default the newest of
    logs/procgen/ENV_NAME/EXP_NAME/."""
    distribution_mode: str | None = None
    """Procgen's difficulty (easy, hard, extreme, memory); by default the agent's own."""
    param_name: str = "easy-200"
    """Preset of hyperparams/agents.yml whose environment options serve an agent that does not
    know its own, as imported reference agents."""
    interpreting_params_name: str = "defaults"
    """Preset of hyperparams/recording.yml: defaults (full size), demo, tiny."""
    logdir: Path = Path(".")
    """The dataset goes to LOGDIR/data/; a dataset that is there already is continued."""
    data_dir: Path | None = None
    """Dataset folder, in place of LOGDIR/data/."""
    device: str = "auto"
    """Where the network runs: auto, cpu, gpu, cuda, cuda:N."""
    gpu_device: int = 0
    """Which CUDA device `--device gpu` means."""
    recording: Annotated[RecordingConfig, tyro.conf.arg(name="")] = field(
        default_factory=RecordingConfig
    )
    """How much to record, where, and how the agent acts."""
    report: Path | None = None
    """Write seconds, outputs and metrics to this JSON file."""
    log_level: int = 40
    """Without effect; accepted because the reference system has it."""
    num_checkpoints: int = 1
    """Without effect when recording; accepted because the reference system has it."""


def main() -> None:
    """Record until the dataset has the episodes asked for."""
    config = parse_command_line(
        RecordConfig,
        "Let an agent play and keep its rollouts: frames, hidden states, action logits, values, "
        "actions and rewards of every decision.",
        preset_flag="interpreting_params_name",
        preset_file="recording.yml",
    )
    device = resolve_device(config.device, config.gpu_device)
    model_file = config.model_file or newest_agent(
        config.env_name or DEFAULT_ENV_NAME, config.exp_name
    )
    agent = load_agent(model_file, device)
    environment = environment_of_agent(
        agent, config.env_name, config.distribution_mode, config.param_name
    )
    require_levels(environment, config.recording.start_level, config.recording.num_levels)
    flag = "--logdir" if config.data_dir is None else "--data_dir"
    folder = require_writable_folder(config.data_dir or config.logdir / "data", flag)
    with stage_report("record", config.report) as report:
        summary = record_episodes(agent, environment, folder, config.recording, device)
        report.outputs.append(str(folder))
        report.metrics.update(asdict(summary))


if __name__ == "__main__":
    run_entry_point(main)
