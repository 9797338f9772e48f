"""What ships with the project is whole, and is what its card says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from agents.checkpoint import load_agent
from agents.evaluation import evaluate, held_out_levels
from environments.factory import make_environment_from_spec
from experiment.command_line import load_preset
from experiment.files import read_json

ROOT = Path(__file__).resolve().parent.parent
AGENTS = sorted((ROOT / "assets" / "agents").iterdir())


def test_the_demo_takes_a_shipped_agent():
    assert ROOT / load_preset("chains.yml", "demo")["agent"] in AGENTS


@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_the_card_is_of_the_weights_beside_it(folder):
    agent, card = load_agent(folder), read_json(folder / "card.json")
    assert agent.hash == card["agent_hash"]
    assert agent.env_steps == card["env_steps"] >= 5_000_000
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 5_000_000


@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_a_shipped_agent_plays_better_than_its_controls(folder):
    card = read_json(folder / "card.json")
    own, *controls = card["records"]
    assert card["num_levels"] >= 1000
    assert own["mean_return"]["mean"] >= 7.0
    assert len(controls) == 2
    for control in controls:
        assert control["difference"]["low"] > 0
        assert own["mean_return"]["low"] > control["mean_return"]["high"]


@pytest.mark.medium
@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_a_shipped_agent_plays_as_its_card_says(folder):
    agent, card = load_agent(folder), read_json(folder / "card.json")
    assert agent.environment is not None
    environment = make_environment_from_spec(agent.environment, 32, seed=0)
    with torch.inference_mode():
        returns = evaluate(agent.policy, environment, held_out_levels(100), seed=1).returns
    environment.close()
    standard_error = returns.std() / np.sqrt(len(returns))
    assert abs(returns.mean() - card["records"][0]["mean_return"]["mean"]) < 4 * standard_error
