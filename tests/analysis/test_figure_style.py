"""What all figures share: limits, colours, contact sheets."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from analysis.figure_style import (
    behaviour_colour,
    contact_sheet,
    frame_clouds,
    robust_limits,
    save_figure,
)


def test_a_few_far_values_do_not_decide_the_limits():
    near = np.linspace(-1, 1, 10_001)
    low, high = robust_limits([np.append(near, [500.0, -700.0])])
    assert -2.2 < low < -1
    assert 1 < high < 2.2
    # Without them, the extremes decide, and nothing is lost.
    low, high = robust_limits([near])
    assert low < -1
    assert high > 1
    assert high - low == pytest.approx(2 * 1.08)


def test_a_small_group_elsewhere_is_kept():
    low, high = robust_limits([np.linspace(0, 1, 100_000), np.linspace(20, 21, 50)])
    assert low < 0
    assert high > 21


def test_one_value_has_limits_around_it():
    assert robust_limits([np.full(5, 3.0)]) == (2.5, 3.5)


def test_points_outside_are_counted():
    axis = Figure().subplots()
    cloud = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    assert frame_clouds(axis, [cloud]) == 0
    far = np.array([[90.0, 0.0], [0.0, -90.0], [80.0, 80.0]])
    assert frame_clouds(axis, [np.concatenate([cloud, far])]) == 3
    assert axis.get_xlim()[1] < 5


def test_points_outside_along_the_third_axis_are_counted_where_there_is_one():
    cloud = np.random.default_rng(0).uniform(-1, 1, (2000, 3))
    cloud[0] = 0.0, 0.0, 90.0
    solid = Figure().add_subplot(projection="3d")
    assert frame_clouds(Figure().subplots(), [cloud]) == 0
    assert frame_clouds(solid, [cloud]) == 1
    assert solid.get_zlim()[1] < 5


def test_behaviours_have_distinct_colours_and_none_is_black():
    colours = [behaviour_colour(index) for index in range(40)]
    assert len(set(colours)) == 40
    assert "#000000" not in colours


def test_contact_sheet_shows_every_picture(tmp_path):
    pictures = []
    for index, colour in enumerate(("red", "lime", "blue")):
        figure = Figure(figsize=(2, 1), facecolor=colour)
        pictures.append(save_figure(figure, tmp_path / f"figure_{index}", 50))
        assert (tmp_path / f"figure_{index}.pdf").read_bytes().startswith(b"%PDF")
    sheet = np.asarray(contact_sheet(pictures, columns=2, width=100))
    assert sheet.shape == (100, 200, 3)
    with Image.open(pictures[0]) as picture:
        assert picture.size == (100, 50)
    for place, colour in (((25, 50), 0), ((25, 150), 1), ((75, 50), 2)):
        assert sheet[place].argmax() == colour
