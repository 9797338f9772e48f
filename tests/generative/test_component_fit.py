"""R² in component coordinates against scikit-learn and against planted answers."""

import numpy as np
import pytest
from sklearn.metrics import r2_score

from generative.component_fit import ComponentErrors, fit_components
from generative.level_bootstrap import LevelBootstrap


@pytest.fixture
def planted():
    """Forty windows of eight levels, two horizons, three components, two predictions."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40, 2, 3)) * [1.0, 2.0, 0.5] + [0.0, 5.0, -3.0]
    noise = rng.normal(size=(2, 40, 2, 3)) * np.array([0.1, 2.0])[:, None, None, None]
    truth[35:, 1] = np.nan
    return truth, truth + noise


def test_it_equals_the_coefficient_of_determination_of_a_library(planted):
    truth, predicted = planted
    bootstrap = LevelBootstrap(np.arange(40) // 5, 300, seed=0)
    fit = fit_components(ComponentErrors(np.square(predicted - truth), truth), bootstrap)
    for method, horizon, component in np.ndindex(2, 2, 3):
        rows = np.isfinite(truth[:, horizon, component])
        expected = r2_score(
            truth[rows, horizon, component], predicted[method, rows, horizon, component]
        )
        assert fit.r2[method, horizon, component] == pytest.approx(expected)
        low, high = fit.r2_interval[:, method, horizon, component]
        assert low < expected < high
    np.testing.assert_allclose(fit.median_r2, np.median(fit.r2, axis=-1))


def test_the_mean_state_explains_nothing_and_a_constant_component_has_no_r2(planted):
    truth, _ = planted
    truth = truth[:35].copy()
    truth[..., 2] = 0.7
    errors = np.square(truth.mean(axis=0) - truth)[None]
    bootstrap = LevelBootstrap(np.arange(35), 50, seed=0)
    fit = fit_components(ComponentErrors(errors, truth), bootstrap)
    np.testing.assert_allclose(fit.r2[..., :2], 0, atol=1e-12)
    assert np.isnan(fit.r2[..., 2]).all()
