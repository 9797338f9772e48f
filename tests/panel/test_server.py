"""What the server answers, and what it refuses."""

import asyncio
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analysis.results import write_results
from experiment.errors import UserError
from experiment.files import write_json
from experiment.provenance import collect_provenance
from panel.binary import decode_arrays, encode_arrays
from panel.catalogue import Catalogue
from panel.rollout_source import MAX_FRAMES_PER_REQUEST, TABLES_PER_ANSWER, RolloutSource
from panel.security import CONTENT_SECURITY_POLICY, host_name
from panel.server import PanelConfig, bind, check_config, greeting, open_ahead
from panel.training_source import TrainingSource

ROUTES = ("", "static/panel.js", "api/catalogue", "vendor/plotly.min.js")


@pytest.fixture(scope="session")
def dataset_ids(panel_client: Any) -> dict[str, str]:
    return {entry["kind"]: entry["id"] for entry in panel_client.json("/api/catalogue")["datasets"]}


@pytest.mark.parametrize("name", ["uint8", "bool", "int64", "float32", "float64", "large"])
def test_container_returns_what_was_packed(name: str) -> None:
    arrays = {
        "uint8": np.arange(7, dtype=np.uint8),
        "bool": np.array([True, False, True]),
        "int64": np.array([[-(2**31), 2**31 - 1]], np.int64),
        "float32": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
        "float64": np.array([0.5, -0.25]),
        "large": np.array([2**40], np.int64),
    }
    unpacked = decode_arrays(encode_arrays(arrays))
    assert list(unpacked) == list(arrays)
    assert unpacked[name].shape == arrays[name].shape
    np.testing.assert_array_equal(unpacked[name], arrays[name])


def test_container_is_little_endian_and_aligned() -> None:
    content = encode_arrays({"a": np.zeros(3, np.uint8), "b": np.array([1.0], np.float32)})
    assert len(content) % 8 == 0
    assert content[-8:] == b"\x00\x00\x80\x3f\x00\x00\x00\x00"


def test_catalogue_lists_everything_without_paths(panel_data: Any, panel_client: Any) -> None:
    response = panel_client.request("/api/catalogue")
    assert str(panel_data.folder) not in response.text
    content = response.json()
    assert [d["num_episodes"] for d in content["datasets"]] == [3, 2]
    assert [d["kind"] for d in content["datasets"]] == ["real", "simulated"]
    assert content["errors"] == []
    real, simulated = (d["id"] for d in content["datasets"])
    assert content["analyses"][0]["source_datasets"] == {"real": real, "simulated": simulated}
    assert content["analyses"][0]["coordinate_sets"] == {"pca": 4, "ica": 3, "embedding": 2}
    assert content["saliency"][0]["dataset"] == simulated
    assert content["saliency"][0]["sample_ids"] == [1]


def test_progress_counts_what_was_opened(panel_data: Any, client_maker: Any) -> None:
    client = client_maker(panel_data.folder)
    assert client.json("/api/progress") == {"found": 4, "opened": 0}
    client.json("/api/catalogue")
    assert client.json("/api/progress") == {"found": 4, "opened": 4}


def test_episode_table_equals_the_store(
    panel_data: Any, panel_client: Any, dataset_ids: dict[str, str]
) -> None:
    table = panel_client.arrays(f"/api/datasets/{dataset_ids['real']}/episodes")
    episodes = panel_data.real.episodes
    for name in ("episode_id", "length", "level_seed", "level_complete", "cut"):
        np.testing.assert_array_equal(table[name], episodes[name])
    np.testing.assert_allclose(table["return"], episodes["return"], rtol=1e-6)


def test_tables_of_several_datasets_come_in_one_answer(
    panel_client: Any, dataset_ids: dict[str, str]
) -> None:
    path = f"/api/episodes?datasets={','.join(dataset_ids.values())}"
    joined = panel_client.arrays(path)
    for dataset_id in dataset_ids.values():
        own = panel_client.arrays(f"/api/datasets/{dataset_id}/episodes")
        for column, values in own.items():
            np.testing.assert_array_equal(joined.pop(f"{dataset_id}/{column}"), values)
    assert not joined
    tag = panel_client.request(path).headers["etag"]
    assert panel_client.request(path, headers={"if-none-match": tag}).status_code == 304


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("", 422),
        ("0123456789abcdeg", 422),
        ("0123456789abcdef", 404),
        (",".join(["0123456789abcdef"] * (TABLES_PER_ANSWER + 1)), 422),
    ],
)
def test_tables_of_what_is_no_dataset_are_refused(
    asked: str, status: int, panel_client: Any
) -> None:
    response = panel_client.request(f"/api/episodes?datasets={asked}")
    assert response.status_code == status
    assert response.json()["detail"]


