from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from agents.trainer import LOG_COLUMNS
from experiment.errors import UserError
from plot_training_csv import draw_main_curve, draw_overview, plot_log, read_log, read_seeds


@pytest.fixture
def agent_log(tmp_path) -> Path:
    rows = {name: np.linspace(1, 2, 6) for name in LOG_COLUMNS}
    rows["timesteps"] = np.arange(1, 7) * 100.0
    rows["num_episodes_val"] = np.array([0, 0, 16, 16, 16, 32.0])
    for name in LOG_COLUMNS:
        if name.startswith("val_"):
            value = {"min": 1.0, "std": 2.0, "max": 5.0}.get(name.split("_")[1], 4.0)
            rows[name] = np.where(np.isin(np.arange(6), (2, 5)), value, np.nan)
    pd.DataFrame(rows).to_csv(tmp_path / "log.csv", index=False)
    return tmp_path


def labels(figure) -> list[str]:
    found = [axis.get_ylabel() for axis in figure.axes if axis.get_visible()]
    plt.close(figure)
    return found


def test_both_figures_are_written_and_nothing_else(agent_log):
    names = ["plot.png", "plot_for_fig.png", "plot_for_fig.pdf"]
    assert [path.name for path in plot_log(agent_log)] == names
    assert sorted(p.name for p in agent_log.iterdir()) == sorted(["log.csv", *names])
    assert (agent_log / "plot_for_fig.pdf").read_bytes().startswith(b"%PDF")
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


def test_a_band_is_named_where_there_is_no_held_out_curve(agent_log):
    log = read_log(agent_log)
    figure = draw_main_curve(log.drop(columns=[name for name in log if "val_" in str(name)]))
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "mean ± s.d. over episodes"
    assert [text.get_text() for text in legend.get_texts()] == ["training levels"]
    plt.close(figure)


def test_a_folder_of_a_single_run_is_drawn_as_that_run(agent_log):
    run = agent_log / "seeds" / "seed_1"
    run.mkdir(parents=True)
    (agent_log / "log.csv").rename(run / "log.csv")
    pd.testing.assert_frame_equal(read_seeds(agent_log / "seeds"), read_log(run))


def test_main_curve_compares_training_with_held_out_levels(agent_log):
    figure = draw_main_curve(read_log(agent_log))
    training, held_out = figure.axes[0].get_lines()
    assert np.asarray(training.get_xdata()).tolist() == [100, 200, 300, 400, 500, 600]
    assert np.asarray(held_out.get_xdata()).tolist() == [300, 600]
    assert np.asarray(held_out.get_ydata()).tolist() == [4, 4]
    # One deviation of 2 around 4, but not beyond the best episode, which had 5.
    band = np.asarray(figure.axes[0].collections[1].get_paths()[0].vertices)
    assert (band[:, 1].min(), band[:, 1].max()) == (2, 5)
    plt.close(figure)


def test_several_seeds_give_their_mean_and_the_deviation_over_them(tmp_path):
    steps = {"a": [100, 200, 300, 400], "b": [100, 200, 400]}
    for run, (low, high) in {"a": (0.0, 2.0), "b": (2.0, 6.0)}.items():
        x = np.array(steps[run])
        log = {"timesteps": x, "mean_episode_rewards": low + (high - low) * (x - 100) / 300}
        log["val_mean_episode_rewards"] = np.where(x == 400, high, np.nan)
        log["mean_policy_loss"] = np.full(len(x), low)
        (tmp_path / run).mkdir()
        pd.DataFrame(log).to_csv(tmp_path / run / "log.csv", index=False)
    log = read_seeds(tmp_path)
    assert log["timesteps"].tolist() == [100, 200, 300, 400]
    np.testing.assert_allclose(log["mean_episode_rewards"], [1, 2, 3, 4])
    np.testing.assert_allclose(log["std_episode_rewards"], [1, 4 / 3, 5 / 3, 2])
    assert log["val_mean_episode_rewards"].notna().tolist() == [False, False, False, True]
    assert log["val_std_episode_rewards"].iloc[-1] == 2
    assert log["std_policy_loss"].tolist() == [1] * 4
    assert labels(draw_overview(log)) == ["return per episode", "policy loss"]
    figure = draw_main_curve(log)
    band = np.asarray(figure.axes[0].collections[0].get_paths()[0].vertices)
    assert band[:, 1].max() == 6
    plt.close(figure)
    assert (tmp_path / "plot_for_fig.png") in plot_log(tmp_path)


def test_any_table_of_numbers_is_drawn(tmp_path):
    log = {"step": [1, 2], "wall_time": [1.0, 2.0], "kl_loss": [3.0, 2.0], "total_loss": [5.0, 4.0]}
    pd.DataFrame({**log, "note": ["a", "b"]}).to_csv(tmp_path / "log.csv", index=False)
    assert labels(draw_overview(read_log(tmp_path))) == ["kl loss", "total loss"]
    assert labels(draw_main_curve(read_log(tmp_path))) == ["total loss"]


def test_the_simulators_loss_is_drawn_with_its_held_out_version(tmp_path):
    losses = {"total": [5.0, 4.0], "kl": [3.0, 2.0]}
    held_out = {f"heldout_{name}": [None, values[1]] for name, values in losses.items()}
    pd.DataFrame({"step": [1, 2], "seconds": [9.0, 10.0], **losses, **held_out}).to_csv(
        tmp_path / "log.csv", index=False
    )
    log = read_log(tmp_path)
    assert labels(draw_overview(log)) == ["total", "kl"]
    (axis,) = draw_main_curve(log).axes
    assert axis.get_ylabel() == "total"
    legend = axis.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["training levels", "held-out levels"]
    assert legend.get_title().get_text() == ""


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
