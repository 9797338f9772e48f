import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.checkpoint import LoadedAgent, load_agent
from experiment.errors import UserError
from generative.checkpoint import (
    DESCRIPTION_NAME,
    WEIGHTS_NAME,
    load_simulator,
    load_weights,
    newest_simulator,
    save_simulator,
    simulator_hash,
)
from generative.simulator import Simulator


@pytest.fixture
def loaded_agent(training_files) -> LoadedAgent:
    return load_agent(training_files.agent)


@pytest.fixture
def saved_simulator(tmp_path: Path, small_simulator: Simulator, loaded_agent: LoadedAgent) -> Path:
    return _save(tmp_path / "simulator", small_simulator, loaded_agent)


def test_a_round_trip_gives_the_same_simulator(saved_simulator, small_simulator, loaded_agent):
    loaded = load_simulator(saved_simulator, loaded_agent)
    assert loaded.simulator.config == small_simulator.config
    assert loaded.environment == loaded_agent.environment
    assert loaded.step == 3
    assert loaded.hash == simulator_hash(saved_simulator)
    assert not loaded.simulator.training
    latent = torch.nn.functional.normalize(torch.randn(2, 8), dim=-1)
    for simulator in (loaded.simulator, small_simulator):
        steps = simulator.simulate(simulator.decode_initial(latent), 3)
        expected = small_simulator.simulate(small_simulator.decode_initial(latent), 3)
        assert torch.equal(steps.images[-1], expected.images[-1])


def test_the_agent_is_not_in_the_file(saved_simulator, small_simulator):
    agent_bytes = 4 * sum(p.numel() for p in small_simulator.agent.parameters())
    own_bytes = 4 * small_simulator.num_parameters
    size = (saved_simulator / WEIGHTS_NAME).stat().st_size
    assert own_bytes <= size < own_bytes + agent_bytes


def test_another_agent_is_refused(saved_simulator, loaded_agent):
    other = replace(loaded_agent, hash="f" * 64)
    with pytest.raises(UserError, match=r"belongs to agent .* is agent ffff"):
        load_simulator(saved_simulator, other)


def test_a_foreign_file_is_refused(tmp_path, loaded_agent):
    foreign = tmp_path / "model.pt"
    torch.save({"state_dict": {}}, foreign)
    with pytest.raises(UserError, match=r"model\.pt: not a simulator"):
        load_simulator(foreign, loaded_agent)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"version": 99}, "version 99"), ({"format": "other"}, "format 'other'")],
)
def test_unknown_formats_are_refused(saved_simulator, loaded_agent, change, message):
    file = saved_simulator / DESCRIPTION_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        load_simulator(saved_simulator, loaded_agent)


def test_damaged_weights_are_refused(saved_simulator, loaded_agent):
    file = saved_simulator / WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not readable"):
        load_simulator(saved_simulator, loaded_agent)


def test_weights_of_other_sizes_are_refused(saved_simulator, small_simulator):
    config = replace(small_simulator.config, deter_dim=13)
    with pytest.raises(UserError, match="another architecture"):
        load_weights(Simulator(config, small_simulator.agent), saved_simulator)


def test_the_newest_simulator_is_the_one_written_last(tmp_path, small_simulator, loaded_agent):
    for name in ("b/model_10", "a/model_3", "a/model_20"):
        newest = _save(tmp_path / "exp" / name, small_simulator, loaded_agent)
        assert newest_simulator("exp", tmp_path) == newest
    with pytest.raises(UserError, match=r"no simulator in .*unheard"):
        newest_simulator("unheard", tmp_path)


def _save(folder: Path, simulator: Simulator, agent: LoadedAgent) -> Path:
    assert agent.environment is not None
    save_simulator(folder, simulator, agent.environment, agent.hash, {"note": "test"}, step=3)
    return folder
