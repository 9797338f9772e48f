from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgba_array
from PIL import Image

from analysis.hidden_figures import (
    REAL_COLOUR,
    SIMULATED_COLOUR,
    VARIABLES,
    PlottingConfig,
    category_colours,
    draw_clusters,
    draw_coloured,
    draw_overlap,
    draw_solid,
    draw_variables,
    episode_returns,
    plot_hidden_analysis,
    read_plot_table,
)
from analysis.hidden_states import (
    ClusterSettings,
    EmbeddingSettings,
    HiddenAnalysisConfig,
    ProjectionSettings,
    analyse_hidden_states,
)
from analysis.results import read_results
from analysis.rotation_videos import rotating_views
from experiment.errors import UserError
from experiment.report import StageReport
from rollouts.video import read_video


@pytest.fixture(scope="module")
def plotted_result(planted_datasets, tmp_path_factory):
    config = HiddenAnalysisConfig(
        data_dir=planted_datasets.real,
        generated_data_dir=planted_datasets.simulated,
        output_dir=tmp_path_factory.mktemp("plotted"),
        num_episodes=30,
        num_generated_samples=10,
        projection=ProjectionSettings(num_pca=12, num_ica=3, num_nmf=0),
        clusters=ClusterSettings(num_clusters=3, num_cluster_neighbours=8),
        layout=EmbeddingSettings(embedding="pca"),
    )
    return analyse_hidden_states(config, StageReport("hidden_analysis"))


@pytest.mark.medium
def test_every_figure_is_drawn_as_png_and_pdf(plotted_result, tmp_path):
    config = PlottingConfig(
        input_dir=plotted_result.parent,
        output_dir=tmp_path,
        spaces=("embedding",),
        clusters_per_page=2,
        num_trajectories=2,
        dpi=40,
    )
    pictures = plot_hidden_analysis(config, StageReport("figures"))
    stems = {path.stem for path in tmp_path.glob("*.pdf")}
    assert {"overlap", "explained_variance", "embedding_trajectories"} < stems
    # The last cluster has a page of its own.
    assert {"clusters_000", "clusters_002"} < stems
    assert {path.stem for path in pictures} == stems
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width == 3 * 640
    assert not (tmp_path / "rotations").exists()


