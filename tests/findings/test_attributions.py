"""What a report says of integrated gradients."""

import numpy as np
import xarray as xr

from findings.attributions import convergence_sentence


def integrals(difference: float, delta: float) -> xr.Dataset:
    """Two samples and one target whose integrals over the latent all missed as much."""
    dims = ("sample", "target", "target_step")
    return xr.Dataset(
        {
            "integrated_latent_difference": (dims, np.full((2, 1, 1), difference)),
            "integrated_latent_delta": (dims, np.full((2, 1, 1), delta)),
        }
    )


def test_the_share_of_integrals_that_converged_is_told() -> None:
    assert convergence_sentence(integrals(2.0, 0.01)).endswith("over latent, mean: 100%.")
    assert convergence_sentence(integrals(2.0, 0.05)).endswith("over latent, mean: 0%.")


def test_integrals_that_have_nothing_to_share_out_are_named_without_a_warning() -> None:
    for difference, delta in ((0.0, 0.0), (np.nan, np.nan)):
        told = convergence_sentence(integrals(difference, delta))
        assert told.endswith("over latent, mean: no integral has a change to share out.")
