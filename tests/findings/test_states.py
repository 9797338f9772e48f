"""Sentences about hidden states, on files whose contents are known."""

import numpy as np
import xarray as xr

from findings.states import discovery_sentence


def test_a_component_that_goes_with_its_own_past_is_no_discovery():
    """Of three components at one lag, one pair of six is found, and each with itself."""
    q = np.full((3, 3), 0.5)
    np.fill_diagonal(q, 0.0)
    q[0, 1] = 0.01
    cross = xr.Dataset(
        {
            "correlation_q": (
                ("null", "group", "lag", "source", "target"),
                np.stack([q, np.full((3, 3), 0.5)])[:, None, None],
            )
        },
        {
            "null": ["pairing", "time_shift"],
            "group": ["all"],
            "lag": [1],
            "source": range(3),
            "target": range(3),
        },
    )
    sentence = discovery_sentence(cross)
    assert "1 of 6 (17%) pass the null of other samples" in sentence
    assert "0 of 6 (0%) pass the null of shifts in time" in sentence