@pytest.mark.medium
def test_each_variable_has_a_video_around_three_axes(plotted_result, tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.hidden_figures.save_figures", lambda *_: [])
    config = PlottingConfig(
        input_dir=plotted_result.parent, output_dir=tmp_path, num_rotation_views=2, dpi=40
    )
    report = StageReport("figures")
    plot_hidden_analysis(config, report)
    assert str(tmp_path / "rotations") in report.outputs
    with read_results(plotted_result) as dataset:
        real = read_plot_table(dataset, 1000, 0).of_source("real")
    shown = panels(draw_variables(real, "ica", "real"))
    drawn = [variable.name for variable in VARIABLES if variable.label in shown]
    assert len(drawn) > 5
    # The embedding has two axes.
    names = {f"{space}_{name}.mp4" for space in ("pca", "ica") for name in drawn}
    assert {path.name for path in (tmp_path / "rotations").iterdir()} == names
    assert {len(read_video(tmp_path / "rotations" / name)) for name in names} == {2}


@pytest.mark.parametrize("name", ["value", "action", "cluster"])
def test_colours_in_three_dimensions_are_those_of_the_flat_figure(plotted_result, name):
    with read_results(plotted_result) as dataset:
        real = read_plot_table(dataset, 1000, 0).of_source("real")
    (variable,) = (v for v in VARIABLES if v.name == name)
    flat, solid = draw_coloured(real, "pca", [variable], "title"), draw_solid(real, "pca", variable)
    FigureCanvasAgg(flat).draw()
    FigureCanvasAgg(solid).draw()
    (flat_panel,), (solid_panel,) = panels(flat).values(), panels(solid).values()
    assert solid_panel.get_title() == flat_panel.get_title()
    in_order, by_depth = (p.collections[0].get_facecolor() for p in (flat_panel, solid_panel))
    assert len(in_order) == len(real.rows)
    np.testing.assert_array_equal(np.sort(by_depth, axis=0), np.sort(in_order, axis=0))
    # In the file's order, each colour stands at the same place.
    (points,) = solid_panel.collections
    np.testing.assert_array_equal(points.to_rgba(np.asarray(points.get_array())), in_order)
    assert key(solid_panel) == key(flat_panel)
    labels = [getattr(solid_panel, f"get_{letter}label")() for letter in "xyz"]
    assert labels == ["PC 0", "PC 1", "PC 2"]


def key(panel):
    """What explains a panel's colours."""
    legend = panel.get_legend()
    if legend is None:
        return panel.child_axes[0].get_ylim()
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("name", ["action", "value"])
def test_labels_stay_off_the_key_however_the_axes_turn(plotted_result, name):
    with read_results(plotted_result) as dataset:
        real = read_plot_table(dataset, 20, 0).of_source("real")
    (variable,) = (v for v in VARIABLES if v.name == name)
    figure = draw_solid(real, "pca", variable)
    panel = figure.axes[0]
    for _ in rotating_views(figure, 36):
        explained = panel.get_legend() or panel.child_axes[0]
        left = explained.get_window_extent().x0
        letters = [getattr(panel, f"{letter}axis").label for letter in "xyz"]
        assert max(label.get_window_extent().x1 for label in letters) < left


def test_far_points_are_beyond_three_axes_and_not_drawn_outside_them(plotted_result):
    with read_results(plotted_result) as dataset:
        real = read_plot_table(dataset, 1000, 0).of_source("real")
    places = np.random.default_rng(0).uniform(-1, 1, (len(real.rows), 3))
    places[:2] = [[0.0, 0.0, 50.0], [0.0, 0.0, -50.0]]
    figure = draw_solid(replace(real, spaces={"ica": places}), "ica", VARIABLES[0])
    FigureCanvasAgg(figure).draw()
    count = len(real.rows)
    of_rows = f"{count:,} of {real.num_decisions[0]:,} decisions of 30 episodes"
    assert f"{of_rows}; 2 beyond the axes" in figure.get_suptitle()
    (points,) = figure.axes[0].collections
    is_hidden = np.ma.getmaskarray(points.get_offsets()).any(axis=1)
    assert is_hidden.nonzero()[0].tolist() == [0, 1]


def test_every_cluster_has_a_panel(plotted_result):
    with read_results(plotted_result) as dataset:
        table = read_plot_table(dataset, 1000, 0).of_source("real")
        titles = [a.get_title() for a in draw_clusters(table, "pca", range(3), "rows").axes]
        counts = np.bincount(dataset.cluster.values[dataset.source.values == 0])
    assert [f"n = {count:,}" in title for count, title in zip(counts, titles, strict=True)] == [
        True
    ] * 3


def test_neither_source_is_drawn_over_the_other(plotted_result):
    with read_results(plotted_result) as dataset:
        table = read_plot_table(dataset, 1000, 0)
    is_simulated = table.rows["source"].to_numpy() == 1
    # About as many changes from one source to the other as a random order has.
    assert np.diff(is_simulated).sum() > is_simulated.sum() * (~is_simulated).mean()
    drawn_on = [axis for axis in draw_overlap(table).axes if axis.collections]
    assert drawn_on
    for panel in drawn_on:
        (points,) = panel.collections
        drawn = [to_hex(colour) for colour in to_rgba_array(points.get_facecolor())]
        assert drawn == np.where(is_simulated, SIMULATED_COLOUR, REAL_COLOUR).tolist()


def test_titles_tell_how_many_rows_of_all_are_drawn(plotted_result):
    with read_results(plotted_result) as dataset:
        totals = np.bincount(dataset.source.values)
        table = read_plot_table(dataset, 20, 0)
    of_episodes = ("of 30 episodes", "of 10 samples")
    for source, total, episodes in zip(("real", "simulated"), totals, of_episodes, strict=True):
        figure = draw_variables(table.of_source(source), "pca", source)
        assert f"20 of {total:,} decisions {episodes}" in figure.get_suptitle()


def test_what_a_sample_does_after_its_end_is_not_drawn(plotted_result):
    """A sample goes on after the end predicted for it, and ends are predicted again."""
    with read_results(plotted_result) as file:
        dataset = file.load()
    done, value = dataset.done.values.copy(), np.zeros(dataset.sizes["row"])
    is_simulated = dataset.source.values == 1
    episode = dataset.episode_index.values
    is_first_sample = is_simulated & (episode == episode[is_simulated].min())
    done[is_first_sample], value[is_first_sample] = 1, 7.0
    dataset["done"], dataset["value"] = ("row", done), ("row", value)
    table = read_plot_table(dataset, 10_000, 0)
    assert (table.rows["value"] == 7.0).sum() == 1
    left_out = is_first_sample.sum() - 1
    assert left_out > 0
    real, simulated = np.bincount(dataset.source.values)
    assert table.num_decisions == (real, simulated - left_out)
    assert len(table.rows) == real + simulated - left_out


def panels(figure):
    return {a.get_title().split(" (n =")[0]: a for a in figure.axes if a.get_title()}


def drawn_values(figure, label):
    """In the order in which they are drawn."""
    return np.asarray(panels(figure)[label].collections[-1].get_array())


def test_extreme_values_hide_others_only_where_nearly_all_rows_are_alike(plotted_result):
    """Drawn last, the larger of two values would colour any dense cloud, whatever is in it."""
    with read_results(plotted_result) as dataset:
        table = read_plot_table(dataset, 1000, 0).of_source("real")
    count = len(table.rows)
    spread = np.random.default_rng(0).permutation(np.linspace(0.0, 1.0, count) ** 3)
    few = np.where(np.arange(count) % 10 == 0, 10.0, 0.0)
    table = replace(
        table,
        rows=table.rows.assign(value=spread, reward=few),
        colour_limits=table.colour_limits | {"value": (0.0, 1.0), "reward": (0.0, 10.0)},
    )
    figure = draw_variables(table, "pca", "real")
    np.testing.assert_array_equal(drawn_values(figure, "value"), spread)
    np.testing.assert_array_equal(drawn_values(figure, "reward"), np.sort(few))
    assert "the further on top" in figure.get_suptitle()
    variables = [variable for variable in VARIABLES if variable.name == "value"]
    assert "on top" not in draw_coloured(table, "pca", variables, "title").get_suptitle()


def test_steps_of_samples_have_a_scale_and_a_name_of_their_own(plotted_result):
    with read_results(plotted_result) as file:
        dataset = file.load()
    is_real = dataset.source.values == 0
    dataset["step"] = ("row", np.where(is_real, 100 * dataset.step.values, dataset.step.values))
    # One length of all samples is nothing to colour by.
    length = np.where(is_real, dataset.episode_length.values, 10)
    dataset["episode_length"] = ("row", length)
    table = read_plot_table(dataset, 1000, 0)
    real, simulated = (
        panels(draw_variables(table.of_source(source), "pca", source))
        for source in ("real", "simulated")
    )
    assert real["step in episode"].collections[0].get_clim()[1] > 300
    assert simulated["step in sample"].collections[0].get_clim()[1] < 100
    assert "episode length" in real
    assert "sample length" not in simulated


def test_the_trust_in_the_layout_is_told_where_it_is_drawn(plotted_result):
    with read_results(plotted_result) as dataset:
        table = read_plot_table(dataset, 1000, 0)
    table = replace(table.of_source("real"), layout_trust="trustworthiness 0.9")
    titles = {s: draw_variables(table, s, "real").get_suptitle() for s in ("pca", "embedding")}
    assert "trustworthiness 0.9" in titles["embedding"]
    assert "trustworthiness" not in titles["pca"]


def test_ticks_of_many_categories_are_equally_far_apart(plotted_result):
    with read_results(plotted_result) as dataset:
        table = read_plot_table(dataset, 1000, 0).of_source("real")
    clusters = np.arange(len(table.rows)) % 32
    table = replace(table, rows=table.rows.assign(cluster=clusters), num_clusters=32)
    bar = panels(draw_variables(table, "pca", "real"))["cluster"].child_axes[0]
    assert bar.get_yticks().tolist() == [0, 4, 8, 12, 16, 20, 24, 28]


def test_a_category_has_one_colour_in_all_figures(plotted_result):
    with read_results(plotted_result) as dataset:
        table = read_plot_table(dataset, 1000, 0).of_source("real")
    few = replace(table, rows=table.rows.assign(action=0, greedy_action=0, cluster=0))
    for variable in ("action taken", "cluster", "episode ends here"):
        whole, part = (
            next(
                a
                for a in draw_variables(t, "pca", "real").axes
                if a.get_title().startswith(variable)
            )
            for t in (table, few)
        )
        first, second = (panel.collections[0].get_cmap() for panel in (whole, part))
        assert first.N == second.N
        np.testing.assert_array_equal(first(np.arange(first.N)), second(np.arange(first.N)))


def test_both_sources_share_their_colour_limits(plotted_result):
    with read_results(plotted_result) as dataset:
        # Simulated values are of another size, and their rows are fewer.
        dataset["value"] = dataset.value + 100.0 * dataset.source
        table = read_plot_table(dataset, 1000, 0)
    shown = {}
    for source in ("real", "simulated"):
        figure = draw_variables(table.of_source(source), "pca", source)
        shown[source] = {
            label: panel.collections[0].get_clim() for label, panel in panels(figure).items()
        }
    shared = ("value", "policy entropy (nats)", "reward", "cluster", "action taken")
    for label in shared:
        assert shown["real"][label] == shown["simulated"][label]
    values = table.rows.groupby("source")["value"]
    low, high = values.quantile(0.01).min(), values.quantile(0.99).max()
    assert high - low > 90.0
    np.testing.assert_allclose(shown["real"]["value"], (low, high), rtol=1e-5)
    assert shown["real"]["reward"] == (0.0, 10.0)


def test_drawn_rows_are_rows_of_the_file(plotted_result):
    with read_results(plotted_result) as dataset:
        table = read_plot_table(dataset, 50, seed=1)
        known = {
            (float(v), float(p))
            for v, p in zip(dataset.value.values, dataset.pca.values[:, 0], strict=True)
        }
    assert len(table.rows) == 100
    drawn = zip(table.rows["value"], table.spaces["pca"][:, 0], strict=True)
    assert all((float(v), float(p)) in known for v, p in drawn)


def test_returns_are_summed_over_episodes(plotted_result):
    with read_results(plotted_result) as dataset:
        # Every planted episode ends with a reward of ten.
        np.testing.assert_array_equal(episode_returns(dataset), 10.0)


def test_returns_of_samples_stop_at_the_predicted_end():
    """A simulated sample goes on, and is promised more; the reward of its last step counts."""
    dataset = xr.Dataset(
        {
            "source": ("row", [0, 0, 1, 1, 1, 1]),
            "episode_index": ("row", [0, 0, 0, 0, 0, 0]),
            "done": ("row", [0, 1, 0, 1, 0, 1]),
            "reward": ("row", [0.0, 10.0, 0.5, 9.0, 9.0, 9.0]),
        }
    )
    assert episode_returns(dataset).tolist() == [10, 10, 9.5, 9.5, 9.5, 9.5]


@pytest.mark.parametrize("count", [1, 2, 5, 8, 15, 32])
def test_categories_have_distinct_colours(count):
    colours = {category_colours(count)(i) for i in range(count)}
    assert len(colours) == count


@pytest.mark.parametrize("count", [3, 8, 15, 16, 18, 20, 40])
def test_no_cluster_is_as_grey_as_the_points_around_it(count):
    colours = category_colours(count)(np.arange(count))[:, :3]
    spread = colours.max(axis=1) - colours.min(axis=1)
    # Black, the last of Okabe and Ito's, is far from the light grey of what is not highlighted.
    assert ((spread > 0.1) | (colours.max(axis=1) < 0.1)).all()


def test_missing_result_names_the_command(tmp_path):
    config = PlottingConfig(input_dir=tmp_path, output_dir=tmp_path / "figures")
    with pytest.raises(UserError, match=r"hidden_analysis_precompute\.py"):
        plot_hidden_analysis(config, StageReport("figures"))


@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ({"max_points": 0}, "--max_points 0: must be at least 1"),
        ({"num_rotation_views": -1}, "--num_rotation_views -1: must be at least 0"),
    ],
)
def test_senseless_numbers_are_refused(plotted_result, tmp_path, flag, complaint):
    config = PlottingConfig(input_dir=plotted_result.parent, output_dir=tmp_path / "absent", **flag)
    with pytest.raises(UserError, match=complaint):
        plot_hidden_analysis(config, StageReport("figures"))
    assert not config.output_dir.exists()


