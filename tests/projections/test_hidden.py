import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from experiment.errors import UserError
from projections.hidden import HiddenProjection, TorchProjection
from projections.outliers import inlier_mask, median_neighbour_distances


def test_independent_sources_are_found():
    generator = np.random.default_rng(1)
    sources = generator.uniform(-1, 1, size=(20_000, 3))
    states = sources @ generator.normal(size=(3, 8)) + 4.0
    everything = np.ones(len(states), np.bool_)
    projection = HiddenProjection("ica", 3, tol=1e-4).fit(states, inliers=everything)
    found = projection.transform(states)
    correlation = np.abs(np.corrcoef(found.T, sources.T)[:3, 3:])
    assert np.allclose(np.sort(correlation.max(axis=1)), 1.0, atol=0.01)
    assert projection.converged_
    assert projection.n_iter_ < 100


def test_inliers_have_standardised_uncorrelated_coordinates(ica_projection, hidden_states):
    mask = inlier_mask(hidden_states)
    coordinates = ica_projection.transform(hidden_states[mask].astype(np.float64))
    assert np.allclose(coordinates.mean(axis=0), 0.0, atol=1e-9)
    assert np.allclose(coordinates.T @ coordinates / mask.sum(), np.eye(4), atol=1e-6)


def test_statistics_are_those_of_the_inliers_alone(hidden_states):
    mask = inlier_mask(hidden_states)
    disturbed = hidden_states.copy()
    disturbed[~mask] += 50.0
    first = HiddenProjection("ica", 4).fit(hidden_states, inliers=mask)
    second = HiddenProjection("ica", 4).fit(disturbed, inliers=mask)
    assert 0 < np.sum(~mask) < len(mask) / 4
    assert first.n_inliers_ == mask.sum()
    assert np.array_equal(first.linear_, second.linear_)
    assert first.data_hash != second.data_hash


def test_told_statistics_are_those_of_the_coordinates(fitted_projection, hidden_states):
    """Those of non-negative factors, whose origin is not the mean, among them."""
    inliers = hidden_states[inlier_mask(hidden_states)].astype(np.float64)
    coordinates = fitted_projection.transform(inliers)
    told = fitted_projection.coordinates(fitted_projection.method).statistics
    num_told = coordinates.shape[1]
    assert np.allclose(told.mean[:num_told], coordinates.mean(axis=0), atol=1e-8)
    assert np.allclose(told.deviation[:num_told], coordinates.std(axis=0), rtol=1e-6)


def test_saved_coordinates_equal_transform_exactly(fitted_projection, hidden_states, tmp_path):
    saved = fitted_projection.transform(hidden_states)
    fitted_projection.save(tmp_path / "projection")
    loaded = HiddenProjection.load(tmp_path / "projection")
    assert np.array_equal(loaded.transform(hidden_states), saved)
    assert loaded.data_hash == fitted_projection.data_hash
    assert loaded.get_params() == fitted_projection.get_params()
    assert saved.dtype == np.float32


def test_coordinates_do_not_depend_on_the_rest_of_the_array(fitted_projection, hidden_states):
    states = hidden_states.astype(np.float64)
    whole = fitted_projection.transform(states)
    in_pieces = [fitted_projection.transform(states[i : i + 7]) for i in range(0, len(states), 7)]
    assert np.array_equal(np.concatenate(in_pieces), whole)
    assert np.array_equal(fitted_projection.transform(states[3]), whole[3])
    assert np.allclose(whole, (states - fitted_projection.origin_) @ fitted_projection.linear_.T)


def test_mixing_side_inverts_the_linear_map(fitted_projection):
    identity = fitted_projection.linear_ @ fitted_projection.directions
    assert np.allclose(identity, np.eye(fitted_projection.n_components_), atol=1e-9)


def test_inverse_with_the_residual_is_exact(fitted_projection, hidden_states):
    states = hidden_states.astype(np.float64)
    coordinates = fitted_projection.transform(states)
    restored = fitted_projection.inverse_transform(coordinates, fitted_projection.residual(states))
    assert np.allclose(restored, states, atol=1e-10)


