from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from analysis.behaviour_analysis import (
    BehaviourConfig,
    BehaviourFeatures,
    BehaviourGroups,
    analyse_behaviour,
)
from analysis.behaviour_clusters import (
    NO_CLUSTER,
    JointFeatures,
    JointStates,
    RowOrigin,
    compress,
    environment_components,
    find_exemplars,
    joint_features,
    label_purity,
    label_samples,
    measure_agreement,
    mix_samples,
)
from analysis.behaviour_figures import BehaviourPlottingConfig, draw_overview, plot_behaviour
from analysis.clustering import fit_clusters
from analysis.episode_stacks import lengths_until_done, stack_rows
from analysis.results import read_results
from analysis.rollout_rows import RolloutRows
from experiment.errors import UserError
from experiment.report import StageReport
from rollouts.store import RolloutDataset

NUM_SAMPLES, NUM_STEPS, LAGS = 60, 8, (1, 3)


def planted_states(seed=0):
    """Three behaviours that differ in where agent and environment go, not in where they are."""
    rng = np.random.default_rng(seed)
    labels = np.arange(NUM_SAMPLES) % 3
    velocity = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])[labels]
    start = rng.normal(size=(NUM_SAMPLES, 1, 2)) * 3
    path = start + velocity[:, None] * np.arange(NUM_STEPS)[:, None] * 2
    agent, env = (path + rng.normal(size=path.shape) * 0.1 for _ in range(2))
    length = np.full(NUM_SAMPLES, NUM_STEPS)
    states = JointStates(agent.astype(np.float32), env.astype(np.float32), length)
    return SimpleNamespace(states=states, labels=labels)


def test_planted_behaviours_are_recovered_and_shuffled_ones_are_not():
    planted = planted_states()
    features = joint_features(planted.states, LAGS)
    points = compress(features.values, 6, 0)
    clusters = fit_clusters(points, 3, 10).labels
    found = label_samples(clusters, features, NUM_SAMPLES, 5)
    assert adjusted_rand_score(planted.labels, found) > 0.95
    shuffled = np.random.default_rng(1).permutation(planted.labels)
    assert abs(adjusted_rand_score(shuffled, found)) < 0.1


def test_a_row_is_described_by_its_own_future_only():
    states = planted_states().states
    length = np.full(NUM_SAMPLES, NUM_STEPS)
    length[0] = 5
    features = joint_features(replace(states, length=length), LAGS)
    assert features.step[features.sample == 0].tolist() == [0, 1]
    assert features.step[features.sample == 1].tolist() == [0, 1, 2, 3, 4]
    changed = states.agent_hidden.copy()
    changed[0, 5:] = 1e6
    again = joint_features(JointStates(changed, states.env_components, length), LAGS)
    np.testing.assert_array_equal(features.values, again.values)


def test_every_block_counts_the_same_whatever_its_units():
    states = planted_states().states
    scaled = replace(states, env_components=states.env_components * 1000)
    a, b = (joint_features(s, LAGS).values for s in (states, scaled))
    np.testing.assert_allclose(a, b, atol=1e-4)
    blocks = np.split(a, 6, axis=1)
    np.testing.assert_allclose([block.var(axis=0).sum() for block in blocks], 1.0, rtol=1e-4)


def test_environment_components_ignore_what_follows_the_end():
    deter = np.random.default_rng(0).normal(size=(5, 6, 4))
    length = np.array([6, 6, 2, 6, 6])
    expected = environment_components(deter, length, 2, 0)
    deter[2, 2:] = 1e5
    found = environment_components(deter, length, 2, 0)
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-5)
    assert environment_components(deter, length, 9, 0).shape == (5, 6, 4)


def features_of(sample, step):
    sample, step = np.array(sample), np.array(step)
    return JointFeatures(np.zeros((len(sample), 1), np.float32), sample, step)


def test_a_samples_label_is_the_commonest_of_its_first_steps():
    features = features_of([0, 0, 0, 1, 1, 3], [0, 1, 2, 0, 1, 4])
    cluster = np.array([1, 1, 0, 2, 0, 1])
    labels = label_samples(cluster, features, 4, num_steps=3)
    # Sample 1 is torn between 2 and 0; sample 2 has no row, and sample 3 none early enough.
    assert labels.tolist() == [1, 0, NO_CLUSTER, NO_CLUSTER]
    purity = label_purity(cluster, features, labels, num_steps=3)
    np.testing.assert_allclose(purity, [2 / 3, 1 / 2, np.nan, np.nan], rtol=1e-6)


