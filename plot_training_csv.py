"""Draw the log of a training run: the agent's, or the simulator's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiment.command_line import parse_flags
from experiment.errors import UserError, run_entry_point
from experiment.files import atomic_file
from experiment.report import stage_report

DESCRIPTION = """Draw DIR/log.csv into DIR/plot.png, one panel per quantity, and
DIR/plot_for_fig.png, the main curve alone: mean return on training and on held-out levels with
standard errors for an agent, the total loss for a simulator."""

EPISODES_BEHIND_A_ROW = 40
"""Training statistics are taken over the last so many episodes."""
PANEL_WIDTH, PANEL_HEIGHT, PANELS_PER_ROW = 4.6, 3.0, 3
NOT_PLOTTED = ("wall_time", "num_episodes", "num_episodes_val")
_TRAINING_STYLE = {"label": "training levels", "color": "C0"}
_HELD_OUT_STYLE = {"label": "held-out levels", "color": "C1", "marker": "o"}
LABELS = {
    "timesteps": "environment steps",
    "episode_rewards": "return per episode",
    "episode_len": "episode length in decisions",
    "mean_episode_value": "mean value estimate",
    "mean_policy_loss": "policy loss",
    "mean_value_loss": "value loss",
    "mean_entropy_loss": "policy entropy in nats",
}


@dataclass(frozen=True)
class PlotConfig:
    """Where the log is."""

    datapath: Path
    """Run folder that holds log.csv; the figures go there too."""
    report: Path | None = None
    """File for a JSON report of seconds and outputs."""


def read_log(folder: Path) -> pd.DataFrame:
    """Read the numeric columns of `folder/log.csv`; the first one is the x axis.

    Raises:
        UserError: no log, an empty one, or one without numbers.
    """
    file = folder / "log.csv"
    try:
        log = pd.read_csv(file)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--datapath {folder}: no log.csv there") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a table of numbers ({error})") from None
    numeric = log.select_dtypes("number").dropna(axis="columns", how="all")
    if numeric.empty or len(numeric.columns) < 2:
        raise UserError(f"{file}: no rows of numbers to draw yet")
    return numeric


def plot_log(folder: Path) -> list[Path]:
    """Draw both figures; returns their paths."""
    log = read_log(folder)
    figures = {"plot.png": draw_overview(log), "plot_for_fig.png": draw_main_curve(log)}
    paths = []
    for name, figure in figures.items():
        with atomic_file(folder / name) as temporary:
            figure.savefig(temporary, dpi=130)
        plt.close(figure)
        paths.append(folder / name)
    return paths


def draw_overview(log: pd.DataFrame) -> Figure:
    """One panel per quantity, each with its own axis; train and held-out share a panel."""
    x, *columns = map(str, log.columns)
    quantities = [quantity for quantity in _quantities(columns) if quantity not in NOT_PLOTTED]
    num_columns = min(PANELS_PER_ROW, len(quantities))
    num_rows = -(-len(quantities) // num_columns)
    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        figsize=(PANEL_WIDTH * num_columns, PANEL_HEIGHT * num_rows),
        squeeze=False,
        layout="constrained",
    )
    for axis, quantity in zip(axes.flat, quantities, strict=False):
        _draw_quantity(axis, log, quantity)
        axis.set_xlabel(LABELS.get(x, x))
    for axis in axes.flat[len(quantities) :]:
        axis.set_visible(False)
    return figure


def draw_main_curve(log: pd.DataFrame) -> Figure:
    """The curve that a report shows."""
    x, *columns = map(str, log.columns)
    losses = [name for name in columns if "loss" in name]
    candidates = ["episode_rewards"] if "mean_episode_rewards" in columns else []
    main = [*candidates, *(name for name in losses if "total" in name), *losses, *columns][0]
    figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    _draw_quantity(axis, log, main)
    axis.set_xlabel(LABELS.get(x, x))
    return figure


def _quantities(columns: Sequence[str]) -> list[str]:
    """Columns, those of episodes gathered under `episode_rewards` and `episode_len`."""
    quantities: dict[str, None] = {}
    for name in columns:
        statistic, separator, quantity = name.removeprefix("val_").partition("_")
        grouped = statistic in ("max", "mean", "min", "std") and quantity in LABELS
        quantities[quantity if separator and grouped else name.removeprefix("val_")] = None
    return list(quantities)


def _draw_quantity(axis: Axes, log: pd.DataFrame, quantity: str) -> None:
    """Draw a quantity of training and, where there is one, its held-out version."""
    mean_name = f"mean_{quantity}" if f"mean_{quantity}" in log else quantity
    num_training, num_held_out = _episode_counts(log)
    _draw_curve(axis, log, mean_name, num_training, _TRAINING_STYLE)
    if f"val_{mean_name}" in log:
        _draw_curve(axis, log, f"val_{mean_name}", num_held_out, _HELD_OUT_STYLE)
        axis.legend(fontsize="small")
    axis.set_ylabel(LABELS.get(quantity, quantity.replace("_", " ")))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _episode_counts(log: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of training and of held-out episodes behind the statistics of each row."""
    zeros = np.zeros(len(log))
    training = np.asarray(log["num_episodes"]) if "num_episodes" in log else zeros
    held_out = np.asarray(log["num_episodes_val"]) if "num_episodes_val" in log else zeros
    return np.minimum(training, EPISODES_BEHIND_A_ROW), np.diff(held_out, prepend=0)


def _draw_curve(
    axis: Axes, log: pd.DataFrame, name: str, num_episodes: np.ndarray, style: dict[str, Any]
) -> None:
    """Draw a column where it has values, with a band of one standard error where it is known."""
    if name not in log:
        return
    known = np.asarray(log[name].notna())
    x, mean = np.asarray(log.iloc[:, 0])[known], np.asarray(log[name])[known]
    axis.plot(x, mean, alpha=0.85, **style)
    std_name = name.replace("mean_", "std_")
    if std_name in log and std_name != name:
        error = np.asarray(log[std_name])[known] / np.sqrt(np.maximum(num_episodes[known], 1))
        axis.fill_between(
            x, mean - error, mean + error, color=style["color"], alpha=0.2, linewidth=0
        )


def main() -> None:
    """Parse the command line, draw, report."""
    config = parse_flags(PlotConfig, DESCRIPTION)
    with stage_report("plot_training", config.report) as report:
        report.outputs.extend(str(path) for path in plot_log(config.datapath))


if __name__ == "__main__":
    run_entry_point(main)
