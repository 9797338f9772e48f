import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from agents.checkpoint import load_agent
from agents.trainer import train
from agents.training_config import TrainingConfig
from experiment.command_line import parse_command_line
from experiment.errors import UserError
from experiment.report import StageReport
from ship_agent import ShipConfig, ship

STEPS = 64
FLAGS = ["--param_name", "tiny", "--env_name", "fake", "--num_timesteps", str(STEPS)]


def train_and_go_on(folder: Path, *flags: str) -> Path:
    """A training that a second process was asked to go on with."""
    begun = ["train.py", *FLAGS, *flags, "--run_dir", str(folder)]
    for arguments in (begun, ["train.py", "--resume", str(folder)]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", arguments)
            train(
                parse_command_line(TrainingConfig, "", "param_name", "agents.yml"),
                StageReport("train"),
            )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_and_go_on(tmp_path_factory.mktemp("training") / "run")


def test_an_asset_is_the_agent_its_card_and_its_curve(run, tmp_path):
    asset = tmp_path / "assets" / "small"
    ship(ShipConfig(run, asset, machine="an abacus", num_levels=4))
    shipped, trained = load_agent(asset), load_agent(run / f"model_{STEPS}")
    assert shipped.hash == trained.hash
    assert shipped.environment == trained.environment
    card = json.loads((asset / "card.json").read_text())
    assert (card["env_steps"], card["num_levels"], card["seed"]) == (STEPS, 4, 1)
    own, random, script = card["records"]
    assert script["policy"] == "script: run right and jump"
    difference = own["mean_return"]["mean"] - random["mean_return"]["mean"]
    assert random["difference"]["mean"] == pytest.approx(difference)
    text = (asset / "README.md").read_text()
    assert "# small" in text
    assert "an abacus" in text
    assert str(tmp_path) not in text + (asset / "agent.json").read_text()
    expected = f"python train.py --param_name tiny --env_name fake --num_timesteps {STEPS}"
    assert card["command"] == expected
    assert pd.read_csv(asset / "curve.csv")["timesteps"].iloc[-1] == STEPS
    assert (asset / "curve.png").stat().st_size > 1000


def test_the_card_tells_how_often_the_curve_has_held_out_levels(tmp_path):
    evaluated = train_and_go_on(tmp_path / "often", "--eval_every", "1", "--eval_episodes", "2")
    unseen = train_and_go_on(tmp_path / "never", "--eval_episodes", "0")
    for folder, count, told in (
        (evaluated, 2, "held-out levels that were played 2 times"),
        (unseen, 0, "Held-out levels were not played then"),
    ):
        asset = tmp_path / "assets" / folder.name
        card = ship(ShipConfig(folder, asset, num_levels=2))
        assert card["num_evaluations"] == count
        assert told in (asset / "README.md").read_text()
        curve = pd.read_csv(asset / "curve.csv")
        assert ("val_mean_episode_rewards" in curve) == (count > 0)


def test_only_a_training_with_an_agent_can_be_shipped(tmp_path):
    with pytest.raises(UserError, match="no run of train"):
        ship(ShipConfig(tmp_path, tmp_path / "asset"))
