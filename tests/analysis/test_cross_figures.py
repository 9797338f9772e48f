"""Figures of matrices whose components stand in another order."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.cross_figures import CrossDrawing, draw_matrix, lags_to_draw, mark
from experiment.errors import UserError

ORDER = np.array([2, 0, 3, 1])


def test_rows_columns_and_their_names_are_reordered_alike():
    values = np.arange(16.0).reshape(4, 4)
    axis = Figure().subplots()
    image = np.asarray(draw_matrix(axis, values, 16.0, ORDER).get_array())
    for row, source in enumerate(ORDER):
        for column, target in enumerate(ORDER):
            assert image[row, column] == values[source, target]
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["2", "0", "3", "1"]


def test_a_mark_stands_on_the_entry_that_it_is_of():
    chosen = np.zeros((4, 4), np.bool_)
    chosen[3, 0] = True
    for is_filled in (True, False):
        axis = Figure().subplots()
        mark(axis, chosen, ORDER, is_filled)
        for drawn in axis.collections:
            # Sources are rows: component 3 is the third of them, component 0 the second column.
            np.testing.assert_array_equal(np.asarray(drawn.get_offsets()), [[1, 2]])


def test_lags_that_there_are_not_are_left_out_unless_they_are_all():
    assert lags_to_draw(CrossDrawing(drawn_lags=(0, 2, 9)), [0, 1, 2]) == [0, 2]
    with pytest.raises(UserError, match="--drawn_lags 3 9: there are lags 0 to 2 only"):
        lags_to_draw(CrossDrawing(drawn_lags=(3, 9)), [0, 1, 2])