def test_inverse_keeps_the_residual_at_the_mean(fitted_projection):
    mean = fitted_projection.mean_
    assert np.allclose(fitted_projection.inverse_transform(fitted_projection.transform(mean)), mean)


def test_pullback_is_autograd_through_the_inverse(fitted_projection):
    torch_projection = TorchProjection(fitted_projection, torch.float64)
    generator = np.random.default_rng(2)
    point = torch.tensor(generator.normal(size=(7, 4)), requires_grad=True)
    weights = torch.tensor(generator.normal(size=(12,)))

    def scalar(states: torch.Tensor) -> torch.Tensor:
        return torch.sin(states @ weights).sum()

    states = torch_projection.inverse_transform(point)
    expected = torch.autograd.grad(scalar(states), point)[0]
    leaf = states.detach().requires_grad_()
    hidden_gradient = torch.autograd.grad(scalar(leaf), leaf)[0].numpy()
    assert np.allclose(fitted_projection.pullback(hidden_gradient), expected.numpy(), atol=1e-12)


def test_pullback_of_a_coordinates_own_gradient_is_the_unit_vector(fitted_projection):
    torch_projection = TorchProjection(fitted_projection, torch.float64)
    state = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    for direction in range(4):
        coordinate = torch_projection.transform(state)[direction]
        gradient = torch.autograd.grad(coordinate, state)[0].numpy()
        unit = np.eye(4)[direction]
        assert np.allclose(fitted_projection.pullback(gradient), unit, atol=1e-9)


def test_torch_copy_agrees(fitted_projection, hidden_states):
    torch_projection = TorchProjection(fitted_projection, torch.float64)
    states = hidden_states[:50].astype(np.float64)
    coordinates = fitted_projection.transform(states)
    given = torch.from_numpy(states)
    assert np.allclose(torch_projection(given).numpy(), coordinates, atol=1e-9)
    assert np.allclose(
        torch_projection.inverse_transform(torch.from_numpy(coordinates)).numpy(),
        fitted_projection.inverse_transform(coordinates),
        atol=1e-9,
    )
    assert np.allclose(
        torch_projection.residual(given).numpy(), fitted_projection.residual(states), atol=1e-9
    )


def test_readout_is_the_same_in_coordinates(ica_projection, hidden_states):
    generator = np.random.default_rng(3)
    weights, bias = generator.normal(size=(15, 12)), generator.normal(size=15)
    states = hidden_states.astype(np.float64)
    in_coordinates = ica_projection.transform(states) @ ica_projection.pullback(weights).T
    discarded = ica_projection.residual(states) @ weights.T
    shifted_bias = bias + weights @ ica_projection.mean_
    assert np.allclose(
        states @ weights.T + bias, in_coordinates + discarded + shifted_bias, atol=1e-9
    )


def test_a_constant_unit_takes_no_part(ica_projection):
    assert ica_projection.scale_[5] == 1.0
    assert np.all(ica_projection.linear_[:, 5] == 0.0)
    assert np.all(ica_projection.directions[5] == 0.0)


def test_principal_components_are_uncorrelated_and_ordered(ica_projection, hidden_states):
    inliers = hidden_states[inlier_mask(hidden_states)].astype(np.float64)
    covariance = np.cov(ica_projection.principal_components(inliers).T, bias=True)
    assert np.allclose(covariance, np.diag(ica_projection.component_deviations_**2), atol=1e-9)
    assert np.all(np.diff(ica_projection.component_deviations_) <= 0)
    assert ica_projection.explained_variance_ratio_.sum() == pytest.approx(1.0)


def test_low_rank_data_give_fewer_directions():
    generator = np.random.default_rng(4)
    states = generator.normal(size=(500, 3)) @ generator.normal(size=(3, 12))
    with pytest.warns(UserWarning, match="rank 3: using 3 components instead of 16"):
        projection = HiddenProjection("pca").fit(states)
    assert projection.transform(states).shape == (500, 3)