@pytest.mark.parametrize("kind", ["real", "simulated"])
def test_steps_and_frames_equal_the_store(
    kind: str, panel_data: Any, panel_client: Any, dataset_ids: dict[str, str]
) -> None:
    dataset = getattr(panel_data, kind)
    for index in range(dataset.num_episodes):
        rollout = dataset.read_episode(index)
        base = f"/api/datasets/{dataset_ids[kind]}/episodes/{2 * index + 1}"
        steps = panel_client.arrays(f"{base}/steps")
        for name, values in steps.items():
            np.testing.assert_array_equal(values, getattr(rollout, name))
        assert ("terminal_prob" in steps) == (kind == "simulated")
        frames = panel_client.arrays(f"{base}/frames?start=2&stop=6")["frames"]
        np.testing.assert_array_equal(frames, rollout.obs[2:6])


def test_frames_in_chunks_make_the_whole_episode(
    panel_data: Any, panel_client: Any, dataset_ids: dict[str, str]
) -> None:
    base = f"/api/datasets/{dataset_ids['real']}/episodes/3/frames"
    chunks = [
        panel_client.arrays(f"{base}?start={start}&stop={start + 128}")["frames"]
        for start in range(0, 300, 128)
    ]
    assert [len(chunk) for chunk in chunks] == [128, 128, 44]
    expected = panel_data.real.read_episode(1).obs
    np.testing.assert_array_equal(np.concatenate(chunks), expected)


def test_what_shrinks_is_compressed_for_those_who_can_read_it(
    panel_client: Any, dataset_ids: dict[str, str]
) -> None:
    [entry] = panel_client.json("/api/catalogue")["analyses"]
    steps = f"/api/analyses/{entry['id']}/columns/step"
    noise = f"/api/datasets/{dataset_ids['real']}/episodes/3/frames?stop=100"
    encodings = {}
    for path in (steps, noise):
        for accepted in ("gzip", "identity"):
            answer = panel_client.request(path, headers={"accept-encoding": accepted})
            encodings[path, accepted] = answer.headers.get("content-encoding", "none")
            assert answer.content == panel_client.request(path).content
            assert "accept-encoding" in answer.headers["vary"].lower()
    assert encodings == {
        (steps, "gzip"): "gzip",
        (steps, "identity"): "none",
        (noise, "gzip"): "none",
        (noise, "identity"): "none",
    }


@pytest.mark.parametrize("codes", [[0, 2, 0, 2], [2, 2, 2, 2]])
def test_sources_are_named_by_their_meanings(
    codes: list[int], panel_data: Any, client_maker: Any, result_writer: Any, tmp_path: Path
) -> None:
    meanings = np.array(["simulated", "elsewhere", "real"])
    result_writer(tmp_path / "hidden_analysis.nc", sourced_rows(codes, " ".join(meanings)))
    client = client_maker(tmp_path)
    [entry] = client.json("/api/catalogue")["analyses"]
    assert entry["source_names"] == sorted({str(meanings[code]) for code in codes})
    values = client.arrays(f"/api/analyses/{entry['id']}/columns/source")["values"]
    named = [entry["source_names"][value] for value in values]
    assert named == meanings[codes].tolist()


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"layout": {"embedding": "umap"}}, "umap"),
        ({"embedding": "tsne"}, "tsne"),
        ({"clusters": {"embedding": "pca"}}, "pca"),
        ({"layout": 3}, None),
        ({}, None),
    ],
)
def test_method_of_the_layout_is_told(
    config: dict[str, Any], method: str | None, tmp_path: Path, client_maker: Any
) -> None:
    content = sourced_rows([0, 1], "real simulated")
    write_results(tmp_path / "hidden_analysis.nc", content, collect_provenance(config, 0, {}))
    [entry] = client_maker(tmp_path).json("/api/catalogue")["analyses"]
    assert entry["embedding_method"] == method


@pytest.mark.parametrize("codes", [[0, 3], [-1, 0], [2**31 - 1, 0]])
def test_source_without_a_meaning_is_damage(
    codes: list[int], client_maker: Any, result_writer: Any, tmp_path: Path
) -> None:
    result_writer(tmp_path / "hidden_analysis.nc", sourced_rows(codes, "real simulated both"))
    content = client_maker(tmp_path).json("/api/catalogue")
    assert content["analyses"] == []
    assert "codes beyond its 3 flag_meanings" in content["errors"][0]["error"]


def sourced_rows(codes: list[int], meanings: str) -> xr.Dataset:
    rows = np.arange(len(codes), dtype=np.int32)
    source = ("row", np.array(codes, np.int32), {"flag_meanings": meanings})
    return xr.Dataset({"source": source, "episode_id": ("row", rows), "step": ("row", rows)})


