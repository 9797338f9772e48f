"""Watch an agent play: one video per episode."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from agents.renderer import RenderingConfig, render_episodes
from agents.selection import AgentFlags, select_agent
from agents.viewer import LiveWindow
from experiment.command_line import parse_flags
from experiment.errors import run_entry_point
from experiment.files import require_writable_folder
from experiment.report import stage_report


@dataclass(frozen=True)
class RenderConfig:
    """Flags of `render.py`."""

    who: Annotated[AgentFlags, tyro.conf.arg(name="")] = field(default_factory=AgentFlags)
    """Who plays what, and where the network runs."""
    vid_dir: Path | None = None
    """Folder for the videos; by default logs/rendered/."""
    rendering: Annotated[RenderingConfig, tyro.conf.arg(name="")] = field(
        default_factory=RenderingConfig
    )
    """What to show."""
    report: Path | None = None
    """Write seconds, outputs and metrics to this JSON file."""


def main() -> None:
    """Render the episodes asked for."""
    config = parse_flags(
        RenderConfig,
        "Watch an agent play: one video per episode, what the agent sees beside the same scene "
        "in high resolution, with its action, value and reward.",
    )
    window = LiveWindow("render.py", config.rendering.tps) if config.rendering.view else None
    selection = select_agent(config.who, config.rendering.start_level, config.rendering.num_levels)
    folder = require_writable_folder(config.vid_dir or Path("logs/rendered"), "--vid_dir")
    with stage_report("render", config.report) as report:
        rendering = render_episodes(
            selection.agent,
            selection.environment,
            folder,
            config.rendering,
            selection.device,
            window,
        )
        episodes = list(
            tqdm(rendering, total=config.rendering.num_eps, unit="episode", disable=None)
        )
        report.outputs.append(str(folder))
        report.metrics["episodes"] = len(episodes)
        report.metrics["steps"] = sum(episode.num_steps for episode in episodes)
        report.metrics["mean_return"] = float(np.mean([e.episode_return for e in episodes]))


if __name__ == "__main__":
    run_entry_point(main)
