"""Clusters of two kinds, and their stability over episodes."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from analysis.clustering import (
    draw_unclustered,
    fit_clusters,
    fit_dense_clusters,
    measure_stability,
)

SIZES = (120, 80, 60)


def make_groups(rng):
    labels = np.repeat(np.arange(len(SIZES)), SIZES)
    centres = 10.0 * np.eye(len(SIZES), 5)
    rows = centres[labels] + rng.normal(size=(len(labels), 5))
    return rows.astype(np.float32), labels


def test_dense_regions_are_found_without_being_told_how_many():
    rng = np.random.default_rng(0)
    rows, labels = make_groups(rng)
    between = rng.uniform(-30, 30, size=(15, 5)).astype(np.float32)
    clustering = fit_dense_clusters(np.concatenate([rows, between]), min_rows=20)
    assert clustering.num_clusters == len(SIZES)
    assert adjusted_rand_score(labels, clustering.assign(rows)) > 0.95
    assert 0.02 < clustering.noise_share < 0.2
    assert set(clustering.assign(between)) <= set(range(len(SIZES)))


def test_without_a_dense_region_there_is_one_cluster():
    rows = np.random.default_rng(1).uniform(size=(60, 8)).astype(np.float32)
    clustering = fit_dense_clusters(rows, min_rows=25)
    assert clustering.num_clusters == 1
    assert clustering.noise_share == 1.0
    assert (clustering.assign(rows) == 0).all()


def test_clusters_that_are_but_single_episodes_are_not_stable():
    """Random rows of every episode would find its cluster again; other episodes cannot."""
    rng = np.random.default_rng(2)
    num_episodes, num_steps = 24, 12
    episode = np.repeat(np.arange(num_episodes), num_steps)
    places = 5.0 * rng.normal(size=(num_episodes, 6))
    rows = (places[episode] + 0.1 * rng.normal(size=(len(episode), 6))).astype(np.float32)

    def fit(part):
        return fit_clusters(part, num_episodes, 8)

    by_episode = measure_stability(rows, episode, fit, 3, 0)
    by_row = measure_stability(rows, np.arange(len(rows)), fit, 3, 0)
    assert by_row.adjusted_rand > 0.9
    assert by_episode.adjusted_rand < 0.75


def test_the_control_is_as_much_alike_within_an_episode_as_the_data():
    rng = np.random.default_rng(4)
    episode = np.repeat(np.arange(600), 5)
    shared = rng.normal(size=(600, 3)) * [3.0, 1.0, 0.0]
    rows = 2.0 + shared[episode] + rng.normal(size=(3000, 3))
    drawn = draw_unclustered(rows, episode, rng)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(rows.T), atol=0.8)
    for column, likeness in enumerate((0.9, 0.5, 0.0)):
        found = np.corrcoef(drawn[::5, column], drawn[1::5, column])[0, 1]
        # The mean of five rows still holds a fifth of what is their own.
        assert found == pytest.approx(likeness + (1 - likeness) / 5, abs=0.1)


def test_groups_that_all_episodes_share_are_stable():
    rng = np.random.default_rng(3)
    rows, _ = make_groups(rng)
    episode = rng.integers(0, 20, len(rows))
    stability = measure_stability(rows, episode, lambda part: fit_clusters(part, 3, 10), 3, 0)
    assert stability.adjusted_rand > 0.99
    assert stability.control < 0.7


def test_a_single_cluster_is_no_stable_one():
    rows = np.random.default_rng(4).uniform(size=(80, 6)).astype(np.float32)
    episode = np.repeat(np.arange(20), 4)
    stability = measure_stability(rows, episode, lambda part: fit_dense_clusters(part, 30), 2, 0)
    assert stability.adjusted_rand == stability.control == 0.0
