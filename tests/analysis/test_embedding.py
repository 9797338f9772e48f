"""Embeddings keep what they were fitted on in place, and place other rows beside it."""

import numpy as np
import pytest
import torch

from analysis.embedding import fit_embedding, measure_quality

NUM_GROUPS, GROUP_SIZE = 3, 60


@pytest.fixture(scope="module")
def groups():
    rng = np.random.default_rng(0)
    centres = 8.0 * np.eye(NUM_GROUPS, 6)
    rows = centres[:, None] + rng.normal(size=(NUM_GROUPS, GROUP_SIZE, 6))
    return rows.reshape(-1, 6).astype(np.float32)


@pytest.fixture(scope="module", params=["pca", "tsne", "umap"])
def embedder(request, groups):
    return fit_embedding(request.param, groups, 10, seed=0)


@pytest.mark.medium
def test_rows_lie_where_they_lie_whatever_is_placed_with_them(embedder, groups):
    whole = embedder.transform(groups)
    parts = [embedder.transform(part) for part in np.split(groups, [7, 100])]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.medium
def test_new_rows_join_the_group_that_they_belong_to(embedder, groups):
    places = embedder.transform(groups).reshape(NUM_GROUPS, GROUP_SIZE, 2)
    centres = places.mean(axis=1)
    noise = np.random.default_rng(1).normal(scale=0.5, size=groups.shape)
    new = embedder.transform((groups + noise).astype(np.float32))
    nearest = np.linalg.norm(new[:, None] - centres, axis=-1).argmin(axis=1)
    assert np.mean(nearest == np.repeat(np.arange(NUM_GROUPS), GROUP_SIZE)) > 0.95


@pytest.mark.medium
@pytest.mark.filterwarnings("ignore:Tensorflow not installed")
def test_fitted_rows_keep_their_place(monkeypatch, groups):
    import umap

    fitted = []
    fit_transform = umap.UMAP.fit_transform

    def remember(self, *arguments):
        fitted.append(fit_transform(self, *arguments))
        return fitted[-1]

    monkeypatch.setattr(umap.UMAP, "fit_transform", remember)
    embedder = fit_embedding("umap", groups, 10, seed=0)
    assert embedder is not None
    np.testing.assert_allclose(embedder.transform(groups[::-1])[::-1], fitted[0], atol=1e-5)


def test_trustworthiness_is_one_for_the_features_themselves_and_half_by_chance(groups):
    flat = groups[:, :2]
    quality = measure_quality(flat, flat, 10, seed=0)
    assert quality.trustworthiness == pytest.approx(1.0)
    assert quality.of_pca == pytest.approx(1.0)
    assert quality.of_shuffled == pytest.approx(0.5, abs=0.06)


@pytest.mark.medium
def test_tsne_is_the_same_whatever_the_number_of_threads(monkeypatch, groups):
    """Each row keeps its place: neighbours are exact, and no sum depends on who adds it up."""
    layouts = []
    for num_threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=num_threads: count)
        embedder = fit_embedding("tsne", groups, 10, seed=0)
        assert embedder is not None
        layouts.append(embedder.transform(groups))
    np.testing.assert_array_equal(*layouts)
