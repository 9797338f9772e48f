from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from agents.trainer import LOG_COLUMNS
from experiment.errors import UserError
from plot_training_csv import draw_main_curve, draw_overview, plot_log, read_log


@pytest.fixture
def agent_log(tmp_path) -> Path:
    rows = {name: np.linspace(1, 2, 6) for name in LOG_COLUMNS}
    rows["timesteps"] = np.arange(1, 7) * 100.0
    rows["num_episodes_val"] = np.array([0, 0, 16, 16, 16, 32.0])
    for name in LOG_COLUMNS:
        if name.startswith("val_"):
            rows[name] = np.where(np.isin(np.arange(6), (2, 5)), 4.0, np.nan)
    pd.DataFrame(rows).to_csv(tmp_path / "log.csv", index=False)
    return tmp_path


def labels(figure) -> list[str]:
    found = [axis.get_ylabel() for axis in figure.axes if axis.get_visible()]
    plt.close(figure)
    return found


def test_both_figures_are_written_and_nothing_else(agent_log):
    assert [path.name for path in plot_log(agent_log)] == ["plot.png", "plot_for_fig.png"]
    assert sorted(p.name for p in agent_log.iterdir()) == [
        "log.csv",
        "plot.png",
        "plot_for_fig.png",
    ]
    assert (agent_log / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums()


def test_each_quantity_has_its_own_panel(agent_log):
    assert labels(draw_overview(read_log(agent_log))) == [
        "return per episode",
        "episode length in decisions",
        "mean value estimate",
        "policy loss",
        "value loss",
        "policy entropy in nats",
    ]


def test_main_curve_compares_training_with_held_out_levels(agent_log):
    figure = draw_main_curve(read_log(agent_log))
    training, held_out = figure.axes[0].get_lines()
    assert np.asarray(training.get_xdata()).tolist() == [100, 200, 300, 400, 500, 600]
    assert np.asarray(held_out.get_xdata()).tolist() == [300, 600]
    assert np.asarray(held_out.get_ydata()).tolist() == [4, 4]
    # Standard error of the 16 episodes played in each evaluation: 4 / √16.
    band = np.asarray(figure.axes[0].collections[1].get_paths()[0].vertices)
    assert band[:, 1].max() == pytest.approx(5)
    plt.close(figure)


def test_any_table_of_numbers_is_drawn(tmp_path):
    log = {"step": [1, 2], "wall_time": [1.0, 2.0], "kl_loss": [3.0, 2.0], "total_loss": [5.0, 4.0]}
    pd.DataFrame({**log, "note": ["a", "b"]}).to_csv(tmp_path / "log.csv", index=False)
    assert labels(draw_overview(read_log(tmp_path))) == ["kl loss", "total loss"]
    assert labels(draw_main_curve(read_log(tmp_path))) == ["total loss"]


def test_missing_and_empty_logs_are_refused(tmp_path):
    with pytest.raises(UserError, match="--datapath"):
        plot_log(tmp_path)
    (tmp_path / "log.csv").write_text("")
    with pytest.raises(UserError, match=r"no log\.csv there"):
        plot_log(tmp_path / "log.csv")
    with pytest.raises(UserError, match="not a table"):
        plot_log(tmp_path)
    (tmp_path / "log.csv").write_text("timesteps,loss\n")
    with pytest.raises(UserError, match="no rows"):
        plot_log(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]
