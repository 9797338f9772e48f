from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex, to_rgba_array
from PIL import Image

from analysis.hidden_figures import (
    REAL_COLOUR,
    SIMULATED_COLOUR,
    PlottingConfig,
    category_colours,
    draw_clusters,
    draw_coloured,
    draw_overlap,
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
from experiment.errors import UserError
from experiment.report import StageReport


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


def test_every_cluster_has_a_panel(plotted_result):
    with read_results(plotted_result) as dataset:
        table = read_plot_table(dataset, 1000, 0).of_source("real")
        titles = [a.get_title() for a in draw_clusters(table, "pca", range(3)).axes]
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
    panels = [axis for axis in draw_overlap(table).axes if axis.collections]
    assert panels
    for panel in panels:
        (points,) = panel.collections
        drawn = [to_hex(colour) for colour in to_rgba_array(points.get_facecolor())]
        assert drawn == np.where(is_simulated, SIMULATED_COLOUR, REAL_COLOUR).tolist()


def test_titles_tell_how_many_rows_of_all_are_drawn(plotted_result):
    with read_results(plotted_result) as dataset:
        totals = np.bincount(dataset.source.values)
        table = read_plot_table(dataset, 20, 0)
    for source, total in zip(("real", "simulated"), totals, strict=True):
        figure = draw_variables(table.of_source(source), "pca", source)
        assert f"20 of {total:,} decisions" in figure.get_suptitle()


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
        panels = draw_variables(table.of_source(source), "pca", source).axes
        shown[source] = {
            panel.get_title().split(" (n =")[0]: panel.collections[0].get_clim()
            for panel in panels
            if panel.get_title()
        }
    assert shown["real"] == shown["simulated"]
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


def test_senseless_numbers_are_refused(plotted_result, tmp_path):
    config = PlottingConfig(
        input_dir=plotted_result.parent, output_dir=tmp_path / "absent", max_points=0
    )
    with pytest.raises(UserError, match="--max_points 0: must be at least 1"):
        plot_hidden_analysis(config, StageReport("figures"))
    assert not config.output_dir.exists()


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
