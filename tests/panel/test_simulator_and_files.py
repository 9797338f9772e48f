"""Fidelity, training logs, cards, and where every file comes from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from experiment.files import hash_file, write_json

MEASURES, PREDICTIONS, HORIZONS = ("mse", "ssim"), ("mode", "last_frame", "mean_frame"), 4


def fidelity_results() -> xr.Dataset:
    rng = np.random.default_rng(0)
    shape = (len(MEASURES), len(PREDICTIONS), HORIZONS)
    dims = ("measure", "prediction", "horizon")
    score = rng.random(shape)
    interval = np.stack([score - 0.1, score + 0.2])
    return xr.Dataset(
        {
            "score": (dims, score),
            "score_interval": (("bound", *dims), interval),
            "measure_meaning": ("measure", [f"meaning of {name}" for name in MEASURES]),
            "prediction_meaning": ("prediction", [f"meaning of {name}" for name in PREDICTIONS]),
        },
        coords={
            "measure": list(MEASURES),
            "prediction": list(PREDICTIONS),
            "horizon": range(HORIZONS),
            "bound": ["lower", "upper"],
        },
    )


def test_fidelity_curves_are_those_of_the_file(
    tmp_path: Path, client_maker: Any, result_writer: Any
) -> None:
    results = fidelity_results()
    result_writer(tmp_path / "simulator_fidelity.nc", results)
    client = client_maker(tmp_path)
    [entry] = client.json("/api/catalogue")["fidelity"]
    assert entry["measures"] == list(MEASURES)
    assert entry["prediction_meanings"][1] == "meaning of last_frame"
    curves = client.arrays(f"/api/fidelity/{entry['id']}/ssim")
    np.testing.assert_allclose(curves["score"], results["score"][1], rtol=1e-6)
    np.testing.assert_allclose(curves["lower"], results["score"][1] - 0.1, rtol=1e-6)
    np.testing.assert_allclose(curves["upper"], results["score"][1] + 0.2, rtol=1e-6)
    np.testing.assert_array_equal(curves["horizon"], range(HORIZONS))
    assert client.request(f"/api/fidelity/{entry['id']}/psnr").status_code == 404


def test_training_log_comes_column_by_column(tmp_path: Path, client_maker: Any) -> None:
    (tmp_path / "log.csv").write_text("step,total,heldout_total,note\n1,5.5,,a\n2,4.25,6.5,b\n")
    write_json(tmp_path / "provenance.json", {"command": ["train_gen_model.py"], "seed": 3})
    client = client_maker(tmp_path)
    [entry] = client.json("/api/catalogue")["training"]
    assert entry["columns"] == ["total", "heldout_total"]
    curves = client.arrays(f"/api/training/{entry['id']}")
    np.testing.assert_array_equal(curves["step"], [1, 2])
    np.testing.assert_array_equal(curves["total"], [5.5, 4.25])
    np.testing.assert_array_equal(curves["heldout_total"], [np.nan, 6.5])
    provenance = client.json(f"/api/items/{entry['id']}/provenance")["provenance"]
    assert provenance == {"command": ["train_gen_model.py"], "seed": 3}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", "a,b\n1,2\n"),
        ("log.csv", "step\n1\n2,3\n"),
        ("curve.csv", ""),
        ("card.json", "[1]"),
        ("card.json", '{"value": NaN}'),
        ("agent.json", "{"),
        ("simulator_fidelity.nc", "text"),
    ],
)
def test_unreadable_files_are_named(
    name: str, content: str, tmp_path: Path, client_maker: Any
) -> None:
    (tmp_path / name).write_text(content)
    catalogue = client_maker(tmp_path).json("/api/catalogue")
    assert [error["label"].rpartition("/")[2] for error in catalogue["errors"]] == [name]
    assert catalogue["training"] == catalogue["cards"] == catalogue["fidelity"] == []


def test_cards_are_shown_whole_and_linked_by_the_agents_hash(
    tmp_path: Path, client_maker: Any
) -> None:
    content = {"hash": "a" * 64, "env_steps": 5, "name": "\ud800", "provenance": {"seed": 1}}
    (tmp_path / "agent.json").write_text(json.dumps(content))
    [entry] = client_maker(tmp_path).json("/api/catalogue")["cards"]
    assert entry["hash"] == "a" * 64
    assert entry["content"] == {key: content[key] for key in ("hash", "env_steps", "name")}


def test_every_item_tells_where_it_comes_from(panel_data: Any, panel_client: Any) -> None:
    catalogue = panel_client.json("/api/catalogue")
    [analysis] = catalogue["analyses"]
    answer = panel_client.json(f"/api/items/{analysis['id']}/provenance")
    assert answer["hash"] == hash_file(panel_data.folder / "analysis" / "hidden_analysis.nc")
    assert answer["provenance"]["inputs"] == {
        "dataset": panel_data.real.hash,
        "simulated": panel_data.simulated.hash,
    }
    assert {"command", "code_version", "created_utc"} <= set(answer["provenance"])
    for entry in catalogue["datasets"]:
        answer = panel_client.json(f"/api/items/{entry['id']}/provenance")
        assert answer["hash"] == entry["hash"]
    assert panel_client.request("/api/items/0123456789abcdef/provenance").status_code == 404


def test_provenance_that_json_cannot_hold_is_an_error(
    tmp_path: Path, client_maker: Any, dataset_writer: Any
) -> None:
    dataset_writer(tmp_path / "data", (4,), False, provenance={"config": {"x": float("nan")}})
    client = client_maker(tmp_path)
    [entry] = client.json("/api/catalogue")["datasets"]
    assert client.request(f"/api/items/{entry['id']}/provenance").status_code == 422