def test_analysis_columns_equal_the_file(panel_data: Any, panel_client: Any) -> None:
    [entry] = panel_client.json("/api/catalogue")["analyses"]
    base = f"/api/analyses/{entry['id']}/columns"
    path = panel_data.folder / "analysis" / "hidden_analysis.nc"
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        for name in entry["columns"]:
            values = panel_client.arrays(f"{base}/{name}")["values"]
            np.testing.assert_array_equal(values, stored[name])
        component = panel_client.arrays(f"{base}/ica?component=2")["values"]
        np.testing.assert_array_equal(component, stored["ica"][:, 2])
    assert entry["source_names"] == ["real", "simulated"]


def test_saliency_is_the_signed_mean_over_channels(panel_data: Any, panel_client: Any) -> None:
    [entry] = panel_client.json("/api/catalogue")["saliency"]
    query = "target=ic_0&target_step=4&environment_gradient=passed"
    answer = panel_client.arrays(f"/api/saliency/{entry['id']}/samples/1?{query}")["saliency"]
    with xr.open_dataset(panel_data.folder / "saliency" / "saliency.nc", engine="h5netcdf") as file:
        view = {"target": "ic_0", "target_step": 4, "environment_gradient": "passed"}
        stored = file["gradient_frame"].sel(view).to_numpy()[0]
    np.testing.assert_allclose(answer, stored.mean(axis=-1), rtol=1e-5, atol=1e-7)
    assert answer.min() < 0 < answer.max()


def test_saliency_of_the_default_method_comes_first(saliency_data: Path, client_maker: Any) -> None:
    entries = client_maker(saliency_data).json("/api/catalogue")["saliency"]
    names = [entry["label"].split("/")[1] for entry in entries]
    assert names == ["plain", "split", "agent_only", "integrated"]
    assert [entry["baselines"] for entry in entries] == [[], [], [], ["black", "mean"]]


@pytest.mark.parametrize(("target", "has_met"), [("value", False), ("ic_0", True)])
def test_integrated_saliency_is_the_signed_sum_over_channels(
    target: str, has_met: bool, saliency_data: Path, client_maker: Any
) -> None:
    client = client_maker(saliency_data)
    entry = client.json("/api/catalogue")["saliency"][-1]
    query = f"target={target}&target_step=6&baseline=black"
    answer = client.arrays(f"/api/saliency/{entry['id']}/samples/1/integrated?{query}")
    with xr.open_dataset(saliency_data / "integrated" / "saliency.nc", engine="h5netcdf") as file:
        stored = file.sel(target=target, target_step=6, baseline="black").isel(sample=0).load()
    expected = stored["integrated_frame"].sum("channel").to_numpy()
    np.testing.assert_allclose(answer["saliency"], expected, rtol=1e-5, atol=1e-6)
    total = float(answer["difference"][0] + answer["delta"][0])
    assert answer["saliency"].sum() == pytest.approx(total, abs=1e-3)
    assert answer["met"] == [has_met]


def test_integrated_saliency_that_was_not_computed_is_refused(
    panel_client: Any, saliency_data: Path, client_maker: Any
) -> None:
    query = "target=value&target_step=4&baseline="
    for client, position, baseline, said in (
        (panel_client, 0, "black", "without --integrate frames"),
        (client_maker(saliency_data), -1, "blurred", "baseline: the file has black, mean"),
    ):
        entry = client.json("/api/catalogue")["saliency"][position]
        path = f"/api/saliency/{entry['id']}/samples/1/integrated?{query}{baseline}"
        response = client.request(path)
        assert response.status_code == 404
        assert said in response.json()["detail"]


def test_components_and_their_gradient_equal_the_file(panel_data: Any, panel_client: Any) -> None:
    [entry] = panel_client.json("/api/catalogue")["saliency"]
    query = "target=ic_0&target_step=6&environment_gradient=cut"
    answer = panel_client.arrays(f"/api/saliency/{entry['id']}/samples/1/components?{query}")
    with xr.open_dataset(panel_data.folder / "saliency" / "saliency.nc", engine="h5netcdf") as file:
        view = {"target": "ic_0", "target_step": 6, "environment_gradient": "cut"}
        stored = file["gradient_component"].sel(view).to_numpy()[0]
        np.testing.assert_array_equal(answer["activation"], file["activation"][0])
    np.testing.assert_array_equal(answer["gradient"], stored)


def test_rows_of_one_episode_come_in_the_order_of_time(panel_data: Any, panel_client: Any) -> None:
    [entry] = panel_client.json("/api/catalogue")["analyses"]
    path = panel_data.folder / "analysis" / "hidden_analysis.nc"
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        own = ((stored["source"] == 1) & (stored["episode_id"] == 3)).to_numpy()
        answer = panel_client.arrays(f"/api/analyses/{entry['id']}/episodes/simulated/3")
        np.testing.assert_array_equal(answer["step"], range(10))
        np.testing.assert_array_equal(answer["ica"], stored["ica"].to_numpy()[own])
    left_out = panel_client.arrays(f"/api/analyses/{entry['id']}/episodes/simulated/2")
    assert (left_out["step"].shape, left_out["ica"].shape) == ((0,), (0, answer["ica"].shape[1]))
    response = panel_client.request(f"/api/analyses/{entry['id']}/episodes/nobody/3")
    assert response.status_code == 404


