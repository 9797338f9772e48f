"""Analyses of vectors that samples carry: planted clusters, shared axes, alignment of rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from analysis import vector_analysis
from analysis.hidden_states import ClusterSettings, EmbeddingSettings
from analysis.results import read_results
from analysis.rollout_rows import RolloutRows, select_episodes
from analysis.sml_analysis_precompute import LoopConfig
from analysis.sml_analysis_precompute import precompute as analyse_loop
from analysis.vector_analysis import (
    VectorAnalysisConfig,
    VectorTable,
    analyse_vectors,
    environment_states,
    latents,
    loop_states,
    open_samples,
    step_variables,
    write_vector_analysis,
)
from analysis.vector_figures import VARIABLES, draw_coloured, read_vector_table
from experiment.errors import UserError
from experiment.report import StageReport

CONFIG = VectorAnalysisConfig(
    clusters=ClusterSettings(num_clusters=3, num_cluster_neighbours=5),
    layout=EmbeddingSettings("pca"),
    num_pca=4,
)


@pytest.fixture
def rows(planted_datasets):
    return open_samples(planted_datasets.simulated, 4, "--generated_data_dir")


def planted_table(shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 60)
    centres = 8 * np.random.default_rng(1).normal(size=(3, 6))
    vectors = (centres[label] + rng.normal(size=(60, 6)) + shift).astype(np.float32)
    unit = np.arange(len(label))
    return VectorTable(vectors, unit, {"label": label, "sample_id": unit})


def test_planted_clusters_are_found_and_shuffled_ones_are_not() -> None:
    table = planted_table()
    results = analyse_vectors([table], CONFIG)
    assert adjusted_rand_score(table.variables["label"], results["cluster"]) > 0.95
    shuffled = np.random.default_rng(2).permuted(table.vectors, axis=0)
    control = analyse_vectors([replace(table, vectors=shuffled)], CONFIG)
    assert adjusted_rand_score(table.variables["label"], control["cluster"]) < 0.3


def test_second_table_keeps_its_shift_on_the_axes_of_the_first() -> None:
    first, second = planted_table(), planted_table(shift=5.0)
    results = analyse_vectors([first, second], CONFIG)
    pca, source = results["pca"].values, results["source"].values
    alone = analyse_vectors([first], CONFIG)
    np.testing.assert_array_equal(pca[source == 0], alone["pca"].values)
    assert np.linalg.norm(pca[source == 1].mean(0) - pca[source == 0].mean(0)) > 1


def test_the_components_that_hold_95_percent_are_counted_however_many_are_kept() -> None:
    table = planted_table()
    standardised = (table.vectors - table.vectors.mean(0)) / table.vectors.std(0)
    share = np.linalg.svd(standardised, compute_uv=False) ** 2 / standardised.size
    expected = int(np.searchsorted(share.cumsum(), 0.95)) + 1
    assert expected > 1
    for num_pca in (1, 6):
        results = analyse_vectors([table], replace(CONFIG, num_pca=num_pca))
        assert results.sizes["pca_component"] == num_pca
        assert results.attrs["num_components_95"] == expected


def test_stability_is_told_which_vectors_belong_together(monkeypatch) -> None:
    """Also where only some of the vectors are clustered."""
    told = []
    monkeypatch.setattr(
        vector_analysis, "stability_of", lambda features, unit, *_: told.append((features, unit))
    )
    table = replace(planted_table(), unit=np.arange(60) // 6)
    for max_rows in (60, 25):
        clusters = replace(CONFIG.clusters, max_cluster_rows=max_rows)
        results = analyse_vectors([table], replace(CONFIG, clusters=clusters))
        features, unit = told.pop()
        assert len(unit) == max_rows
        pca = results["pca"].values[:, : features.shape[1]]
        row = np.linalg.norm(features[:, None] - pca, axis=2).argmin(axis=1)
        np.testing.assert_array_equal(unit, table.unit[row])


def test_vectors_of_a_row_are_those_of_its_step(rows) -> None:
    states, loop = environment_states(rows), loop_states(rows, with_change=True)
    sample = rows.dataset.read_episode(2)
    at = rows.episode_index == 2
    np.testing.assert_array_equal(states.vectors[at], sample.env_deter)
    np.testing.assert_array_equal(states.variables["step"][at], np.arange(len(sample)))
    for table in (states, loop):
        np.testing.assert_array_equal(table.unit, rows.units[rows.episode_index])
    np.testing.assert_array_equal(latents(rows).unit, rows.units)
    half = loop.vectors.shape[1] // 2
    value, change = loop.vectors[at][:, :half], loop.vectors[at][:, half:]
    np.testing.assert_array_equal(value[:, 4:16], sample.agent_hidden)
    np.testing.assert_array_equal(value[:, -6:], np.broadcast_to(sample.info.latent, (10, 6)))
    assert not change[0].any()
    np.testing.assert_allclose(change[1:], np.diff(value, axis=0))


def test_the_loop_is_clustered_again_with_its_changes(planted_datasets, tmp_path: Path) -> None:
    clusters = replace(CONFIG.clusters, num_clusters=6, num_stability_repeats=1)
    config = LoopConfig(
        generated_data_dir=planted_datasets.simulated,
        output_dir=tmp_path,
        num_samples=10,
        num_pca=20,
        clusters=clusters,
        layout=CONFIG.layout,
    )
    rows = open_samples(planted_datasets.simulated, 10, "--generated_data_dir")
    alone, with_changes = (
        analyse_vectors([loop_states(rows, with_change=with_change)], config)
        for with_change in (False, True)
    )
    assert adjusted_rand_score(alone["cluster"], with_changes["cluster"]) < 0.9
    with read_results(analyse_loop(config, StageReport("sml"))) as found:
        np.testing.assert_array_equal(found["cluster"], alone["cluster"])
        np.testing.assert_array_equal(found["cluster_dynamics"], with_changes["cluster"])
        stability = "cluster_stability_adjusted_rand"
        assert found.attrs[stability] == alone.attrs[stability]
        assert found.attrs[f"dynamics_{stability}"] == with_changes.attrs[stability]


def test_figures_of_a_sample_are_over_all_its_steps(rows) -> None:
    table = latents(rows)
    sample = rows.dataset.read_episode(1)
    assert table.variables["mean_value"][1] == pytest.approx(sample.value.mean(), rel=1e-5)
    assert table.variables["sample_return"][1] == pytest.approx(sample.reward.sum())
    assert table.variables["ever_done"].tolist() == [1, 1, 1, 1]
    assert table.vectors.shape == (4, 6)


def test_returns_of_samples_stop_at_the_predicted_end(rows, monkeypatch) -> None:
    done = np.zeros(40, bool)
    done[[3, 5, 12]] = True
    fields = {"done": done, "reward": np.arange(40.0), "value": np.arange(40.0)}
    fields["action_logits"] = np.zeros((40, 5))
    monkeypatch.setattr(RolloutRows, "read", lambda self, name, *_: fields[name])
    expected = [sum(range(4)), 10 + 11 + 12, sum(range(20, 30)), sum(range(30, 40))]
    of_samples = latents(rows).variables
    assert of_samples["sample_return"].tolist() == expected
    assert of_samples["mean_value"].tolist() == [1.5, 11, 24.5, 34.5]
    assert step_variables(rows)["largest_reward"][::10].tolist() == [3, 12, 29, 39]


def test_result_is_written_and_drawn(rows, tmp_path: Path) -> None:
    results = analyse_vectors([environment_states(rows)], CONFIG)
    config = replace(CONFIG, output_dir=tmp_path)
    report = StageReport("x")
    path = write_vector_analysis(results, {"informed": rows}, "env_h_analysis.nc", config, report)
    with read_results(path) as found:
        variables = [v for v in VARIABLES if v.name in found]
        table = read_vector_table(found, variables, 20, 0)
    assert len(table.rows) == 20
    assert len(draw_coloured(table, "pca", variables, "states").axes) >= len(variables)


def test_real_rollouts_and_too_few_vectors_are_refused(planted_datasets, rows) -> None:
    with pytest.raises(UserError, match="holds real rollouts"):
        open_samples(planted_datasets.real, 4, "--generated_data_dir")
    few = select_episodes(rows.dataset, 4, "samples", "--num_samples")
    with pytest.raises(UserError, match="at least 10"):
        analyse_vectors([latents(few)], CONFIG)