def test_exemplars_lie_nearest_to_the_centre_of_their_cluster():
    features = features_of([0, 1, 2, 3], [0, 0, 0, 0])
    points = np.array([[0.0], [1.0], [5.0], [9.0]])
    found = find_exemplars(points, features, np.array([0, 0, 0, 1]), 2, 2)
    # The centre of samples 0, 1, 2 is at 2.
    assert found.tolist() == [[1, 0], [3, -1]]


def test_stability_is_high_for_planted_behaviours_and_lower_for_mixtures():
    features = joint_features(planted_states().states, LAGS)
    clustering = fit_clusters(compress(features.values, 6, 0), 3, 10)
    origin = RowOrigin(features.sample, features.sample)
    agreement = measure_agreement(clustering, origin, 10, 5, seed=0)
    assert agreement.adjusted_rand > 0.9
    assert agreement.control < 0.7


def test_mixtures_keep_mean_and_covariance_within_and_between_rows():
    rng = np.random.default_rng(0)
    paths = rng.normal(size=(4000, 3, 2)).cumsum(axis=1) + 4.0
    sample = np.repeat(np.arange(4000), 3)
    mixed = mix_samples(paths.reshape(-1, 2), RowOrigin(sample, sample), rng).reshape(4000, 6)
    flat = paths.reshape(4000, 6)
    np.testing.assert_allclose(mixed.mean(axis=0), flat.mean(axis=0), atol=0.15)
    np.testing.assert_allclose(np.cov(mixed.T), np.cov(flat.T), atol=0.35)


def test_mixtures_of_repeated_samples_are_repeated():
    """What samples of a unit share, their mixtures share; what they do not, they do not."""
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(400), 2)
    shared, own = rng.normal(size=(400, 2))[unit], 0.5 * rng.normal(size=(800, 2))
    origin = RowOrigin(np.arange(800), unit)
    repeated = mix_samples(shared, origin, rng)
    np.testing.assert_allclose(repeated[::2], repeated[1::2], atol=1e-5)
    mixed = mix_samples(shared + own, origin, rng)
    # The mean of two samples still holds half the variance of what is their own: 1.125 of 1.25.
    assert np.corrcoef(mixed[::2, 0], mixed[1::2, 0])[0, 1] == pytest.approx(0.9, abs=0.04)


def test_halves_split_no_unit():
    """Clusters that are single source episodes are found again only where halves share these."""
    rng = np.random.default_rng(1)
    unit = np.repeat(np.arange(16), 8)
    places = 5.0 * rng.normal(size=(16, 4))
    points = (places[unit] + 0.1 * rng.normal(size=(128, 4))).astype(np.float32)
    clustering = fit_clusters(points, 16, 8)
    by_unit, by_sample = (
        measure_agreement(clustering, RowOrigin(np.arange(128), units), 8, 4, seed=0)
        for units in (unit, np.arange(128))
    )
    assert by_sample.adjusted_rand > 0.9
    assert by_unit.adjusted_rand < 0.75


@pytest.fixture
def config(planted_datasets, tmp_path):
    return BehaviourConfig(
        generated_data_dir=planted_datasets.simulated,
        output_dir=tmp_path / "behaviour",
        features=BehaviourFeatures(num_env_components=3, feature_lags=(1, 2), num_pca=4),
        groups=BehaviourGroups(num_clusters=3, num_cluster_neighbours=5, num_stability_repeats=2),
        num_exemplars=2,
        embedding="pca",
    )


def test_counts_beyond_what_exists_take_what_exists_and_say_so(config, capsys):
    features = replace(config.features, num_env_components=9999, num_pca=9999)
    groups = replace(config.groups, num_clusters=9999, num_stability_repeats=0)
    analyse_behaviour(replace(config, features=features, groups=groups), StageReport("behaviour"))
    printed = capsys.readouterr().out
    for flag in ("num_env_components", "num_pca", "num_clusters"):
        assert f"--{flag} 9999: only " in printed