def test_videos_of_flat_spaces_are_refused_before_anything_is_drawn(plotted_result, tmp_path):
    config = PlottingConfig(
        input_dir=plotted_result.parent,
        output_dir=tmp_path,
        spaces=("embedding",),
        num_rotation_views=36,
    )
    with pytest.raises(UserError, match=r"--num_rotation_views 36: .* embedding .* pca ica"):
        plot_hidden_analysis(config, StageReport("figures"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def known_game(plotted_result):
    """The result with NMF factors and variables of a game, which simulated rows do not have."""
    with read_results(plotted_result) as file:
        dataset = file.load()
    rng = np.random.default_rng(0)
    is_real = dataset.source.values == 0
    game = np.stack(
        [
            np.where(is_real, rng.normal(size=len(is_real)), np.nan),
            np.where(is_real, rng.integers(0, 2, len(is_real)), np.nan),
            np.where(is_real, 7.0, np.nan),
        ],
        axis=1,
    )
    # A third of the first variable's values is of things out of sight.
    game[::3, 0] = np.nan
    factors = np.zeros((len(is_real), 2))
    factors[:, 0], factors[::2, 1] = 0.01, 50.0
    factors[1::2, 0] += 0.02
    return dataset.assign(
        game=(("row", "game_variable"), game), nmf=(("row", "nmf_factor"), factors)
    ).assign_coords(
        game_variable=["coin_dx", "on_ground", "constant"],
        game_unit=("game_variable", ["cells", "0 or 1", "1"]),
    )


def test_game_variables_are_drawn_where_they_are_known(known_game):
    table = read_plot_table(known_game, 10_000, 0)
    labels = [(variable.label, variable.is_categorical) for variable in table.game]
    assert labels == [("coin_dx (cells)", False), ("on_ground", True)]
    real = table.of_source("real")
    figure = draw_coloured(real, "pca", table.game, "title")
    first, second = (a for a in figure.axes if "(n =" in a.get_title())
    known = int(np.isfinite(known_game.game.values[:, 0]).sum())
    assert first.get_title() == f"coin_dx (cells) (n = {known:,})"
    unknown, shown = first.collections
    assert len(np.asarray(unknown.get_offsets())) == len(real.rows) - known
    assert len(np.asarray(shown.get_offsets())) == known
    legend = second.get_legend()
    assert legend is not None
    assert [text.get_text()[:2] for text in legend.get_texts()] == ["no", "ye"]


def test_the_strongest_factor_is_told_by_deviations_not_by_scale(known_game):
    table = read_plot_table(known_game, 10_000, 0)
    assert len(table.factors) == 2
    strongest = table.rows["strongest_factor"].to_numpy()
    assert set(strongest) == {0, 1}
    np.testing.assert_array_equal(strongest == 1, table.rows["factor 1"].to_numpy() > 0)
