"""Bootstrap over whole levels: what is resampled are independent units, never steps."""

import numpy as np
from numpy.typing import NDArray

INTERVAL_PERCENTILES = (2.5, 97.5)
"""Ends of the 95% intervals."""


def resample_weights(num_units: int, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """(num_resamples, num_units) how often each unit is drawn, with replacement."""
    generator = np.random.default_rng(seed)
    share = np.full(num_units, 1 / num_units)
    return generator.multinomial(num_units, share, size=num_resamples).astype(np.float64)