def test_datasets_that_belong_together_are_linked(related_data: Path, client_maker: Any) -> None:
    datasets = client_maker(related_data).json("/api/catalogue")["datasets"]
    ids = {entry["label"].removeprefix("demo/"): entry["id"] for entry in datasets}
    relations = {entry["label"].removeprefix("demo/"): entry["relations"] for entry in datasets}
    real, samples = ids["data"], ids["samples"]
    kinds = ("twin", "intervened", "reality", "replayed", "source")
    nothing: dict[str, list[str]] = {kind: [] for kind in kinds}
    assert relations == {
        "data": nothing,
        "samples": {
            **nothing,
            "intervened": [ids["samples_intervened"]],
            "reality": [ids["samples/replays"]],
            "source": [real],
        },
        "samples_intervened": {**nothing, "twin": [samples], "source": [real]},
        "samples/replays": {**nothing, "replayed": [samples], "source": [real]},
    }


def test_results_are_never_linked_to_data_they_were_not_made_of(
    tmp_path: Path, client_maker: Any, dataset_writer: Any, result_writer: Any
) -> None:
    # Episode ids of two recordings are the same, so a wrong link would show wrong episodes.
    dataset_writer(tmp_path / "data", (5,), False)
    dataset_writer(tmp_path / "samples", (5,), True)
    rows = ("row", np.zeros(3, np.int32))
    source = ("row", np.array([0, 0, 1], np.int8), {"flag_meanings": "real simulated"})
    analysis = xr.Dataset({"source": source, "episode_id": rows, "step": rows})
    result_writer(tmp_path / "hidden_analysis.nc", analysis)
    content = client_maker(tmp_path).json("/api/catalogue")
    assert len(content["datasets"]) == 2
    assert content["analyses"][0]["source_datasets"] == {"real": None, "simulated": None}


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8050",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil@127.0.0.1",
        "127.0.0.1:port",
        "127.0.0.1/evil",
        "10.0.0.1",
        "",
    ],
)
def test_foreign_hosts_are_refused(host: str, panel_client: Any) -> None:
    for route in ROUTES:
        response = panel_client.request(f"/{route}", headers={"host": host})
        assert response.status_code == 421
        assert "detail" in response.json()


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:9", "[::1]:8050", "LOCALHOST:65535", "[::1]"]
)
def test_loopback_hosts_are_answered_at_any_port(host: str, panel_client: Any) -> None:
    assert panel_client.request("/api/catalogue", headers={"host": host}).status_code == 200


def test_further_hosts_are_answered_when_allowed(panel_data: Any, client_maker: Any) -> None:
    client = client_maker(panel_data.folder, allowed_hosts=["hub.example"])
    assert client.request("/", headers={"host": "hub.example"}).status_code == 200
    assert client.request("/", headers={"host": "other.example"}).status_code == 421


def test_host_name_ignores_port_and_case() -> None:
    assert host_name("LocalHost:80") == "localhost"
    assert host_name("[::1]:80") == "::1"
    assert host_name("[::1") == ""


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://127.0.0.1.evil.example",
        "ftp://localhost",
        "file://localhost",
        "chrome-extension://localhost",
        "//localhost",
        "localhost",
        "http://evil@localhost",
        "http://localhost/",
        "http:localhost",
        "",
    ],
)
def test_foreign_origins_are_refused(origin: str, panel_client: Any) -> None:
    assert panel_client.request("/api/catalogue", headers={"origin": origin}).status_code == 403


@pytest.mark.parametrize("origin", ["http://localhost:1234", "https://127.0.0.1", "HTTP://[::1]:5"])
def test_own_origin_is_answered(origin: str, panel_client: Any) -> None:
    headers = {"origin": origin}
    assert panel_client.request("/api/catalogue", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"]
)
def test_only_reading_methods_exist(method: str, panel_client: Any) -> None:
    for route in ROUTES:
        response = panel_client.request(f"/{route}", method=method)
        assert response.status_code == 405
        assert response.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("route", ROUTES)
def test_head_is_get_without_a_body(route: str, panel_client: Any) -> None:
    head = panel_client.request(f"/{route}", method="HEAD")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == panel_client.request(f"/{route}").headers["content-type"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/datasets/../../etc/passwd/episodes",
        "/api/datasets/%2e%2e%2f%2e%2e%2fetc%2fpasswd/episodes",
        "/api/datasets/0123456789abcdef/episodes",
        "/api/datasets/0123456789abcdeg/episodes",
        "/api/datasets/..%5c..%5cdata/episodes",
        "/api/analyses/0123456789abcdef/columns/value",
        "/api/saliency/0123456789abcdef/samples/1?target=a&target_step=1&environment_gradient=p",
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/static//etc/passwd",
        "/vendor/../../etc/passwd",
        "/docs",
    ],
)
def test_unknown_ids_and_traversals_are_refused(path: str, panel_client: Any) -> None:
    response = panel_client.request(path)
    assert response.status_code in (404, 422)
    assert len(response.json()["detail"].split()) >= 3
    assert "root:" not in response.text
    assert "import" not in response.text


