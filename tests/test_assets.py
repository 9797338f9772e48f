"""What ships with the project is whole, and is what its card says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from agents.card import AgentCard, MeanWithInterval, PlayingRecord, render_card
from agents.checkpoint import load_agent
from agents.evaluation import evaluate, held_out_levels
from environments.factory import make_environment_from_spec
from environments.protocol import EnvironmentSpec
from experiment.command_line import apply_values, load_preset
from experiment.files import read_json
from generative.card import Advantage
from generative.checkpoint import (
    WEIGHTS_NAME,
    load_simulator,
    read_description,
    read_num_parameters,
    simulator_hash,
)
from generative.fidelity import BASELINES
from generative.simulator import SimulatorConfig

ROOT = Path(__file__).resolve().parent.parent
AGENTS = sorted((ROOT / "assets" / "agents").iterdir())
SIMULATORS = sorted((ROOT / "assets" / "simulators").iterdir())


def test_the_demo_takes_a_shipped_agent():
    assert ROOT / load_preset("chains.yml", "demo")["agent"] in AGENTS


def test_the_demo_goes_on_from_a_shipped_simulator_of_its_agent():
    chain = load_preset("chains.yml", "demo")
    assert ROOT / chain["simulator"] in SIMULATORS
    agent = load_agent(ROOT / chain["agent"])
    sizes = load_preset("simulator.yml", chain["finetuning_params_name"])["training"]["simulator"]
    shipped = load_simulator(ROOT / chain["simulator"], agent).simulator.config
    assert apply_values(SimulatorConfig, sizes, "finetuning") == shipped


@pytest.mark.parametrize("folder", SIMULATORS, ids=lambda folder: folder.name)
def test_the_card_is_of_the_simulator_beside_it(folder):
    card, description = read_json(folder / "card.json"), read_description(folder)
    assert simulator_hash(folder) == card["simulator_hash"]
    assert read_num_parameters(folder) == card["num_parameters"]
    assert description["agent_hash"] == card["agent_hash"]
    assert card["agent_hash"] in [load_agent(agent).hash for agent in AGENTS]
    assert (folder / WEIGHTS_NAME).stat().st_size <= 16_000_000


@pytest.mark.parametrize("folder", SIMULATORS, ids=lambda folder: folder.name)
def test_a_shipped_simulator_predicts_better_than_its_baselines(folder):
    advantages = [Advantage(**values) for values in read_json(folder / "card.json")["advantages"]]
    assert {a.baseline for a in advantages} == set(BASELINES)
    for advantage in advantages:
        assert len(advantage.mean) == len(advantage.high) >= 10
        assert advantage.is_clear, advantage


@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_the_card_is_of_the_weights_beside_it(folder):
    agent, card = load_agent(folder), read_json(folder / "card.json")
    assert agent.hash == card["agent_hash"]
    assert agent.env_steps == card["env_steps"] >= 5_000_000
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 5_000_000


@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_the_page_is_that_of_the_card_and_the_card_that_of_the_curve(folder):
    card = read_json(folder / "card.json")
    environment = EnvironmentSpec.from_dict(card["environment"])
    records = tuple(
        PlayingRecord(
            **{
                **record,
                "mean_return": MeanWithInterval(**record["mean_return"]),
                "difference": record["difference"] and MeanWithInterval(**record["difference"]),
            }
        )
        for record in card["records"]
    )
    page = render_card(
        folder.name, AgentCard(**{**card, "environment": environment, "records": records})
    )
    assert (folder / "README.md").read_text() == page
    curve = pd.read_csv(folder / "curve.csv")
    held_out = [name for name in curve if name == "val_mean_episode_rewards"]
    assert card["num_evaluations"] == int(curve[held_out].notna().to_numpy().sum())


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
