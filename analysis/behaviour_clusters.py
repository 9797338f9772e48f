"""What agent and environment do together: clusters of their joint dynamics, step by step.

A row t is described by where it is and where it goes next: the agent's hidden state and the
leading principal components of the environment's deterministic state at t, and the change of each
until t + k for every lag k. Each of these blocks counts the same, whatever its size and scale: it
is divided by the square root of its total variance (as in multiple factor analysis, Escofier and
Pagès, 1994). A row whose lags would pass the end of the episode belongs to no cluster.

A sample's behaviour is the commonest cluster among its first rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from analysis.clustering import Clustering, fit_clusters

NO_CLUSTER = -1
"""Label of a row, or of a sample, that cannot be described."""


@dataclass(frozen=True, eq=False)
class JointStates:
    """States of N samples of T steps, agent and environment side by side."""

    agent_hidden: NDArray[np.float32]
    """(N, T, H)"""
    env_components: NDArray[np.float32]
    """(N, T, E) principal components of the environment's deterministic state."""
    length: NDArray[np.int64]
    """(N,) steps until the episode ends, that one included; T where it does not."""


@dataclass(frozen=True, eq=False)
class JointFeatures:
    """One description per row that has one."""

    values: NDArray[np.float32]
    """(M, F)"""
    sample: NDArray[np.int64]
    """(M,) which sample each row belongs to, ascending."""
    step: NDArray[np.int64]
    """(M,) row within the sample."""


@dataclass(frozen=True)
class Agreement:
    """How well clusterings of random halves of the source episodes agree with that of all."""

    adjusted_rand: float
    """Mean adjusted Rand index over rows; 1 for identical clusters, 0 by chance."""
    adjusted_rand_deviation: float
    """Standard deviation over the halves."""
    control: float
    """The same mean for samples mixed from the true ones, which have no clusters."""

    def attributes(self) -> dict[str, float]:
        """For result files and reports."""
        return {
            "cluster_stability_adjusted_rand": round(self.adjusted_rand, 4),
            "cluster_stability_deviation": round(self.adjusted_rand_deviation, 4),
            "cluster_stability_control": round(self.control, 4),
        }


def environment_components(
    env_deter: NDArray[np.floating], length: NDArray[np.int64], num_components: int, seed: int
) -> NDArray[np.float32]:
    """(N, T, deter_dim) → (N, T, E) leading principal components, in the scale of the states.

    They are fitted on the rows before the end of each episode.
    """
    num_samples, num_steps, width = env_deter.shape
    is_valid = np.arange(num_steps) < length[:, None]
    chosen = env_deter[is_valid]
    pca = PCA(min(num_components, width, len(chosen)), random_state=seed).fit(chosen)
    scores = pca.transform(env_deter.reshape(-1, width))
    return np.asarray(scores, np.float32).reshape(num_samples, num_steps, -1)


def joint_features(states: JointStates, lags: Sequence[int]) -> JointFeatures:
    """Describe every row t with t + max(lags) still in its episode.

    Args:
        states: of N samples.
        lags: steps ahead of which the changes are part of the description; may be empty.
    """
    num_steps = states.agent_hidden.shape[1]
    last_lag = max(lags, default=0)
    sample, step = np.nonzero(np.arange(num_steps) + last_lag < states.length[:, None])
    deviation = states.agent_hidden[sample, step].std(axis=0)
    parts = (states.agent_hidden / np.where(deviation > 0, deviation, 1.0), states.env_components)
    blocks = [part[sample, step] for part in parts]
    blocks += [part[sample, step + lag] - part[sample, step] for lag in lags for part in parts]
    values = np.concatenate([_with_unit_variance(block) for block in blocks], axis=1)
    return JointFeatures(np.asarray(values, np.float32), sample, step)


def _with_unit_variance(block: NDArray[np.floating]) -> NDArray[np.floating]:
    """(M, F) → the same, centred, its variances adding up to 1; zero where nothing varies."""
    centred = block - block.mean(axis=0)
    total = np.square(centred).mean(axis=0).sum()
    return centred / np.sqrt(total) if total > 0 else centred


def compress(values: NDArray[np.floating], num_components: int, seed: int) -> NDArray[np.float32]:
    """(M, F) → (M, C) leading principal components, C at most `num_components`, M and F."""
    pca = PCA(min(num_components, *values.shape), random_state=seed)
    return np.asarray(pca.fit_transform(values), np.float32)


def label_samples(
    cluster: NDArray[np.integer], features: JointFeatures, num_samples: int, num_steps: int
) -> NDArray[np.int32]:
    """(M,) clusters of rows → (num_samples,) the commonest among each sample's first rows.

    Of two equally common ones the lower number counts, which is the larger cluster.

    Args:
        cluster: of each row of `features`.
        features: tell which rows these are.
        num_samples: N, some of which may have no row.
        num_steps: rows `0 .. num_steps − 1` count.
    """
    is_early = features.step < num_steps
    votes = np.zeros((num_samples, int(cluster.max(initial=0)) + 1), np.int64)
    np.add.at(votes, (features.sample[is_early], cluster[is_early]), 1)
    return np.where(votes.any(axis=1), votes.argmax(axis=1), NO_CLUSTER).astype(np.int32)


