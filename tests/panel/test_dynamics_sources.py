"""Behaviours, matrices, statements, effects, probes and trust: what is answered is in the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analysis.effect_verdict import find
from analysis.jacobian_means import lag_means
from analysis.results import write_results
from experiment.provenance import collect_provenance
from generative.recording_identity import recording_identity

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def client(dynamics_data: Any, client_maker: Any) -> Any:
    return client_maker(dynamics_data.folder)


@pytest.fixture(scope="module")
def catalogue(client: Any) -> Any:
    return client.json("/api/catalogue")


def results_of(dynamics_data: Any, name: str) -> xr.Dataset:
    with xr.open_dataset(dynamics_data.folder / name, engine="h5netcdf") as stored:
        return stored.load()


def test_everything_is_found_and_belongs_to_the_samples(catalogue: Any) -> None:
    assert catalogue["errors"] == []
    [samples] = catalogue["datasets"]
    for kind in ("behaviours", "jacobians", "cross", "consistency", "probes", "trust"):
        assert len(catalogue[kind]) == 1, kind
    assert catalogue["trust"][0]["dataset"] == samples["id"]
    assert catalogue["cross"][0]["dataset_hash"] == samples["hash"]
    titles = [entry["title"] for entry in catalogue["analyses"]]
    assert titles == [
        "hidden states",
        "environment states",
        "latents",
        "agent and environment",
        "Jacobians",
    ]
    for entry in catalogue["analyses"]:
        assert set(entry["source_datasets"].values()) == {samples["id"]}
        assert entry["coordinate_sets"]


def test_sizes_and_stability_of_behaviours(dynamics_data: Any, catalogue: Any, client: Any) -> None:
    stored = results_of(dynamics_data, "dynamics/behaviour_clusters.nc")
    [entry] = catalogue["behaviours"]
    sizes = [one["num_samples"] for one in entry["behaviours"]]
    assert sizes == [(stored["sample_cluster"] == c).sum() for c in range(2)]
    assert sum(sizes) == 12
    stability = stored.attrs["cluster_stability_adjusted_rand"]
    assert entry["stability"]["mean"] == pytest.approx(stability)
    samples = client.arrays(f"/api/behaviours/{entry['id']}/samples")
    np.testing.assert_array_equal(samples["behaviour"], stored["sample_cluster"])
    np.testing.assert_allclose(samples["purity"], stored["purity"])


def test_exemplars_are_the_samples_that_they_are_called(
    dynamics_data: Any, catalogue: Any, client: Any
) -> None:
    [entry] = catalogue["behaviours"]
    for behaviour, one in enumerate(entry["behaviours"]):
        for position, sample in enumerate(one["exemplars"]):
            path = f"/api/behaviours/{entry['id']}/exemplars/{behaviour}/{position}"
            index = dynamics_data.samples.index_of(sample)
            frames = client.arrays(path)["frames"]
            np.testing.assert_array_equal(frames, dynamics_data.samples.read_episode(index).obs)
    assert client.request(f"/api/behaviours/{entry['id']}/exemplars/9/0").status_code == 404


@pytest.mark.parametrize("quantity", ["correlation", "regression", "causation", "push"])
def test_matrices_are_those_of_the_file(
    quantity: str, dynamics_data: Any, catalogue: Any, client: Any
) -> None:
    stored = results_of(dynamics_data, "dynamics/xcorr_and_xcaus.nc")
    [entry] = catalogue["cross"]
    where = {"group": "1"}
    query = ""
    if quantity in ("causation", "push"):
        where["environment_gradient"] = "cut"
        query = "?environment_gradient=cut"
    answer = client.arrays(f"/api/cross/{entry['id']}/{quantity}/1{query}")
    np.testing.assert_allclose(answer["value"], stored[quantity].sel(where), rtol=1e-5)
    assert answer["value"].shape == (4, 3, 3)
    if quantity != "regression":
        lower = stored[f"{quantity}_interval"].sel(where)[0]
        np.testing.assert_allclose(answer["lower"], lower, rtol=1e-5)
        q = stored[f"{quantity}_q"].sel(where)
        expected = q if quantity == "correlation" else q.expand_dims("null")
        np.testing.assert_allclose(answer["q"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "tail", ["correlation/9", "nothing/all", "causation/all", "push/all?environment_gradient=x"]
)
def test_a_matrix_that_is_not_there_is_refused(tail: str, catalogue: Any, client: Any) -> None:
    response = client.request(f"/api/cross/{catalogue['cross'][0]['id']}/{tail}")
    assert response.status_code == 404


def test_entries_of_jacobians_are_means_over_the_steps(
    dynamics_data: Any, catalogue: Any, client: Any
) -> None:
    stored = results_of(dynamics_data, "dynamics/jacobians.nc")
    [entry] = catalogue["jacobians"]
    query = "source_component=2&target_component=1&lag=2&environment_gradient=cut"
    answer = client.arrays(f"/api/jacobians/{entry['id']}/effects?{query}")
    cut = stored["jacobian"].sel(environment_gradient="cut").to_numpy()
    expected = lag_means(cut, stored["length"].to_numpy(), [2])[:, 0, 2, 1]
    np.testing.assert_allclose(answer["effect"], expected, rtol=1e-5)
    np.testing.assert_array_equal(answer["sample_id"], stored["sample_id"])


def test_statements_come_in_their_order(dynamics_data: Any, catalogue: Any, client: Any) -> None:
    stored = results_of(dynamics_data, "dynamics/consistency.nc")
    [entry] = catalogue["consistency"]
    answer = client.arrays(f"/api/consistency/{entry['id']}/statements")
    for name in ("rank", "lag", "source", "target", "r", "gradient_mean", "score"):
        np.testing.assert_allclose(answer[name], stored[f"statement_{name}"], rtol=1e-5)
    names = [entry["groups"][code] for code in answer["behaviour"]]
    assert names == stored["statement_behaviour"].to_numpy().astype(str).tolist()
    assert all(f"evidence_{name}" in answer for name in entry["evidence"])


def test_agreement_is_that_of_the_file(dynamics_data: Any, catalogue: Any, client: Any) -> None:
    stored = results_of(dynamics_data, "dynamics/consistency.nc").sel(group="all")
    [entry] = catalogue["consistency"]
    answer = client.arrays(f"/api/consistency/{entry['id']}/agreement/all")
    at = {"dynamics": "regression", "environment_gradient": "cut", "measure": "cosine"}
    np.testing.assert_allclose(answer["observed"][1, 1, 2], stored["agreement"].sel(at), rtol=1e-5)
    null = stored["agreement_null"].sel(at)
    np.testing.assert_allclose(answer["expected"][:, 1, 1, 2], null, rtol=1e-5)


def test_points_of_behaviours_and_latents_name_their_samples(
    dynamics_data: Any, catalogue: Any, client: Any
) -> None:
    analyses = {entry["title"]: entry for entry in catalogue["analyses"]}
    stored = results_of(dynamics_data, "dynamics/behaviour_clusters.nc")
    ids = {title: f"/api/analyses/{entry['id']}/columns" for title, entry in analyses.items()}
    sample, step = np.nonzero(np.isfinite(stored["embedding"].to_numpy()[..., 0]))
    columns = ids["agent and environment"]
    found = {
        name: client.arrays(f"{columns}/{name}")["values"]
        for name in ("episode_id", "step", "cluster", "behaviour")
    }
    np.testing.assert_array_equal(found["episode_id"], stored["sample"].to_numpy()[sample])
    np.testing.assert_array_equal(found["step"], step)
    np.testing.assert_array_equal(found["cluster"], stored["cluster"].to_numpy()[sample, step])
    label = stored["sample_cluster"].to_numpy()
    np.testing.assert_array_equal(found["behaviour"], label[sample])
    placed = client.arrays(f"{columns}/embedding?component=1")["values"]
    np.testing.assert_allclose(placed, stored["embedding"].to_numpy()[sample, step, 1])
    latents = ids["latents"]
    episodes = dynamics_data.samples.episodes["episode_id"]
    np.testing.assert_array_equal(client.arrays(f"{latents}/episode_id")["values"], episodes)
    np.testing.assert_array_equal(client.arrays(f"{latents}/step")["values"], 0)


def test_gradients_of_all_samples_equal_those_of_each(panel_client: Any) -> None:
    [entry] = panel_client.json("/api/catalogue")["saliency"]
    query = "target=value&target_step=6&environment_gradient=cut"
    answer = panel_client.arrays(f"/api/saliency/{entry['id']}/components?{query}")
    single = panel_client.arrays(f"/api/saliency/{entry['id']}/samples/1/components?{query}")
    np.testing.assert_array_equal(answer["sample_id"], [1])
    np.testing.assert_array_equal(answer["gradient"][0], single["gradient"])


def test_trust_and_probes_equal_the_file(dynamics_data: Any, catalogue: Any, client: Any) -> None:
    trust = client.arrays(f"/api/trust/{catalogue['trust'][0]['id']}")
    np.testing.assert_allclose(trust["trust"], [np.nan, *np.linspace(0.1, 0.9, 12)[1:]], rtol=1e-6)
    stored = results_of(dynamics_data, "probes/probe_analysis.nc")
    table = client.arrays(f"/api/probes/{catalogue['probes'][0]['id']}/table")
    np.testing.assert_allclose(table["correlation"], stored["partial_correlation"], rtol=1e-6)
    np.testing.assert_allclose(table["upper"], stored["partial_correlation_interval"][1], rtol=1e-6)
    np.testing.assert_allclose(table["score"], stored["score"][0], rtol=1e-6)


def test_trust_belongs_to_the_samples_and_not_to_the_twin_of_an_intervention(
    tmp_path: Path, client_maker: Any, dataset_writer: Any
) -> None:
    # The twin is the beginning of the samples, by the same identity, and may be found first.
    ids = {}
    for name, num_samples in (("effects/twin", 2), ("samples", 3), ("shorter", 1)):
        config = {"seed": 1, "max_samples": num_samples}
        written = dataset_writer(
            tmp_path / name, (5,) * num_samples, True, provenance={"config": config}
        )
        ids[name] = recording_identity(written.metadata)
    assert len(set(ids.values())) == 1
    for num_samples, owner in ((3, "samples"), (2, "effects/twin"), (4, "samples")):
        content = xr.Dataset(
            {"trust": ("sample", np.ones(num_samples))}, {"sample": range(num_samples)}
        )
        path = tmp_path / f"trust_{num_samples}" / "sample_trust.nc"
        write_results(path, content, collect_provenance({}, 0, {"samples": ids["samples"]}))
        described = client_maker(tmp_path).json("/api/catalogue")
        id_of = {entry["label"]: entry["id"] for entry in described["datasets"]}
        [trust] = [one for one in described["trust"] if one["num_samples"] == num_samples]
        assert trust["dataset"] == id_of[f"{tmp_path.name}/{owner}"]


def test_findings_are_the_verdicts_of_the_analysis(effects_data: Path, client_maker: Any) -> None:
    client = client_maker(effects_data)
    content = client.json("/api/catalogue")
    assert content["errors"] == []
    [entry] = content["effects"]
    answer = client.json(f"/api/effects/{entry['id']}/findings")
    with xr.open_dataset(effects_data / "intervention_effects.nc", engine="h5netcdf") as results:
        assert len(answer["findings"]) == 2 * results.sizes["measure"]
        for one in answer["findings"]:
            finding = find(results, one["world"], one["measure"])
            assert one["effect"] == pytest.approx(finding.effect)
            assert (one["low"], one["high"]) == pytest.approx((finding.low, finding.high))
            assert one["verdict"] == finding.words
        rows = client.arrays(f"/api/effects/{entry['id']}/rows/value")
        stored = results["row_effect"].sel(row_measure="value")
        np.testing.assert_allclose(rows["effect"], stored, rtol=1e-6)
        predicted = results["predicted_row"].sel(row_measure="value", variant="tested")
        np.testing.assert_allclose(rows["predicted"], predicted, rtol=1e-6)
    assert client.request(f"/api/effects/{entry['id']}/rows/return").status_code == 404


def test_recordings_of_an_intervention_are_those_beside_its_file(
    effects_data: Path, client_maker: Any
) -> None:
    content = client_maker(effects_data).json("/api/catalogue")
    ids = {entry["label"].removeprefix("swap/"): entry["id"] for entry in content["datasets"]}
    [entry] = content["effects"]
    assert entry["recordings"] == {
        world: {name: ids[f"{world}/{name}"] for name in ("twin", "tested", "sign_flip")}
        for world in ("simulated", "real")
    }


@pytest.mark.parametrize(
    "name",
    [
        "behaviour_clusters",
        "jacobians",
        "xcorr_and_xcaus",
        "consistency",
        "intervention_effects",
        "probe_analysis",
        "sample_trust",
        "env_h_analysis",
    ],
)
def test_a_file_without_its_content_is_named_with_the_reason(
    name: str, tmp_path: Path, client_maker: Any, result_writer: Any
) -> None:
    result_writer(tmp_path / f"{name}.nc", xr.Dataset({"nothing": 1}))
    [error] = client_maker(tmp_path).json("/api/catalogue")["errors"]
    assert error["error"].startswith(f"{tmp_path.name}/{name}.nc cannot be read: ")