def test_missing_convergence_is_said_and_stored(hidden_states, tmp_path):
    projection = HiddenProjection("ica", 4, max_iter=1, tol=1e-12)
    with pytest.warns(ConvergenceWarning, match="ICA did not converge in 1 iterations"):
        projection.fit(hidden_states)
    projection.save(tmp_path / "projection")
    metadata = json.loads((tmp_path / "projection" / "projection.json").read_text())
    assert metadata["facts"]["converged_"] is False
    assert HiddenProjection.load(tmp_path / "projection").converged_ is False


def test_seed_makes_the_fit_reproducible(hidden_states):
    first, second = (HiddenProjection("nmf", 4).fit(hidden_states) for _ in range(2))
    other = HiddenProjection("nmf", 4, random_state=1).fit(hidden_states)
    assert np.array_equal(first.linear_, second.linear_)
    assert not np.allclose(first.linear_, other.linear_)


def test_non_negative_factors_begin_at_the_least_of_every_unit_among_all_inliers():
    """Every unit is least in a row of its own, the first and the last among them."""
    states = np.random.default_rng(7).uniform(1.0, 2.0, size=(200, 6))
    inliers = np.arange(200) != 30
    states[[0, 1, 50, 101, 198, 199], np.arange(6)] = np.arange(6) / 6
    states[30] = -5.0
    projection = HiddenProjection("nmf", 3, max_iter=2000).fit(states, inliers=inliers)
    np.testing.assert_allclose(projection.origin_, np.arange(6) / 6)


def test_scikit_learn_conventions(ica_projection):
    copy = clone(ica_projection)
    assert isinstance(copy, HiddenProjection)
    assert copy.get_params() == ica_projection.get_params()
    with pytest.raises(NotFittedError):
        copy.transform(np.zeros((1, 12)))


def test_wrong_sizes_are_refused(ica_projection):
    with pytest.raises(ValueError, match=r"expected \(..., 12\), found \(3, 11\)"):
        ica_projection.transform(np.zeros((3, 11)))
    with pytest.raises(UserError, match="expected finite"):
        HiddenProjection().fit(np.full((10, 4), np.nan))


def test_unusable_folders_are_refused(ica_projection, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        HiddenProjection.load(tmp_path / "absent")
    folder = tmp_path / "projection"
    ica_projection.save(folder)
    metadata = json.loads((folder / "projection.json").read_text())
    (folder / "projection.json").write_text(json.dumps({**metadata, "schema_version": 99}))
    with pytest.raises(UserError, match="schema 99 is unknown"):
        HiddenProjection.load(folder)
    (folder / "projection.json").write_text(json.dumps(metadata))
    (folder / "projection.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="unreadable arrays"):
        HiddenProjection.load(folder)


def test_a_second_fit_forgets_where_the_first_came_from(ica_projection, hidden_states, tmp_path):
    ica_projection.save(tmp_path / "projection")
    loaded = HiddenProjection.load(tmp_path / "projection")
    loaded.provenance_ = {"seed": 3}
    loaded.save(tmp_path / "again")
    assert HiddenProjection.load(tmp_path / "again").provenance_ == {"seed": 3}
    assert loaded.fit(hidden_states).provenance_ is None


def test_neighbour_distances_equal_a_slow_reference():
    states = np.random.default_rng(5).normal(size=(60, 3)) * [1.0, 10.0, 0.1]
    standardised = (states - states.mean(axis=0)) / states.std(axis=0)
    pairwise = np.linalg.norm(standardised[:, None] - standardised[None], axis=-1)
    expected = np.median(np.sort(pairwise, axis=1)[:, 1:6], axis=1)
    assert np.allclose(median_neighbour_distances(states), expected)


def test_outliers_are_found_among_a_sample_of_references():
    states = np.random.default_rng(6).normal(size=(3000, 4))
    states[:10] += 30.0 * np.arange(1, 11)[:, None]
    for max_references in (20_000, 1500):
        mask = inlier_mask(states, max_references=max_references)
        assert not mask[1:10].any()
        assert mask[10:].mean() > 0.95


def test_too_few_states_for_neighbours():
    with pytest.raises(UserError, match="5 hidden states are too few"):
        inlier_mask(np.zeros((5, 3)))