def test_the_result_file_names_samples_and_holds_their_frames(config, capsys):
    report = StageReport("behaviour")
    path = analyse_behaviour(config, report)
    assert "--num_samples 4000" in capsys.readouterr().out
    stored = RolloutDataset(config.generated_data_dir)
    with read_results(path) as results:
        assert results["sample"].values.tolist() == list(range(100, 110))
        # The last two rows have no row two steps ahead.
        assert (results["cluster"].values[:, -2:] == NO_CLUSTER).all()
        assert (results["cluster"].values[:, :-2] >= 0).all()
        sample = int(results["exemplar"][0, 0])
        obs = stored.read_episode(stored.index_of(sample)).obs
        np.testing.assert_array_equal(results["exemplar_frame"][0, 0], obs)
        actions = np.stack([stored.read_episode(index).action for index in range(10)])
        np.testing.assert_array_equal(results["action"], actions)
        for cluster in range(3):
            taken = actions[results["cluster"].values == cluster]
            shares = np.bincount(taken, minlength=results.sizes["action_index"]) / len(taken)
            np.testing.assert_allclose(results["action_share"][cluster], shares, rtol=1e-5)
        # The layout is that of two principal components, which keep more than random places do.
        layout, plain, shuffled = (
            results.attrs[f"embedding_trustworthiness{of}"]
            for of in ("", "_of_pca", "_of_shuffled")
        )
        assert layout == pytest.approx(plain)
        assert layout > shuffled + 0.1
    assert report.metrics["clusters"] == 3


@pytest.mark.medium
def test_figures_and_videos_are_drawn_from_the_file_alone(config, tmp_path):
    report = StageReport("behaviour")
    path = analyse_behaviour(config, report)
    plotting = BehaviourPlottingConfig(input_dir=path.parent, output_dir=tmp_path, dpi=60)
    assert all(p.stat().st_size > 1000 for p in plot_behaviour(plotting, report))
    assert len(list((tmp_path / "videos").glob("*.mp4"))) >= 1


def test_the_title_counts_samples_that_have_a_behaviour(config):
    path = analyse_behaviour(config, StageReport("behaviour"))
    with read_results(path) as results:
        results.load()
    results["cluster"][:4] = NO_CLUSTER
    title = draw_overview(results).get_suptitle()
    assert "48 steps of 6 of 10 samples" in title


def test_steps_after_a_predicted_end_are_no_behaviour(planted_datasets, monkeypatch):
    rows = RolloutRows(RolloutDataset(planted_datasets.simulated), 4)
    assert lengths_until_done(rows).tolist() == [10] * 4
    done = np.zeros(40, bool)
    done[[3, 5, 12]] = True
    monkeypatch.setattr(RolloutRows, "read", lambda self, *_: done)
    assert lengths_until_done(rows).tolist() == [4, 3, 10, 10]
    assert lengths_until_done(rows, heed_ends=False).tolist() == [10] * 4
    monkeypatch.undo()
    real = RolloutRows(RolloutDataset(planted_datasets.real), 5)
    assert lengths_until_done(real).tolist() == real.episode_lengths.tolist()
    values = stack_rows(real, real.read("value", 0, real.num_rows))
    second = real.dataset.read_episode(1).value
    np.testing.assert_array_equal(values[1, : len(second)], second)
    assert not values[1, len(second) :].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 0}, "--num_samples 0"),
        ({"features": BehaviourFeatures(feature_lags=(0,))}, "--feature_lags 0"),
        ({"features": BehaviourFeatures(feature_lags=(2, 2))}, "--feature_lags 2 2"),
        ({"features": BehaviourFeatures(feature_lags=(50,))}, "--feature_lags: 50 steps"),
    ],
)
def test_bad_input_is_refused(config, changes, message):
    with pytest.raises(UserError, match=message):
        analyse_behaviour(replace(config, **changes), StageReport("behaviour"))


def test_real_rollouts_are_refused(config, planted_datasets):
    with pytest.raises(UserError, match="holds real rollouts"):
        analyse_behaviour(
            replace(config, generated_data_dir=planted_datasets.real), StageReport("behaviour")
        )