def label_purity(
    cluster: NDArray[np.integer],
    features: JointFeatures,
    sample_cluster: NDArray[np.integer],
    num_steps: int,
) -> NDArray[np.float32]:
    """(num_samples,) share of a sample's first rows in its own cluster; NaN without a row."""
    is_early = features.step < num_steps
    sample, agrees = features.sample[is_early], cluster == sample_cluster[features.sample]
    num_samples = len(sample_cluster)
    total = np.bincount(sample, minlength=num_samples)
    same = np.bincount(sample, agrees[is_early], minlength=num_samples)
    return np.divide(same, total, out=np.full(num_samples, np.nan), where=total > 0).astype(
        np.float32
    )


def find_exemplars(
    points: NDArray[np.floating],
    features: JointFeatures,
    sample_cluster: NDArray[np.integer],
    num_clusters: int,
    num_exemplars: int,
) -> NDArray[np.int64]:
    """(num_clusters, num_exemplars) samples nearest to the centre of their own cluster.

    Distances are between means over a sample's rows and the mean of all samples of the cluster.
    Where a cluster has fewer samples, −1.

    Args:
        points: (M, C) rows, as they were clustered.
        features: tell which sample each row belongs to.
        sample_cluster: (N,)
        num_clusters: how many there are.
        num_exemplars: how many to find in each.
    """
    found = np.full((num_clusters, num_exemplars), -1, np.int64)
    counts = np.bincount(features.sample, minlength=len(sample_cluster))
    sums = np.zeros((len(sample_cluster), points.shape[1]))
    np.add.at(sums, features.sample, points)
    means = sums / np.maximum(counts, 1)[:, None]
    for cluster in range(num_clusters):
        members = np.flatnonzero(sample_cluster == cluster)
        if len(members):
            distance = np.linalg.norm(means[members] - means[members].mean(axis=0), axis=1)
            nearest = members[np.argsort(distance, kind="stable")][:num_exemplars]
            found[cluster, : len(nearest)] = nearest
    return found


@dataclass(frozen=True, eq=False)
class RowOrigin:
    """Where M rows are from."""

    sample: NDArray[np.integer]
    """(M,) which sample each row belongs to, ascending."""
    unit: NDArray[np.integer]
    """(M,) which samples depend on each other (`rollouts.independent_units`)."""


def measure_agreement(
    clustering: Clustering,
    origin: RowOrigin,
    num_neighbours: int,
    num_repeats: int,
    seed: int,
) -> Agreement:
    """Cluster random halves of the units anew and compare with the clustering of all.

    The control clusters random Gaussian mixtures of the samples, rows aligned: their means and
    covariances, within a row, between the rows of a sample and between the samples of a unit, are
    those of the samples, but they have no clusters.

    Args:
        clustering: of all M rows.
        origin: sample and unit of each.
        num_neighbours: as for `fit_clusters`.
        num_repeats: how many halves.
        seed: picks the halves and draws the control.
    """
    rng = np.random.default_rng(seed)
    mixed = fit_clusters(
        mix_samples(clustering.features, origin, rng), clustering.num_clusters, num_neighbours
    )
    scores, control = (
        [_agreement_of_half(whole, origin.unit, num_neighbours, rng) for _ in range(num_repeats)]
        for whole in (clustering, mixed)
    )
    return Agreement(float(np.mean(scores)), float(np.std(scores)), float(np.mean(control)))


def mix_samples(
    values: NDArray[np.floating], origin: RowOrigin, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(M, F) → (M, F): every sample replaced by a random Gaussian mixture of all.

    A sample is the mean of its unit and what is left. The former are mixed with weights that all
    samples of a unit share, the latter with weights of their own. A row that a sample has not got
    counts as the mean of those that others have.
    """
    samples, index = np.unique(origin.sample, return_inverse=True)
    first = np.searchsorted(origin.sample, samples)
    row = np.arange(len(origin.sample)) - first[index]
    padded = np.zeros((len(samples), int(row.max()) + 1, values.shape[1]))
    present = np.zeros(padded.shape[:2], np.bool_)
    padded[index, row], present[index, row] = values, True
    mean = padded.sum(axis=0) / np.maximum(present.sum(axis=0), 1)[:, None]
    centred = np.where(present[:, :, None], padded - mean, 0.0)
    _, number, size = np.unique(origin.unit[first], return_inverse=True, return_counts=True)
    sums = np.zeros((len(size), *centred.shape[1:]))
    np.add.at(sums, number, centred)
    shared = (sums / size[:, None, None])[number]
    scale = 1 / np.sqrt(max(len(samples) - 1, 1))
    of_units, own = (rng.normal(size=(n, len(samples))) * scale for n in (len(size), len(samples)))
    # All samples of a unit have its mean: their weights add up.
    mixed = np.tensordot(of_units[number], shared, axes=1)
    mixed += np.tensordot(own, centred - shared, axes=1) + mean
    return np.asarray(mixed[index, row], np.float32)


def _agreement_of_half(
    whole: Clustering,
    unit: NDArray[np.integer],
    num_neighbours: int,
    rng: np.random.Generator,
) -> float:
    units = np.unique(unit)
    half = rng.choice(units, max(1, len(units) // 2), replace=False)
    part = fit_clusters(whole.features[np.isin(unit, half)], whole.num_clusters, num_neighbours)
    return float(adjusted_rand_score(whole.labels, part.assign(whole.features)))