def test_ids_serve_only_their_own_kind(panel_client: Any, dataset_ids: dict[str, str]) -> None:
    path = f"/api/analyses/{dataset_ids['real']}/columns/value"
    assert panel_client.request(path).status_code == 404


@pytest.mark.parametrize(
    "tail",
    [
        "episodes/99/steps",
        "episodes/2/steps",
        "episodes/-1/steps",
        "episodes/zero/steps",
        "episodes/99999999999999999999/steps",
        "episodes/1/frames?start=-1",
        "episodes/1/frames?start=12",
        "episodes/1/frames?start=3&stop=3",
        "episodes/1/frames?start=9999999999999999999999&stop=3",
    ],
)
def test_rows_that_do_not_exist_are_refused(
    tail: str, panel_client: Any, dataset_ids: dict[str, str]
) -> None:
    response = panel_client.request(f"/api/datasets/{dataset_ids['real']}/{tail}")
    assert response.status_code in (404, 422)
    assert response.json()["detail"]


@pytest.mark.parametrize(
    "column", ["pca", "pca?component=4", "pca?component=-1", "obs", "__class__"]
)
def test_unknown_columns_are_refused(column: str, panel_client: Any) -> None:
    [entry] = panel_client.json("/api/catalogue")["analyses"]
    response = panel_client.request(f"/api/analyses/{entry['id']}/columns/{column}")
    assert response.status_code == 404
    assert "no" in response.json()["detail"]


@pytest.mark.parametrize(
    "tail",
    [
        "3?target=value&target_step=4&environment_gradient=passed",
        "1?target=nothing&target_step=4&environment_gradient=passed",
        "1?target=value&target_step=5&environment_gradient=passed",
        "1?target=value",
    ],
)
def test_saliency_that_does_not_exist_is_refused(tail: str, panel_client: Any) -> None:
    [entry] = panel_client.json("/api/catalogue")["saliency"]
    response = panel_client.request(f"/api/saliency/{entry['id']}/samples/{tail}")
    assert response.status_code in (404, 422)


