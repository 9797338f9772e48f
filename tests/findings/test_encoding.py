"""What a report says of probes that are read on simulated states."""

import numpy as np
import pytest
import xarray as xr

from findings.encoding import reading_sentence, reading_tables, state_sentences, state_tables


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


@pytest.fixture
def states() -> xr.Dataset:
    """Environment state and latent of one variable above all baselines, one below pixels."""
    names = ["env_state", "latent"]
    baselines = [
        *("real_hidden", "simulated_pixels", "simulated_untrained"),
        *("window_pixels", "window_untrained"),
    ]
    score = np.array([[[0.6, 0.9], [0.2, 0.3]]])
    difference = np.zeros((2, 5, 2))
    difference[:, 1:, 0] = 0.3
    difference[:, (1, 3), 1] = -0.2
    by_state = ("probe", "simulator_representation", "variable")
    by_pair = ("simulator_representation", "simulator_baseline", "variable")
    return xr.Dataset(
        {
            "simulator_score": (by_state, score),
            "simulator_score_interval": (
                ("bound", *by_state),
                np.stack([score - 0.1, score + 0.1]),
            ),
            "simulator_difference": (by_pair, difference),
            "simulator_difference_interval": (
                ("bound", *by_pair),
                np.stack([difference - 0.1, difference + 0.1]),
            ),
        },
        {
            "probe": ["linear"],
            "simulator_representation": names,
            "simulator_baseline": baselines,
            "variable": ["saw_dx", "coin_dx"],
            "bound": ["lower", "upper"],
        },
    )


def test_states_of_the_simulator_stand_beside_their_own_baselines(states: xr.Dataset) -> None:
    (table,) = state_tables(states)
    baselines = ("less pixels", "less untrained")
    assert table.columns == ("variable", "environment state", *baselines, "latent", *baselines)
    assert table.rows[0][:4] == (
        *("coin_dx", "0.90 [0.80, 1.00]", "−0.20 [−0.30, −0.10]", "+0.00 [−0.10, +0.10]"),
    )
    assert table.rows[1][4:6] == ("0.20 [0.10, 0.30]", "+0.30 [+0.20, +0.40]")
    environment, latent = state_sentences(states)
    assert environment == (
        "The environment state tells more than both its pixels and an untrained agent over the "
        "same frames of saw_dx, and less than one of them of coin_dx (95% intervals that exclude "
        "0; not adjusted for their number)."
    )
    assert latent.startswith("The latent tells more")


def test_a_file_of_before_these_baselines_has_no_such_table(
    states: xr.Dataset, probes: xr.Dataset
) -> None:
    old = states.sel(simulator_baseline=["real_hidden"])
    for lacking in (old, probes):
        assert state_tables(lacking) == ()
        assert state_sentences(lacking) == ()
