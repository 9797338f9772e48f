from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from analysis import hidden_states
from analysis.factor_count import FactorChoice
from analysis.hidden_states import (
    ClusterSettings,
    EmbeddingSettings,
    HiddenAnalysisConfig,
    ProjectionSettings,
    analyse_hidden_states,
    components_for_share,
    policy_entropy,
)
from analysis.results import read_results
from experiment.errors import UserError
from experiment.report import StageReport
from projections.hidden import HiddenProjection
from rollouts.store import RolloutDataset


@pytest.fixture(scope="module")
def tiny_config(planted_datasets, tmp_path_factory):
    return HiddenAnalysisConfig(
        data_dir=planted_datasets.real,
        generated_data_dir=planted_datasets.simulated,
        output_dir=tmp_path_factory.mktemp("analysis"),
        num_episodes=30,
        num_generated_samples=10,
        projection=ProjectionSettings(num_pca=12, num_ica=3, num_nmf=0, ica_tol=1e-3),
        clusters=ClusterSettings(num_clusters=3, num_cluster_neighbours=8),
        layout=EmbeddingSettings(embedding="pca"),
    )


@pytest.fixture(scope="module")
def analysed(tiny_config):
    report = StageReport("hidden_analysis")
    path = analyse_hidden_states(tiny_config, report)
    with read_results(path, "hidden_analysis") as dataset:
        return dataset.load(), report


def run(config, **changes):
    path = analyse_hidden_states(replace(config, **changes), StageReport("again"))
    with read_results(path, "hidden_analysis") as dataset:
        return dataset.load()


def test_saved_components_equal_the_projections_transform(analysed, tiny_config, planted_datasets):
    dataset, _ = analysed
    projection = HiddenProjection.load(tiny_config.output_dir / "projection")
    hidden = RolloutDataset(planted_datasets.real).read_field("agent_hidden")
    is_real = dataset.source.values == 0
    np.testing.assert_array_equal(dataset.ica.values[is_real], projection.transform(hidden))
    np.testing.assert_array_equal(
        dataset.pca.values[is_real], projection.principal_components(hidden)
    )
    assert dataset.attrs["projection_data_hash"] == projection.data_hash


def test_rows_carry_what_happened(analysed, planted_datasets):
    dataset, report = analysed
    lengths = planted_datasets.lengths
    assert report.metrics["real_rows"] == lengths.sum()
    assert report.metrics["simulated_rows"] == 100
    assert 0 <= report.metrics["embedding_seconds"] < 60
    real = dataset.isel(row=slice(0, int(lengths.sum())))
    np.testing.assert_array_equal(real.episode_id, np.repeat(np.arange(100, 130), lengths))
    np.testing.assert_array_equal(real.step, np.concatenate([np.arange(n) for n in lengths]))
    np.testing.assert_array_equal(real.episode_length, np.repeat(lengths, lengths))
    # Neither levels nor source episodes are known here: every episode stands for itself.
    assert len(np.unique(real.unit)) == len(lengths)
    np.testing.assert_array_equal(real.unit, np.repeat(real.unit[real.step == 0], lengths))
    assert (real.fraction_through.values[real.done.values == 1] == 1.0).all()
    episode = RolloutDataset(planted_datasets.real).read_episode(3)
    rows = slice(int(lengths[:3].sum()), int(lengths[:4].sum()))
    for name in ("value", "action", "reward"):
        np.testing.assert_array_equal(real[name].values[rows], getattr(episode, name))
    np.testing.assert_array_equal(
        real.greedy_action.values[rows], episode.action_logits.argmax(axis=1)
    )


def test_planted_clusters_are_recovered_in_real_and_simulated_rows(analysed, planted_datasets):
    dataset, _ = analysed
    centres = np.random.default_rng(5).normal(size=(3, 12)) * 4
    for source, folder in enumerate((planted_datasets.real, planted_datasets.simulated)):
        hidden = RolloutDataset(folder).read_field("agent_hidden")
        planted = ((hidden[:, None] - centres) ** 2).sum(-1).argmin(1)
        found = dataset.cluster.values[dataset.source.values == source]
        assert adjusted_rand_score(planted, found) == 1.0


def test_stability_and_the_number_of_factors_are_told_which_rows_belong_together(
    tiny_config, planted_datasets, tmp_path, monkeypatch
):
    told = {}

    def measure_stability(features, unit, *_):
        told["stability"] = features, unit

    def choose_factor_count(hidden, unit, *_):
        told["factors"] = hidden, unit
        return FactorChoice((2,), np.array([0.5]))

    monkeypatch.setattr(hidden_states, "measure_stability", measure_stability)
    monkeypatch.setattr(hidden_states, "choose_factor_count", choose_factor_count)
    dataset = run(
        tiny_config,
        output_dir=tmp_path,
        projection=replace(tiny_config.projection, nmf_candidates=(2,), max_nmf_rows=60),
        clusters=replace(tiny_config.clusters, num_stability_repeats=1, max_cluster_rows=90),
    )
    unit = dataset.unit.values[dataset.source.values == 0]
    hidden = RolloutDataset(planted_datasets.real).read_field("agent_hidden")
    pca = dataset.pca.values[dataset.source.values == 0]
    for name, count, rows in (("stability", 90, pca), ("factors", 60, hidden)):
        values, units = told[name]
        assert len(values) == len(units) == count
        known = rows[:, : values.shape[1]]
        nearest = np.linalg.norm(values[:, None] - known, axis=2).argmin(axis=1)
        np.testing.assert_array_equal(units, unit[nearest])


