"""Correlations of the environment's components, and of the agent's with them."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.cross_correlation import NullSettings
from analysis.cross_dynamics import CrossInputs, CrossSettings, compute_cross_dynamics, make_plan
from analysis.cross_figures import CrossDrawing, draw_group, plot_cross_dynamics
from analysis.cross_states import cross_name, stack_environment
from analysis.figure_style import figure_text
from analysis.results import CROSS_NAME, read_results
from analysis.rollout_rows import RolloutRows
from experiment.errors import UserError
from experiment.report import StageReport
from projections.hidden import HiddenProjection
from rollouts.store import RolloutDataset, RolloutWriter

LAG, SIZE = 2, 3
ENDED, EARLY = 3, 5
"""The sample that ends early, and its last row."""
SETTINGS = CrossSettings(states="both", max_lag=4, nulls=NullSettings(40, 20))


@pytest.fixture(scope="module")
def inputs(planted_datasets, tmp_path_factory):
    """Samples whose environment has the agent's components LAG steps later, each twice as wide as
    the next, and nothing else. One ends early, and what comes after is far from all states."""
    folder = tmp_path_factory.mktemp("states")
    dataset = RolloutDataset(planted_datasets.simulated)
    hidden = dataset.read_field("agent_hidden")
    projection = HiddenProjection("pca", SIZE).fit(hidden)
    projection.save(folder / "projection")
    deviation = np.asarray(projection.transform(hidden)).std(axis=0)
    rng = np.random.default_rng(0)
    with RolloutWriter(folder / "samples", dataset.metadata) as writer:
        for index in range(dataset.num_episodes):
            rollout = dataset.read_episode(index)
            deter = 0.1 * rng.normal(size=(len(rollout.action), 4))
            scores = np.asarray(projection.transform(rollout.agent_hidden)) / deviation
            deter[LAG:, :SIZE] = 2.0 ** np.arange(SIZE, 0, -1) * scores[:-LAG]
            done = rollout.done.copy()
            if index == ENDED:
                done[EARLY] = True
                deter[EARLY + 1 :] = 1000.0
            writer.write(replace(rollout, env_deter=deter.astype(np.float32), done=done))
    return CrossInputs(folder / "samples", folder / "projection", None, None)


@pytest.fixture(scope="module")
def both(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    compute_cross_dynamics(make_plan(inputs, SETTINGS), {}, folder, StageReport("cross"))
    return folder


def test_what_the_agent_does_to_the_environment_is_found_at_its_lag(both):
    with read_results(both / "xcorr_both.nc") as results:
        labels = results["component_label"].values.tolist()
        size = np.abs(results["correlation"].sel(group="all").values)
        lags = results["lag"].values.tolist()
        q = results["correlation_q"].sel(group="all", null="pairing", lag=LAG).values
        assert results.attrs["states"] == "both"
        assert "causation" not in results
    assert labels == ["a0", "a1", "a2", "e0", "e1", "e2", "e3"]
    agents, environments = np.arange(SIZE), SIZE + np.arange(SIZE)
    assert lags == [0, 1, 2, 3, 4]
    assert (size[LAG, agents, environments] > 0.9).all()
    assert (q[agents, environments] < 0.05).all()
    assert size[[0, 1, 3, 4]][:, agents, environments].max() < 0.6
    # The environment does nothing to the agent.
    assert size[:, environments, agents].max() < 0.6


@pytest.mark.parametrize(
    ("states", "part"), [("agent", slice(SIZE)), ("environment", slice(SIZE, None))]
)
def test_either_alone_has_the_correlations_that_it_has_beside_the_other(
    inputs, both, tmp_path, states, part
):
    plan = make_plan(inputs, replace(SETTINGS, states=states))
    path = compute_cross_dynamics(plan, {}, tmp_path, StageReport("cross"))
    assert path.name == cross_name(states)
    with read_results(path) as alone, read_results(both / "xcorr_both.nc") as beside:
        expected = beside["correlation"].isel(source=part, target=part)
        np.testing.assert_allclose(alone["correlation"], expected, atol=1e-6)


def test_environment_components_end_with_the_episode(inputs):
    ended = make_plan(inputs, replace(SETTINGS, states="environment", clip=0.0)).stack
    assert ended.values.shape == (10, 10, 4)
    assert ended.length.tolist() == [10 if i != ENDED else EARLY + 1 for i in range(10)]
    # Neither are components fitted on what comes after the end, nor is their unit that of it.
    rows = RolloutRows(RolloutDataset(inputs.generated_data_dir), 10)
    components = stack_environment(rows, 4, heed_ends=True, seed=0)
    assert not components.values[ENDED, EARLY + 1 :].any()
    shown = ended.values[ended.is_valid]
    np.testing.assert_allclose(shown.std(axis=0), 1, rtol=1e-5)
    assert np.abs(shown).max() < 4


def test_counts_above_what_exists_and_real_rollouts(inputs, planted_datasets, capsys):
    few = make_plan(inputs, replace(SETTINGS, num_env_components=2))
    assert few.labels == ["a0", "a1", "a2", "e0", "e1"]
    capsys.readouterr()
    make_plan(inputs, SETTINGS)
    assert "--num_env_components 16" in capsys.readouterr().out
    with pytest.raises(UserError, match="--num_env_components 0"):
        make_plan(inputs, replace(SETTINGS, num_env_components=0))
    with pytest.raises(UserError, match="holds real rollouts"):
        make_plan(replace(inputs, generated_data_dir=planted_datasets.real), SETTINGS)


def test_figures_name_whose_components_they_show(both):
    with read_results(both / "xcorr_both.nc") as results:
        plain, seriated = (
            draw_group(results, "all", [1], is_seriated) for is_seriated in (False, True)
        )
        order = results["component_order"].sel(group="all").values
        labels = results["component_label"].values
    title = plain.get_suptitle().replace("\n", " ")
    assert "of the agent's state (a) and of the environment's (e)" in title
    names = [tick.get_text() for tick in plain.axes[0].get_xticklabels()]
    assert names == labels.tolist()
    across, along = plain.axes[0].get_lines()
    assert np.asarray(across.get_ydata()).tolist() == [SIZE - 0.5] * 2
    assert np.asarray(along.get_xdata()).tolist() == [SIZE - 0.5] * 2
    # In another order neither stands apart.
    assert not seriated.axes[0].get_lines()
    assert [t.get_text() for t in seriated.axes[0].get_yticklabels()] == labels[order].tolist()


@pytest.mark.parametrize("lags", [[1], [0, 1], [0, 1, 2, 3, 4]])
def test_titles_are_no_wider_than_their_figure(both, lags):
    with read_results(both / "xcorr_both.nc") as results, figure_text(title_size=8):
        figure = draw_group(results, "all", lags, False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (title,) = (text for text in figure.texts if text.get_text() == figure.get_suptitle())
    shown = title.get_window_extent(canvas.get_renderer())
    assert 0 < shown.x0 < shown.x1 < figure.bbox.width
    # A wide figure has one line for what is drawn, and one for the marks.
    assert len(lags) < 5 or title.get_text().count("\n") == 1


@pytest.mark.parametrize("states", ["environment", "both"])
def test_jacobians_that_are_not_read_are_told(inputs, tmp_path, capsys, states):
    settings = replace(SETTINGS, states=states)
    assert make_plan(replace(inputs, jacobians=tmp_path), settings).jacobians is None
    assert f"{tmp_path}: not read with --states {states}" in capsys.readouterr().out
    for unasked in (None, CrossInputs.jacobians):
        make_plan(replace(inputs, jacobians=unasked), settings)
    assert "--jacobians" not in capsys.readouterr().out


@pytest.mark.parametrize("states", ["environment", "both"])
def test_a_missing_file_names_the_command_that_makes_it(tmp_path, states):
    command = f"make it with: python xcorr_and_xcaus_plots.py --states {states}$"
    with pytest.raises(UserError, match=rf"xcorr_{states}\.nc: no such file; {command}"):
        plot_cross_dynamics(tmp_path, tmp_path, CrossDrawing(), StageReport("cross"), states)


def test_files_and_figures_of_others_leave_those_of_the_agent_alone(inputs, both):
    agents = make_plan(inputs, replace(SETTINGS, states="agent"))
    compute_cross_dynamics(agents, {}, both, StageReport("cross"))
    drawing = CrossDrawing(drawn_lags=(0, 1), dpi=40)
    plot_cross_dynamics(both, both, drawing, StageReport("cross"))
    of_agent = {path: path.read_bytes() for path in both.iterdir() if path.is_file()}
    assert {CROSS_NAME, "behaviour_all.png", "contact_sheet.png"} <= {p.name for p in of_agent}
    compute_cross_dynamics(make_plan(inputs, SETTINGS), {}, both, StageReport("cross"))
    plot_cross_dynamics(both, both, drawing, StageReport("cross"), "both")
    del of_agent[both / cross_name("both")]
    assert all(path.read_bytes() == content for path, content in of_agent.items())
    assert {p.name for p in (both / "both").glob("*.png")} == {
        "behaviour_all.png",
        "contact_sheet.png",
    }
    with pytest.raises(UserError, match="--drawn_lags 9: there are lags 0 to 4 only"):
        plot_cross_dynamics(both, both, CrossDrawing(drawn_lags=(9,)), StageReport("cross"))
