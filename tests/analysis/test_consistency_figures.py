"""What the figure of consistency draws, and what it says of the behaviours that it leaves out."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import same_color

from analysis.consistency_figures import draw_agreement, drawn_groups
from analysis.figure_style import behaviour_colour

GROUPS = ["all", "0", "1", "2"]


@pytest.fixture
def results():
    """Four groups; behaviour 1 has no Jacobians, and 2 is the smallest that has."""
    dims = ("dynamics", "environment_gradient", "group", "lag", "measure")
    agreement = np.random.default_rng(0).normal(size=(2, 2, 4, 3, 1))
    agreement[:, :, 2] = np.nan
    null = (("null", *dims), agreement[None])
    return xr.Dataset(
        {
            "agreement": (dims, agreement),
            "agreement_null": null,
            "agreement_q": (null[0], np.full_like(null[1], 0.5)),
            "num_episodes": ("group", [10, 3, 4, 2]),
            "num_jacobians": ("group", [6, 3, 0, 2]),
            "measure_meaning": ("measure", ["cosine"]),
        },
        coords={
            "dynamics": ["correlation", "regression"],
            "environment_gradient": ["passed", "cut"],
            "group": GROUPS,
            "lag": [1, 2, 3],
            "measure": ["cosine"],
            "null": ["components"],
        },
    )


def test_what_is_left_out_is_named_with_its_reason(results):
    everything = drawn_groups(results, 9)
    assert everything.drawn == ["all", "0", "2"]
    assert "behaviour 1 (no sample of theirs has Jacobians)" in everything.words
    assert "behaviour 2" not in everything.words
    few = drawn_groups(results, 2)
    assert few.drawn == ["all", "0"]
    assert "behaviour 2 (the smallest; at most 2 lines are drawn)" in few.words


def test_a_behaviour_keeps_its_colour_whichever_others_are_drawn(results):
    for size in ([10, 3, 4, 2], [10, 2, 4, 3]):
        figure = draw_agreement(results.assign(num_episodes=("group", size)), 9)
        lines = [line for line in figure.axes[0].lines if not str(line.get_label()).startswith("_")]
        named = {str(line.get_label()).split(" (")[0]: line.get_color() for line in lines}
        assert set(named) == {"all", "behaviour 0", "behaviour 2"}
        assert named["all"] == "black"
        assert same_color(named["behaviour 0"], behaviour_colour(0))
        assert same_color(named["behaviour 2"], behaviour_colour(2))
    assert "left out: behaviour 1" in figure.get_suptitle()