def test_small_chunks_give_the_same_file_content(analysed, tiny_config, tmp_path):
    dataset, _ = analysed
    streamed = run(tiny_config, rows_per_chunk=7, output_dir=tmp_path)
    for name in dataset.variables:
        # A matrix product of other height may round its last bit otherwise.
        np.testing.assert_allclose(streamed[name], dataset[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("embedding", ["pca", "tsne"])
def test_the_same_seed_gives_the_same_result(tiny_config, tmp_path, embedding):
    layout = EmbeddingSettings(embedding=embedding, max_embedding_rows=200)
    first, second = (
        run(tiny_config, layout=layout, output_dir=tmp_path / name) for name in ("a", "b")
    )
    for name in first.variables:
        np.testing.assert_array_equal(first[name], second[name])
    assert np.isfinite(first.embedding.values).all()


def test_fit_rows_are_limited_and_labelled(tiny_config, tmp_path):
    settings = replace(tiny_config.projection, max_fit_rows=150)
    dataset = run(tiny_config, projection=settings, output_dir=tmp_path)
    roles = dataset.fit_role.values
    assert np.sum(roles > 0) == 150
    assert (roles[dataset.source.values == 1] == 0).all()
    projection = HiddenProjection.load(tmp_path / "projection")
    assert projection.n_inliers_ == np.sum(roles == 1)


def test_counts_above_what_exists_use_what_exists_and_say_so(tiny_config, tmp_path, capsys):
    settings = replace(tiny_config.projection, num_pca=64)
    dataset = run(tiny_config, num_episodes=4000, projection=settings, output_dir=tmp_path)
    assert dataset.sizes["pca_component"] == 12
    printed = capsys.readouterr().out
    assert "--num_episodes 4000" in printed
    assert "has 30, all of them are used" in printed
    assert "--num_pca 64: only 12 exist" in printed


@pytest.mark.parametrize(
    "changes",
    [
        {"num_episodes": 0},
        {"rows_per_chunk": 0},
        {"clusters": ClusterSettings(num_clusters=0)},
        {"projection": ProjectionSettings(max_fit_rows=3)},
        {"layout": EmbeddingSettings(max_embedding_rows=1)},
    ],
)
def test_senseless_numbers_are_refused_before_anything_is_written(tiny_config, tmp_path, changes):
    config = replace(tiny_config, output_dir=tmp_path / "absent", **changes)
    with pytest.raises(UserError, match=r"^--\w+ \d: must be at least \d+$"):
        analyse_hidden_states(config, StageReport("hidden_analysis"))
    assert not config.output_dir.exists()


def test_nmf_is_optional(tiny_config, tmp_path):
    settings = replace(tiny_config.projection, num_nmf=2, nmf_max_iter=5000)
    dataset = run(tiny_config, projection=settings, output_dir=tmp_path, generated=False)
    assert dataset.sizes["nmf_factor"] == 2
    assert (dataset.source.values == 0).all()
    assert HiddenProjection.load(tmp_path / "projection_nmf").method == "nmf"


def test_stability_is_high_for_planted_clusters_and_low_for_the_control(tiny_config, tmp_path):
    settings = replace(tiny_config.clusters, num_stability_repeats=2)
    dataset = run(tiny_config, clusters=settings, output_dir=tmp_path)
    assert dataset.attrs["cluster_stability_adjusted_rand"] == 1.0
    assert dataset.attrs["cluster_stability_control"] < 0.7


def test_dense_regions_trustworthiness_and_a_chosen_number_of_factors_are_reported(
    tiny_config, tmp_path
):
    dataset = run(
        tiny_config,
        clusters=ClusterSettings(clustering="hdbscan", min_cluster_rows=40),
        projection=replace(tiny_config.projection, nmf_candidates=(1, 2), nmf_max_iter=3000),
        output_dir=tmp_path,
    )
    assert dataset.attrs["num_clusters"] == 3
    assert 0.0 <= dataset.attrs["cluster_noise_share"] < 0.2
    trust = [
        dataset.attrs["embedding_trustworthiness" + x] for x in ("", "_of_pca", "_of_shuffled")
    ]
    assert trust[0] == trust[1] > trust[2] + 0.2
    best = int(dataset.nmf_candidate[int(dataset.nmf_validation_error.values.argmin())])
    assert dataset.sizes["nmf_factor"] == best


def test_another_agents_samples_are_refused(tiny_config, foreign_dataset, tmp_path):
    with pytest.raises(UserError, match=r"--generated_data_dir.*recorded with agent other"):
        run(tiny_config, generated_data_dir=foreign_dataset, output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ratios", "share", "expected"),
    [
        ([0.96, 0.04], 0.95, 1),
        ([0.5, 0.45, 0.05], 0.95, 2),
        ([0.5, 0.44, 0.06], 0.95, 3),
        ([0.5, 0.4], 0.95, 2),
    ],
)
def test_components_for_share_is_a_count(ratios, share, expected):
    assert components_for_share(np.array(ratios), share) == expected


def test_entropy_of_known_policies():
    uniform, certain = np.zeros(4), np.array([0.0, 0.0, 500.0, 0.0])
    np.testing.assert_allclose(policy_entropy(np.stack([uniform, certain])), [np.log(4), 0.0])
