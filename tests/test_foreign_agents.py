"""Agents of the user's own code go through every command, found again by what datasets record."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import agents.__main__
import plot_value_and_action_weights
import record
import record_gen_samples
import render
import saliency_experiments
import train
import train_gen_model
from agents.checkpoint import load_agent
from agents.images import to_float_observations
from analysis import (
    hidden_analysis_precompute,
    jacobian_analysis_precompute,
    sample_trust_precompute,
    simulator_fidelity_precompute,
)
from environments.fake import fake_spec
from experiment.errors import UserError
from rollouts.store import RolloutDataset

pytestmark = pytest.mark.medium

DOCUMENT = Path(__file__).parents[1] / "docs/agents.md"
GLANCE = '''
class Glance(nn.Module):
    """No memory: a state of no numbers, and a step alone."""

    state_dim, hidden_slice = 0, slice(0, 0)

    def __init__(self, num_actions):
        super().__init__()
        self.num_actions = num_actions
        self.heads = nn.Linear(3 * 8 * 8, num_actions + 1)

    def initial_state(self, batch_size):
        return self.heads.weight.new_zeros(batch_size, 0)

    def step(self, images, state, first=None):
        heads = self.heads(avg_pool2d(images, 8).flatten(1))
        return AgentOutput(state, heads[:, :-1], heads[:, -1])


def make_glance(environment):
    torch.manual_seed(1)
    return Glance(environment.num_actions)
'''
TINY = ("--interpreting_params_name", "tiny")
CPU = (*TINY, "--device", "cpu")


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Iterator[Path]:
    """A working folder with the document's module, to which an agent without memory is added."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "my_agents.py" in block]
    (tmp_path / "my_agents.py").write_text(code + GLANCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_agents", None)


@pytest.fixture
def run(monkeypatch):
    def run(command, *arguments: object) -> None:
        monkeypatch.setattr("sys.argv", [command.__name__, *map(str, arguments)])
        command.main()

    return run


@pytest.mark.parametrize(
    ("reference", "state_dim", "hidden"),
    [("my_agents:make_agent?width=8", 16, (0, 8)), ("my_agents:make_glance", 16, (0, 15))],
    ids=["lstm", "without memory"],
)
def test_commands_take_the_agent(workplace, run, reference, state_dim, hidden):
    run(record, "--model_file", reference, "--env_name", "fake", *CPU)
    metadata = RolloutDataset("data").metadata
    assert (metadata.agent_file, metadata.state_dim) == (reference, state_dim)
    assert metadata.hidden_slice == hidden
    assert_replays(RolloutDataset("data"), reference)

    run(train_gen_model, "--run_dir", "run", "--export_dir", "simulator", *CPU)
    simulator = ("--model_file", "simulator")
    run(record_gen_samples, *simulator, "--data_save_dir", "samples", *CPU)
    assert RolloutDataset("samples").metadata.agent_file == reference
    assert_replays(RolloutDataset("samples"), reference)
    samples = ("--generated_data_dir", "samples")
    run(hidden_analysis_precompute, *samples, "--output_dir", "hidden", *TINY)
    projection = ("--projection", "hidden/projection")
    run(saliency_experiments, *simulator, *samples, *projection, *CPU)
    run(jacobian_analysis_precompute, *simulator, *samples, *projection, *CPU)
    run(sample_trust_precompute, *samples, "--data_dir", "data", "--device", "cpu")
    run(plot_value_and_action_weights, *projection, "--data_dir", "data", "--device", "cpu")
    points = ("--branch_from", "data", "--episode", 0, 1, "--step", 1, "--branches", 2)
    run(record, *points, "--swap_directions_from", 0, "--swap_directions_to", "None", *projection)
    assert_branches(RolloutDataset("branches_twin"), RolloutDataset("data"), reference)
    fidelity = ("--data_dir", "data", "--train_data_dir", "data")
    run(simulator_fidelity_precompute, *simulator, *fidelity, *CPU)
    video = ("--num_eps", 1, "--env_name", "fake", "--device", "cpu")
    run(render, "--model_file", reference, *video)
    assert Path("logs/rendered/episode_00000.mp4").exists()


def assert_replays(dataset: RolloutDataset, reference: str) -> None:
    """The agent, made again, says of the stored frames what was stored."""
    agent = load_agent(reference, environment=fake_spec()).policy
    for rollout in map(dataset.read_episode, range(dataset.num_episodes)):
        state = torch.from_numpy(rollout.agent_hidden[:1])
        for t in range(1, len(rollout)):
            with torch.no_grad():
                output = agent.step(to_float_observations(rollout.obs[t : t + 1]), state)
            state = output.state
            np.testing.assert_allclose(rollout.agent_hidden[t], state[0], atol=1e-5)
            np.testing.assert_allclose(rollout.value[t], output.value[0], atol=1e-5)


def assert_branches(branches: RolloutDataset, source: RolloutDataset, reference: str) -> None:
    """Untouched branches begin with the recorded state, and replay."""
    assert branches.num_episodes == 4
    for branch in map(branches.read_episode, range(branches.num_episodes)):
        recorded = source.read_episode(source.index_of(branch.info.source_episode_id))
        np.testing.assert_array_equal(branch.info.agent_initial_state, recorded.agent_hidden[0])
        np.testing.assert_allclose(branch.agent_hidden[0], recorded.agent_hidden[1], atol=1e-5)
    assert_replays(branches, reference)


def test_another_agent_is_refused_by_dataset_and_simulator(workplace, run):
    reference, other = "my_agents:make_agent?width=8", "my_agents:make_agent?width=6"
    run(record, "--model_file", reference, "--env_name", "fake", *CPU)
    with pytest.raises(
        UserError, match=r"--data_dir data: recorded by agent .* but my_agents:make"
    ):
        run(train_gen_model, "--agent_file", other, "--run_dir", "run", *CPU)
    run(train_gen_model, "--run_dir", "run", "--export_dir", "simulator", *CPU)
    simulator = ("--model_file", "simulator", "--data_save_dir", "samples")
    with pytest.raises(UserError, match="this simulator belongs to agent"):
        run(record_gen_samples, *simulator, "--agent_file", other, *CPU)
    with pytest.raises(UserError, match="agent"):
        run(record, "--model_file", other, "--env_name", "fake", *CPU)
    # The same name, but the code behind it has changed.
    code = Path("my_agents.py").read_text()
    Path("my_agents.py").write_text(code.replace("manual_seed(0)", "manual_seed(5)"))
    shutil.rmtree("__pycache__", ignore_errors=True)
    sys.modules.pop("my_agents")
    with pytest.raises(UserError, match="this simulator belongs to agent"):
        run(record_gen_samples, *simulator, *CPU)


def test_an_agent_elsewhere_has_to_be_named(workplace, run, monkeypatch):
    run(record, "--model_file", "my_agents:make_glance", "--env_name", "fake", *CPU)
    sys.modules.pop("my_agents")
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(workplace)])
    data = ("--data_dir", "../data", "--run_dir", "run")
    with pytest.raises(UserError, match="name it: --agent_file 'my_agents:make_glance'"):
        run(train_gen_model, *data, *CPU)
    assert not Path("run").exists()
    run(train_gen_model, *data, "--agent_file", "../my_agents.py:make_glance", *CPU)
    assert Path("run/log.csv").exists()


def test_training_cannot_begin_with_it(workplace, run):
    with pytest.raises(UserError, match="its network, LstmAgent, is not one of ours"):
        run(train, "--model_file", "my_agents:make_agent", "--env_name", "fake", "--run_dir", "run")
    assert not Path("run").exists()


def test_info_tells_what_the_agent_is(workplace, run, capsys):
    run(agents.__main__, "info", "my_agents:make_agent", "--env_name", "fake")
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["network"] == "LstmAgent"
    assert facts["state"] == "64 numbers, of which analyses look at 0 to 31"
    agent = load_agent("my_agents:make_agent", environment=fake_spec())
    assert facts["hash"] == agent.hash
