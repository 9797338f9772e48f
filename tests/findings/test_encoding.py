"""What a report says of probes that are read on simulated states."""

import numpy as np
import pytest
import xarray as xr

from findings.encoding import reading_sentence, reading_tables


@pytest.fixture
def probes() -> xr.Dataset:
    """Two variables known, one of them lost in the simulator; no rows at the last step."""
    score = np.full((2, 1, 3, 3), np.nan)
    score[0, 0, :2] = [[0.5, 0.8, np.nan], [0.4, 0.6, np.nan]]
    score[1, 0, :2] = [[-0.3, 0.6, np.nan], [-0.5, 0.2, np.nan]]
    dims = ("read_source", "read_representation", "step", "variable")
    return xr.Dataset(
        {
            "reading_score": (dims, score),
            "reading_score_interval": (("bound", *dims), np.stack([score - 0.1, score + 0.1])),
        },
        {
            "read_source": ["real", "simulated"],
            "read_representation": ["hidden"],
            "step": [0, 1, 2],
            "variable": ["saw_dx", "coin_dx", "enemy_dx"],
            "bound": ["lower", "upper"],
        },
    )


def test_the_table_sets_simulated_beside_real_states(probes: xr.Dataset) -> None:
    (table,) = reading_tables(probes)
    assert table.columns[1:] == ("real, step 0", "simulated, step 0", "real, step 1",
                                 "simulated, step 1")  # fmt: skip
    assert [row[0] for row in table.rows] == ["coin_dx", "saw_dx"]
    assert table.rows[1][1:3] == ("0.50 [0.40, 0.60]", "−0.30 [−0.40, −0.20]")


def test_the_sentence_tells_medians_and_what_is_left(probes: xr.Dataset) -> None:
    told = reading_sentence(probes)
    assert "0.15 at step 0 (on the decisions that are imitated 0.65)" in told
    assert "−0.15 at step 1 (on the decisions that are imitated 0.50)" in told
    assert "1 of 2 (50%) variables" in told


def test_without_simulated_rollouts_it_says_so(probes: xr.Dataset) -> None:
    without = probes.drop_vars(["reading_score", "reading_score_interval"])
    assert reading_tables(without) == ()
    assert reading_sentence(without) == "Probes were not read on simulated states."