def test_number_of_frames_a_request_is_bounded(
    panel_client: Any, dataset_ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panel.rollout_source.MAX_FRAMES_PER_REQUEST", 100)
    base = f"/api/datasets/{dataset_ids['real']}/episodes/3/frames"
    assert panel_client.request(f"{base}?start=0&stop=101").status_code == 404
    assert panel_client.request(f"{base}?start=0&stop=100").status_code == 200
    assert MAX_FRAMES_PER_REQUEST == 512


def test_long_addresses_are_refused(panel_client: Any) -> None:
    assert panel_client.request("/api/catalogue?" + "x" * 5000).status_code == 414


@pytest.mark.parametrize("path", ["/", "/api/catalogue", "/static/main.js", "/nothing"])
def test_every_answer_carries_the_security_headers(path: str, panel_client: Any) -> None:
    headers = panel_client.request(path).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


def test_policy_allows_no_inline_script_and_nothing_from_outside() -> None:
    parts = [part.partition(" ") for part in CONTENT_SECURITY_POLICY.split("; ")]
    directives = {name: sources for name, _, sources in parts}
    assert directives["script-src"] == "'self'"
    assert directives["default-src"] == "'none'"
    assert directives["frame-ancestors"] == "'none'"
    assert "http" not in CONTENT_SECURITY_POLICY


def test_page_refers_to_nothing_outside_and_to_no_absolute_path() -> None:
    static = Path(__file__).parents[2] / "panel" / "static"
    page = (static / "index.html").read_text()
    assert 'href="/' not in page
    assert 'src="/' not in page
    assert "<script>" not in page
    for file in static.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, file.name
        assert "https://" not in text, file.name
        assert "innerHTML" not in text, file.name


def test_entity_tags_spare_the_second_reading(
    panel_client: Any, dataset_ids: dict[str, str]
) -> None:
    path = f"/api/datasets/{dataset_ids['real']}/episodes/1/steps"
    tag = panel_client.request(path).headers["etag"]
    again = panel_client.request(path, headers={"if-none-match": tag})
    assert again.status_code == 304
    assert again.content == b""
    other = panel_client.request(path.replace("/1/", "/3/"), headers={"if-none-match": tag})
    assert other.status_code == 200


def test_page_has_one_script_of_all_modules(panel_client: Any) -> None:
    static = Path(__file__).parents[2] / "panel" / "static"
    page = panel_client.request("/").text
    [address] = re.findall(r'<script src="([^"]+)"', page)
    script = panel_client.request(f"/{address}")
    assert script.headers["content-type"].startswith("text/javascript")
    needed, waiting = {"main.js"}, ["main.js"]
    while waiting:
        imported = set(re.findall(r'from "\./([\w.]+)"', (static / waiting.pop()).read_text()))
        waiting += imported - needed
        needed |= imported
    assert len(needed) > 40
    for name in needed:
        module = panel_client.request(f"/static/{name}").text
        assert module == (static / name).read_text()
        assert script.text.count(f"const module_{name.removesuffix('.js')} = (() => {{") == 1
        last_line = module.rstrip().splitlines()[-1]
        assert re.sub("^export ", "", last_line) in script.text


def test_page_has_the_browser_fetch_catalogue_and_tables_beside_its_script(
    panel_data: Any, client_maker: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(panel_data.folder, folder)
    client = client_maker(folder)

    def fetched() -> list[str]:
        return re.findall(r'<link rel="preload" href="([^"]+)"', client.request("/").text)

    # Before the files were opened once nothing is known of them.
    assert fetched() == ["api/catalogue"]
    ids = [entry["id"] for entry in client.json("/api/catalogue")["datasets"]]
    assert fetched() == ["api/catalogue", f"api/episodes?datasets={','.join(ids)}"]
    (folder / "damaged").mkdir()
    (folder / "damaged" / "dataset.json").write_text("{")
    client.json("/api/catalogue")
    assert fetched() == ["api/catalogue"]


def test_page_files_are_asked_for_again_and_sent_once(panel_client: Any) -> None:
    for name in ("panel.js", "main.js", "panel.css", "icon.svg"):
        first = panel_client.request(f"/static/{name}")
        assert first.headers["cache-control"] == "no-cache"
        again = panel_client.request(
            f"/static/{name}", headers={"if-none-match": first.headers["etag"]}
        )
        assert (again.status_code, again.content) == (304, b"")
    for absent in ("index.html", "nothing.js", "../server.py", "%2e%2e/server.py", ""):
        assert panel_client.request(f"/static/{absent}").status_code == 404


@pytest.mark.parametrize("path", ["/static/panel.js", "/vendor/plotly.min.js"])
def test_scripts_are_compressed_for_those_who_can_read_it(path: str, panel_client: Any) -> None:
    answers = {
        accepted: panel_client.request(path, headers={"accept-encoding": accepted})
        for accepted in ("gzip", "identity")
    }
    assert answers["gzip"].content == answers["identity"].content
    assert answers["gzip"].headers["content-encoding"] == "gzip"
    assert "content-encoding" not in answers["identity"].headers
    lengths = {name: int(answer.headers["content-length"]) for name, answer in answers.items()}
    assert lengths["gzip"] < 0.5 * lengths["identity"]


def test_works_behind_a_path_prefix(panel_data: Any, client_maker: Any) -> None:
    client = client_maker(panel_data.folder, root_path="/user/me/proxy/8050")
    for prefix in ("", "/user/me/proxy/8050"):
        for route in ROUTES:
            assert client.request(f"{prefix}/{route}").status_code == 200
    assert client.request("/user/you/api/catalogue").status_code == 404


def test_new_and_changed_data_appear_on_the_next_look(
    tmp_path: Path, client_maker: Any, dataset_writer: Any
) -> None:
    client = client_maker(tmp_path)
    assert client.json("/api/catalogue")["datasets"] == []
    dataset_writer(tmp_path / "data", (5,), False)
    [before] = client.json("/api/catalogue")["datasets"]
    dataset_writer(tmp_path / "data", (5, 6), False, skip=1, writer="1")
    [after] = client.json("/api/catalogue")["datasets"]
    assert (before["num_episodes"], after["num_episodes"]) == (1, 2)
    assert before["id"] == after["id"]
    assert before["hash"] != after["hash"]


def hostile_files(folder: Path) -> Iterator[str]:
    """Makes one damaged item after another; yields its label."""
    contents: dict[str, bytes | object] = {
        "empty/dataset.json": b"",
        "binary/dataset.json": bytes(range(256)),
        "list/dataset.json": [],
        "deep/dataset.json": b"[" * 100_000,
        "version/dataset.json": {"format": "dreamscope-rollouts", "schema_version": 99},
        "bare/dataset.json": {"format": "dreamscope-rollouts", "schema_version": 1},
        "text/hidden_analysis.nc": b"not HDF5",
        "text/saliency.nc": b"\x89HDF\r\n\x1a\n" + b"\xff" * 64,
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write_json(path, content)
        yield name.removesuffix("/dataset.json")


def test_hostile_files_give_an_error_and_leave_the_rest_readable(
    tmp_path: Path, client_maker: Any, dataset_writer: Any
) -> None:
    folder = tmp_path / "results"
    labels = [f"results/{label}" for label in hostile_files(folder)]
    dataset_writer(folder / "good", (4,), False)
    content = client_maker(folder).json("/api/catalogue")
    assert [d["label"] for d in content["datasets"]] == ["results/good"]
    assert sorted(error["label"] for error in content["errors"]) == sorted(labels)
    for error in content["errors"]:
        assert error["error"].startswith(error["label"])
        assert "\n" not in error["error"]
        assert str(tmp_path) not in error["error"]


def test_truncated_shard_gives_an_error(
    tmp_path: Path, client_maker: Any, dataset_writer: Any
) -> None:
    dataset_writer(tmp_path / "data", (40,), False)
    [shard] = (tmp_path / "data").glob("*.h5")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    content = client_maker(tmp_path).json("/api/catalogue")
    assert content["datasets"] == []
    assert "cannot be read" in content["errors"][0]["error"]


def test_shard_damaged_inside_gives_an_error_in_words(
    tmp_path: Path, client_maker: Any, dataset_writer: Any
) -> None:
    dataset_writer(tmp_path / "data", (200,), False)
    [shard] = (tmp_path / "data").glob("*.h5")
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = b"\xa5" * 20_000
    shard.write_bytes(bytes(content))
    client = client_maker(tmp_path)
    catalogue = client.json("/api/catalogue")
    for entry in catalogue["datasets"]:
        response = client.request(f"/api/datasets/{entry['id']}/episodes/1/frames?stop=200")
        assert response.status_code in (200, 422)
        if response.status_code == 422:
            assert "cannot be read" in response.json()["detail"]
    assert catalogue["datasets"] or catalogue["errors"]


def test_results_without_their_variables_give_an_error(
    tmp_path: Path, client_maker: Any, result_writer: Any
) -> None:
    result_writer(tmp_path / "hidden_analysis.nc", xr.Dataset({"value": ("row", np.zeros(3))}))
    result_writer(tmp_path / "saliency.nc", xr.Dataset({"sample_id": ("sample", np.zeros(3))}))
    errors = client_maker(tmp_path).json("/api/catalogue")["errors"]
    assert ["missing" in error["error"] for error in errors] == [True, True]


def test_hostile_names_stay_text(tmp_path: Path, client_maker: Any, dataset_writer: Any) -> None:
    name = "<img src=x onerror=alert(1)>"
    dataset_writer(tmp_path / name, (4,), False)
    response = client_maker(tmp_path).request("/api/catalogue")
    assert response.headers["content-type"] == "application/json"
    assert response.json()["datasets"][0]["label"].endswith(name)


def test_vanished_dataset_is_an_error(
    tmp_path: Path, client_maker: Any, dataset_writer: Any
) -> None:
    dataset_writer(tmp_path / "data", (4,), False)
    client = client_maker(tmp_path)
    [entry] = client.json("/api/catalogue")["datasets"]
    (tmp_path / "data" / "dataset.json").unlink()
    response = client.request(f"/api/datasets/{entry['id']}/episodes")
    assert response.status_code == 422


def test_missing_folders_and_open_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found nothing at .*absent, expected a folder"):
        check_config(PanelConfig((tmp_path / "absent",)))
    with pytest.raises(UserError, match="no folder given"):
        check_config(PanelConfig(()))
    with pytest.raises(UserError, match=r"--host: 0\.0\.0\.0 is reachable from other machines"):
        check_config(PanelConfig((tmp_path,), host="0.0.0.0"))
    check_config(PanelConfig((tmp_path,), host="0.0.0.0", allow_remote=True))
    with pytest.raises(UserError, match="--port: 70000 found"):
        check_config(PanelConfig((tmp_path,), port=70000))


def test_port_in_use_is_a_user_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port: 127.0.0.1:{port} cannot be used"):
            bind("127.0.0.1", port)


def test_answers_do_not_wait_for_acknowledgements() -> None:
    async def accepted_option() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def hear(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(hear, sock=bind("127.0.0.1", 0)) as server:
            host, port = server.sockets[0].getsockname()
            _, writer = await asyncio.open_connection(host, port)
            option = await accepted
            writer.close()
            await writer.wait_closed()
        return option

    assert asyncio.run(accepted_option()) != 0


def test_items_are_opened_ahead_whatever_is_damaged(
    panel_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged" / "hidden_analysis.nc"
    damaged.parent.mkdir()
    damaged.write_bytes(b"no HDF5")
    catalogue = Catalogue([panel_data.folder, tmp_path])
    open_ahead(catalogue)

    def refuse(path: Path) -> None:
        raise OSError(f"{path} is opened again")

    monkeypatch.setattr("panel.catalogue._open_item", refuse)
    described = catalogue.describe()
    labels = [error["label"] for error in described["errors"]]
    assert labels == [f"{tmp_path.name}/damaged/hidden_analysis.nc"]
    assert len(described["datasets"]) == 2


def test_only_what_changed_is_read_again(
    tmp_path: Path, dataset_writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        dataset_writer(tmp_path / name, (4,), False)
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n1,2\n")
    catalogue = Catalogue([tmp_path])
    before = catalogue.describe()
    described: list[str] = []

    def watch(source_type: type[Any]) -> None:
        describe = source_type.describe

        def described_again(source: Any) -> dict[str, Any]:
            described.append(source_type.__name__)
            return describe(source)

        monkeypatch.setattr(source_type, "describe", described_again)

    watch(RolloutSource)
    watch(TrainingSource)
    assert catalogue.describe() == before
    assert described == []
    assert (catalogue.count().results, catalogue.count().opened) == (1, 3)

    dataset_writer(tmp_path / "second", (4, 5), False, skip=1, writer="1")
    assert [entry["num_episodes"] for entry in catalogue.describe()["datasets"]] == [1, 2]
    log.write_text("step,loss\n1,2\n2,1\n")
    dataset_writer(tmp_path / "third", (6,), False)
    content = catalogue.describe()
    assert [entry["num_episodes"] for entry in content["datasets"]] == [1, 2, 1]
    assert content["training"][0]["num_rows"] == 2
    assert sorted(described) == ["RolloutSource", "RolloutSource", "TrainingSource"]

    log.unlink()
    assert catalogue.describe()["training"] == []


def test_work_of_finished_stages_is_left_out(tmp_path: Path, dataset_writer: Any) -> None:
    chain = tmp_path / "demo"
    for stage in ("train_simulator-1a2b-3c4d", "record_samples-5e6f"):
        dataset_writer(chain / "runs" / stage / "recording", (4,), True)
        (chain / "runs" / stage / "model_9").mkdir()
        write_json(chain / "runs" / stage / "model_9" / "simulator.json", {"hash": "9"})
        (chain / "runs" / stage / "log.csv").write_text("step,loss\n1,2\n")
    write_json(chain / "reports" / "train_simulator.json", {"status": "done"})

    def labels(folder: Path) -> dict[str, list[str]]:
        content = Catalogue([folder]).describe()
        kinds = ("datasets", "cards", "training")
        return {kind: [entry["label"] for entry in content[kind]] for kind in kinds}

    unfinished = "demo/runs/record_samples-5e6f"
    finished = "demo/runs/train_simulator-1a2b-3c4d"
    assert labels(chain) == {
        "datasets": [f"{unfinished}/recording"],
        "cards": [f"{unfinished}/model_9/simulator.json"],
        "training": [f"{unfinished}/log.csv", f"{finished}/log.csv"],
    }
    assert labels(tmp_path)["datasets"] == [f"{tmp_path.name}/{unfinished}/recording"]
    # Whoever names the working folders wants to see them.
    assert len(labels(chain / "runs")["datasets"]) == 2


@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [
        ("127.0.0.1", (), "127.0.0.1"),
        ("::1", (), "[::1]"),
        ("0.0.0.0", (), "127.0.0.1"),
        ("0.0.0.0", ("node7",), "node7"),
    ],
)
def test_the_address_that_is_printed_is_one_that_is_answered(
    panel_data: Any, client_maker: Any, host: str, allowed: tuple[str, ...], expected: str
) -> None:
    config = PanelConfig((panel_data.folder,), host=host, allow_remote=True, allowed_host=allowed)
    text = greeting(config, Catalogue(config.folders), 1234, "s3cret")
    assert f"open   http://{expected}:1234/?" in text
    client = client_maker(panel_data.folder, allowed_hosts=allowed)
    headers = {"host": f"{expected}:1234"}
    assert client.request("/api/catalogue", headers=headers).status_code == 200


def test_greeting_names_address_and_tunnel(panel_data: Any) -> None:
    config = PanelConfig((panel_data.folder,), root_path="/prefix")
    text = greeting(config, Catalogue(config.folders), 1234, "s3cret")
    assert "http://127.0.0.1:1234/prefix/?token=s3cret\n" in text
    assert "ssh -L 1234:127.0.0.1:1234 " in text
    assert "2 rollout datasets, 2 result files" in text


def run_panel(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "panel", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.medium
def test_command_refuses_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        in_use = str(taken.getsockname()[1])
        for arguments in (
            (str(tmp_path / "absent"),),
            (),
            (str(tmp_path), "--port", in_use),
            (str(tmp_path), "--host", "0.0.0.0"),
            (str(tmp_path), "--no_such_flag"),
        ):
            result = run_panel(*arguments)
            assert result.returncode == 2, arguments
            assert result.stderr.startswith("error: ")
            assert result.stderr.count("\n") == 1


@pytest.mark.medium
def test_panel_loads_nothing_that_would_make_its_start_slow() -> None:
    code = "import sys, panel.server; print({'torch', 'sklearn', 'scipy.stats'} & set(sys.modules))"
    folder = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=folder
    )
    assert result.stdout == "set()\n", result.stderr
