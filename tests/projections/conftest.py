import numpy as np
import pytest
from numpy.typing import NDArray

from projections.hidden import HiddenProjection

HIDDEN_DIM = 12
NUM_DIRECTIONS = 4


@pytest.fixture(scope="session")
def hidden_states() -> NDArray[np.float32]:
    """(2000, 12) mixtures of four independent non-Gaussian sources, one unit constant."""
    generator = np.random.default_rng(0)
    sources = generator.laplace(size=(2000, NUM_DIRECTIONS)) ** 3
    mixing = generator.normal(size=(NUM_DIRECTIONS, HIDDEN_DIM))
    states = np.tanh(0.02 * sources @ mixing) + 0.05 * generator.normal(size=(2000, HIDDEN_DIM))
    states[:, 5] = 0.3
    return states.astype(np.float32)


@pytest.fixture(scope="session", params=["ica", "pca", "nmf"])
def fitted_projection(request: pytest.FixtureRequest, hidden_states) -> HiddenProjection:
    return HiddenProjection(request.param, n_components=NUM_DIRECTIONS).fit(hidden_states)


@pytest.fixture(scope="session")
def ica_projection(hidden_states) -> HiddenProjection:
    return HiddenProjection("ica", n_components=NUM_DIRECTIONS).fit(hidden_states)
