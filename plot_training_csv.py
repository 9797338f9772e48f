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
DIR/plot_for_fig.png and .pdf, the main curve alone: mean return on training and on held-out levels
for an agent, the total loss for a simulator. Bands reach one standard deviation over episodes to
both sides, but not beyond the lowest and highest episode. Where DIR has no log.csv, its subfolders
are taken as runs with different seeds: curves are then means, and bands deviations, over them."""

PANEL_WIDTH, PANEL_HEIGHT, PANELS_PER_ROW = 4.6, 3.0, 3
NOT_PLOTTED = ("wall_time", "seconds", "num_episodes", "num_episodes_val")
HELD_OUT_PREFIXES = ("val_", "heldout_")
"""Of columns of the agent's log and of the simulator's."""
_TRAINING_STYLE = {"label": "training levels", "color": "C0"}
_HELD_OUT_STYLE = {"label": "held-out levels", "color": "C1", "marker": "o", "markersize": 4}
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
    """Run folder that holds log.csv, or folder of such run folders; the figures go there too."""
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


def write_curve(folder: Path, log: pd.DataFrame) -> None:
    """The log as `curve.csv` and its main curve as `curve.png`."""
    log.to_csv(folder / "curve.csv", index=False, float_format="%.6g")
    figure = draw_main_curve(log)
    figure.savefig(folder / "curve.png", dpi=110)
    plt.close(figure)


def read_seeds(folder: Path) -> pd.DataFrame:
    """Read the log of `folder`, or combine those of its subfolders where it has none."""
    runs = sorted(file.parent for file in folder.glob("*/log.csv"))
    if (folder / "log.csv").exists() or not runs:
        return read_log(folder)
    logs = [read_log(run) for run in runs]
    return logs[0] if len(logs) == 1 else combine_seeds(logs)


def combine_seeds(logs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Means over runs, at the steps of the first one that all have reached.

    Columns `mean_*` come with `std_*`, their deviation over the runs; columns that some run lacks,
    and extremes, which mean nothing here, are left out.
    """
    steps = logs[0].iloc[:, 0]
    steps = steps[steps <= min(log.iloc[:, 0].max() for log in logs)]
    combined: dict[str, Any] = {str(steps.name): steps.to_numpy()}
    for name in map(str, logs[0].columns[1:]):
        statistic = name.removeprefix("val_").partition("_")[0]
        if statistic in ("max", "min", "std") or any(name not in log for log in logs):
            continue
        values = np.stack([_at_steps(log, name, steps) for log in logs])
        combined[name] = np.where(logs[0][name].notna()[: len(steps)], values.mean(0), np.nan)
        if "mean_" in name:
            combined[name.replace("mean_", "std_")] = values.std(0)
    table = pd.DataFrame(combined)
    table.attrs["spread"] = f"over {len(logs)} seeds"
    return table


def _at_steps(log: pd.DataFrame, name: str, steps: pd.Series) -> np.ndarray:
    known = log[name].notna()
    return np.interp(steps, log.iloc[:, 0][known], log[name][known])


def plot_log(folder: Path) -> list[Path]:
    """Draw both figures; returns their paths."""
    log = read_seeds(folder)
    figures = {"plot": draw_overview(log), "plot_for_fig": draw_main_curve(log)}
    paths = []
    for name in ("plot.png", "plot_for_fig.png", "plot_for_fig.pdf"):
        with atomic_file(folder / name) as temporary:
            figures[Path(name).stem].savefig(temporary, dpi=130)
        paths.append(folder / name)
    for figure in figures.values():
        plt.close(figure)
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
    shown = [name for name in columns if name not in NOT_PLOTTED]
    candidates = ["episode_rewards"] if "mean_episode_rewards" in columns else []
    main = [*candidates, *(name for name in shown if "total" in name), *shown][0]
    figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    _draw_quantity(axis, log, main)
    axis.set_xlabel(LABELS.get(x, x))
    return figure


def _quantities(columns: Sequence[str]) -> list[str]:
    """Columns, those of episodes gathered under `episode_rewards` and `episode_len`."""
    quantities: dict[str, None] = {}
    for name in columns:
        training_name = _without_prefix(name)
        statistic, separator, quantity = training_name.partition("_")
        grouped = statistic in ("max", "mean", "min", "std") and quantity in LABELS
        if statistic == "std" and not grouped:
            continue  # a deviation over seeds: the band of another column
        quantities[quantity if separator and grouped else training_name] = None
    return list(quantities)


def _without_prefix(name: str) -> str:
    for prefix in HELD_OUT_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _draw_quantity(axis: Axes, log: pd.DataFrame, quantity: str) -> None:
    """Draw a quantity of training and, where there is one, its held-out version."""
    mean_name = f"mean_{quantity}" if f"mean_{quantity}" in log else quantity
    _draw_curve(axis, log, mean_name, _TRAINING_STYLE)
    held_out = [prefix + mean_name for prefix in HELD_OUT_PREFIXES if prefix + mean_name in log]
    title = _describe_spread(log, mean_name)
    if held_out:
        _draw_curve(axis, log, held_out[0], _HELD_OUT_STYLE)
    if held_out or title:
        # Above the axes, where no curve can run beneath it.
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2}
        axis.legend(fontsize="small", title=title, title_fontsize="small", frameon=False, **place)
    axis.set_ylabel(LABELS.get(quantity, quantity.replace("_", " ")))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _describe_spread(log: pd.DataFrame, mean_name: str) -> str | None:
    has_band = mean_name.startswith("mean_") and mean_name.replace("mean_", "std_", 1) in log
    return f"mean ± s.d. {log.attrs.get('spread', 'over episodes')}" if has_band else None


def _draw_curve(axis: Axes, log: pd.DataFrame, name: str, style: dict[str, Any]) -> None:
    """Draw a column where it has values, with a band of one deviation where that is known."""
    if name not in log:
        return
    known = log[name].notna()
    x, mean = log.iloc[:, 0][known], log[name][known]
    axis.plot(x, mean, alpha=0.9, **style)
    std_name, min_name, max_name = (
        name.replace("mean_", f"{statistic}_", 1) for statistic in ("std", "min", "max")
    )
    if std_name == name or std_name not in log:
        return
    low, high = mean - log[std_name][known], mean + log[std_name][known]
    if min_name in log and max_name in log:
        low, high = low.clip(lower=log[min_name][known]), high.clip(upper=log[max_name][known])
    axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def main() -> None:
    """Parse the command line, draw, report."""
    config = parse_flags(PlotConfig, DESCRIPTION)
    with stage_report("plot_training", config.report) as report:
        report.outputs.extend(str(path) for path in plot_log(config.datapath))


if __name__ == "__main__":
    run_entry_point(main)
