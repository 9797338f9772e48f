"""An asset of a simulator, made of what the smallest chain has left."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from agents.checkpoint import load_agent
from experiment.errors import UserError
from generative.card import read_advantages
from generative.checkpoint import load_simulator
from generative.fidelity import BASELINES
from rollouts.store import RolloutDataset
from ship_simulator import ShipConfig, ship


@pytest.fixture
def training(finished_chain: Path) -> Path:
    (run,) = (finished_chain / "results" / "runs").glob("train_simulator-*")
    return run


@pytest.mark.medium
@pytest.mark.timeout(2400)
def test_an_asset_is_the_simulator_its_card_its_curve_and_its_fidelity(
    finished_chain: Path, training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the chain ran, which its paths start from.
    monkeypatch.chdir(finished_chain)
    results, asset = finished_chain / "results", tmp_path / "assets" / "small"
    ship(ShipConfig(training, results / "fidelity", asset, machine="an abacus"))
    agent = load_agent(results / "agent")
    shipped, trained = (load_simulator(path, agent) for path in (asset, results / "simulator"))
    card = json.loads((asset / "card.json").read_text())
    assert shipped.hash == trained.hash == card["simulator_hash"]
    assert card["training_steps"] == trained.step
    assert card["num_parameters"] == trained.simulator.num_parameters
    assert [command.split()[1].rpartition("/")[2] for command in card["commands"]] == [
        "record.py",
        "record.py",
        "train_gen_model.py",
        "simulator_fidelity_precompute.py",
    ]
    assert card["num_episodes"] == {
        f"results/{name}": RolloutDataset(results / name).num_episodes
        for name in ("rollouts", "heldout_rollouts")
    }
    fidelity = xr.load_dataset(results / "fidelity" / "simulator_fidelity.nc")
    found = {(a["measure"], a["baseline"]): a for a in card["advantages"]}
    assert len(found) == 2 * len(BASELINES)
    expected = fidelity["difference"].sel(
        measure="mse", prediction="mean_of_samples", baseline="last_frame"
    )
    assert found["mse", "last_frame"]["difference"] == pytest.approx(
        expected.to_numpy()[1:].tolist(), rel=1e-3
    )
    text = (asset / "README.md").read_text()
    assert "# small" in text
    assert "an abacus" in text
    for name in ("curve.png", "fidelity_summary.png", "fidelity_differences.png"):
        assert (asset / name).stat().st_size > 1000


@pytest.mark.medium
@pytest.mark.timeout(2400)
def test_only_the_simulator_that_was_measured_can_be_shipped(
    finished_chain: Path, training: Path, tmp_path: Path
) -> None:
    other = tmp_path / "run"
    shutil.copytree(training, other)
    for description in other.glob("model_*/simulator.json"):
        description.write_text(description.read_text() + " ")
    config = ShipConfig(other, finished_chain / "results" / "fidelity", tmp_path / "asset")
    with pytest.raises(UserError, match="measured on no simulator of"):
        ship(config)
    assert not (tmp_path / "asset").exists()


def test_an_advantage_is_clear_where_every_interval_lies_below_zero() -> None:
    shape = (2, 2, 4, len(BASELINES), 3)
    dims = ("bound", "measure", "prediction", "baseline", "horizon")
    values = xr.DataArray(np.full(shape, -1.0), dims=dims)
    values[{"bound": 1, "measure": 1, "baseline": 0, "horizon": 2}] = 0.5
    fidelity = xr.Dataset(
        {
            "difference_interval": values,
            "difference": values.isel(bound=0),
            "score": values.isel(bound=0, baseline=0),
        },
        coords={
            "measure": ["mse", "policy_kl"],
            "prediction": ["mean_of_samples", *BASELINES],
            "baseline": list(BASELINES),
            "bound": ["lower", "upper"],
        },
    )
    clear = {(a.measure, a.baseline): a.is_clear for a in read_advantages(fidelity)}
    assert clear.pop(("policy_kl", BASELINES[0])) is False
    assert all(clear.values())
