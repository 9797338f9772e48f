"""Watch an agent play: one video per episode."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from agents.checkpoint import load_agent, newest_agent
from agents.environment_match import DEFAULT_ENV_NAME, environment_of_agent
from agents.renderer import RenderingConfig, render_episodes
from experiment.command_line import parse_flags
from experiment.devices import resolve_device
from experiment.errors import run_entry_point
from experiment.files import require_writable_folder
from experiment.report import stage_report


@dataclass(frozen=True)
class RenderConfig:
    """Flags of `render.py`."""

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
    vid_dir: Path | None = None
    """Folder for the videos; by default logs/rendered/."""
    device: str = "auto"
    """Where the network runs: auto, cpu, gpu, cuda, cuda:N."""
    gpu_device: int = 0
    """Which CUDA device `--device gpu` means."""
    rendering: Annotated[RenderingConfig, tyro.conf.arg(name="")] = field(
        default_factory=RenderingConfig
    )
    """What to show."""
    report: Path | None = None
    """Write seconds, outputs and metrics to this JSON file."""
    log_level: int = 40
    """Without effect; accepted because the reference system has it."""
    num_checkpoints: int = 1
    """Without effect when rendering; accepted because the reference system has it."""


def main() -> None:
    """Render the episodes asked for."""
    config = parse_flags(
        RenderConfig,
        "Watch an agent play: one video per episode, what the agent sees beside the same scene "
        "in high resolution, with its action, value and reward.",
    )
    device = resolve_device(config.device, config.gpu_device)
    model_file = config.model_file or newest_agent(
        config.env_name or DEFAULT_ENV_NAME, config.exp_name
    )
    agent = load_agent(model_file, device)
    environment = environment_of_agent(
        agent, config.env_name, config.distribution_mode, config.param_name
    )
    folder = require_writable_folder(config.vid_dir or Path("logs/rendered"), "--vid_dir")
    with stage_report("render", config.report) as report:
        rendering = render_episodes(agent, environment, folder, config.rendering, device)
        episodes = list(
            tqdm(rendering, total=config.rendering.num_eps, unit="episode", disable=None)
        )
        report.outputs.append(str(folder))
        report.metrics["episodes"] = len(episodes)
        report.metrics["steps"] = sum(episode.num_steps for episode in episodes)
        report.metrics["mean_return"] = float(np.mean([e.episode_return for e in episodes]))


if __name__ == "__main__":
    run_entry_point(main)
