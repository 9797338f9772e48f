"""Figures of Jacobians."""

import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.figure_style import figure_text
from analysis.jacobian_figures import draw_clusters, draw_overview

CLUSTERS = np.array([0, 0, 0, 1, 1, 2])


def jacobian_results() -> xr.Dataset:
    """Six samples of three clusters, two components, three steps."""
    rng = np.random.default_rng(0)
    sizes = {
        "environment_gradient": 2, "sample": 6, "target_step": 3, "target": 2, "source_step": 3,
        "source": 2,
    }  # fmt: skip
    return xr.Dataset(
        {
            "jacobian": (tuple(sizes), rng.normal(size=tuple(sizes.values()))),
            "cluster": ("sample", CLUSTERS),
            "embedding": (("sample", "axis"), rng.normal(size=(6, 2))),
            "frames_reproduced": ("sample", np.ones(6)),
            "length": ("sample", np.full(6, 3)),
            "unit": ("sample", np.arange(6)),
        },
        coords={
            "environment_gradient": ["passed", "cut"],
            "source_step": np.arange(3),
            "target_step": np.arange(3),
        },
        attrs={"grad_timestep": 1, "num_clusters": 3},
    )


def test_titles_stay_inside_the_figure_and_tell_the_counts():
    results = jacobian_results()
    results["unit"] = ("sample", [0, 0, 1, 2, 3, 4])
    results.attrs |= {
        "cluster_stability_adjusted_rand": 0.7,
        "cluster_stability_control": 0.25,
        "embedding_trustworthiness": 0.9,
        "embedding_trustworthiness_of_pca": 0.8,
        "embedding_trustworthiness_of_shuffled": 0.5,
    }
    with figure_text():
        figure = draw_overview(results)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = canvas.get_width_height()
        for axis in figure.axes:
            title = axis.title.get_window_extent(canvas.get_renderer())
            assert title.x0 >= 0
            assert title.x1 <= width
            assert title.y1 <= height
    assert "6 samples of at most 3 steps from 5 source episodes" in figure.get_suptitle()


def test_a_cluster_is_named_in_the_colour_of_its_samples():
    results = jacobian_results()
    (places,) = draw_overview(results).axes[2].collections
    names = {axis.get_title(): axis.title for axis in draw_clusters(results, 8).axes}
    for cluster, count in enumerate((3, 2, 1)):
        colours = np.asarray(places.get_facecolor())[cluster == CLUSTERS]
        name = names[f"cluster {cluster} (n = {count})"]
        np.testing.assert_array_equal(colours, np.tile(name.get_color(), (count, 1)))
