"""Agents that other code makes: named, built, checked, told apart."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from agents.checkpoint import load_agent, load_chosen_agent, require_recurrent_policy, save_agent
from agents.environment_match import environment_of_agent
from agents.foreign import FactoryReference, finish_agent, parse_reference
from agents.networks import NetworkConfig, RecurrentPolicy
from agents.probe import require_agent, require_differentiable
from agents.protocol import AgentOutput, Readout, expected_frames, has_bounded_state
from agents.step_only import StepOnlyAgent
from environments.fake import fake_spec
from experiment.errors import UserError

FAKE = fake_spec()
SMALL = fake_spec(16)
NUM_ACTIONS = FAKE.num_actions

MODULE = """
from dataclasses import dataclass

import torch

from agents.networks import NetworkConfig, RecurrentPolicy

CALLS = []


@dataclass
class Settings:
    width: float


def make(features=8, seed=0):
    CALLS.append((features, seed))
    torch.manual_seed(seed)
    return RecurrentPolicy(NetworkConfig(width=0.1, num_features=features))


def make_for(environment):
    assert Settings(0.1).width == 0.1
    config = NetworkConfig(width=0.1, num_features=8, obs_shape=environment.obs_shape)
    return RecurrentPolicy(config)


class Nothing:
    pass
"""


class Averaging(nn.Module):
    """Keeps every promise: a leaky mean of the image's colours, read by linear heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.state_dim, self.hidden_slice, self.num_actions = 3, slice(0, 3), NUM_ACTIONS
        self.heads = nn.Linear(3, NUM_ACTIONS + 1)

    def initial_state(self, batch_size):
        return torch.full((batch_size, 3), 0.5)

    def embed(self, images):
        return images.mean(dim=(-2, -1))

    def advance(self, embedding, state, first=None):
        if first is not None:
            state = torch.where(first[:, None], 0.5, state)
        return 0.5 * state + 0.5 * embedding

    def read_out(self, state):
        heads = self.heads(state)
        return Readout(heads[..., :-1], heads[..., -1])

    def step(self, images, state, first=None):
        state = self.advance(self.embed(images), state, first)
        readout = self.read_out(state)
        return AgentOutput(state, readout.action_logits, readout.value)


class Stepping:
    """A step and nothing else, on a network that is no attribute of a module."""

    hash = "stepping"

    def __init__(self, inner: Averaging | None = None) -> None:
        self.inner = (inner or Averaging()).requires_grad_(False)
        self.state_dim, self.hidden_slice, self.num_actions = 3, slice(1, 3), NUM_ACTIONS

    def initial_state(self, batch_size):
        return self.inner.initial_state(batch_size)

    def step(self, images, state, first=None):
        return self.inner.step(images, state, first)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Iterator[Path]:
    """A working folder with the module `makers`, which is forgotten afterwards."""
    (tmp_path / "makers.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("makers", None)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("a.b:make", FactoryReference("a.b", "make", {}, "")),
        ("d/a.py:make", FactoryReference("d/a.py", "make", {}, "")),
        (
            "a:make?n=3&name=x%20y&empty=&flag=true",
            FactoryReference(
                "a",
                "make",
                {"n": 3, "name": "x y", "empty": "", "flag": True},
                "n=3&name=x%20y&empty=&flag=true",
            ),
        ),
        ("agents/model_3", None),
        ("model.pth", None),
        ("a:", None),
        ("a-b:make", None),
    ],
)
def test_references_are_taken_apart(reference, expected):
    assert parse_reference(reference) == expected


def test_a_factory_is_called_with_its_arguments_and_the_environment(workplace):
    loaded = load_agent("makers:make?features=6&seed=2")
    assert sys.modules["makers"].CALLS == [(6, 2)]
    assert (loaded.policy.state_dim, loaded.environment) == (6, None)
    assert loaded.reference == "makers:make?features=6&seed=2"
    small = load_agent("makers:make_for", environment=SMALL)
    assert expected_frames(small.policy) == (16, 16, 3)
    by_file = load_agent("makers.py:make?features=6&seed=2")
    assert by_file.hash == loaded.hash
    assert by_file.reference == f"{workplace}/makers.py:make?features=6&seed=2"


def test_what_is_loaded_is_frozen_and_in_evaluation_mode(workplace):
    policy = load_agent("makers:make").policy
    assert isinstance(policy, nn.Module)
    assert not policy.training
    assert not any(parameter.requires_grad for parameter in policy.parameters())


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("absent:make", "no module absent"),
        ("absent.py:make", "absent.py: no such file"),
        ("makers:absent", "no function of that name"),
        ("makers:CALLS", "no function of that name"),
        ("makers:dataclass", "defined elsewhere"),
        ("makers:make?wrong=1", "got an unexpected keyword argument 'wrong'"),
        ("makers:make?wrong", "key=value"),
        ("makers:make_for", "--env_name"),
        ("makers:Nothing", "lacks state_dim, hidden_slice, num_actions, initial_state, step"),
        ("broken:make", "it imports nonexistent_library, which is missing"),
        ("broken.py:make", "it imports nonexistent_library, which is missing"),
        ("sb3:absent.zip", "sb3:absent.zip: no such agent"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(workplace, reference, complaint):
    (workplace / "broken.py").write_text("import nonexistent_library")
    with pytest.raises(UserError) as refusal:
        load_agent(reference)
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["json", "time"])
def test_a_file_does_not_take_the_place_of_another_module(workplace, name):
    (workplace / f"{name}.py").write_text(MODULE)
    with pytest.raises(UserError, match="rename it"):
        load_agent(f"{name}.py:make")
    assert not hasattr(sys.modules[name], "make")


def test_the_hash_is_that_of_weights_and_shape_or_the_one_declared(workplace):
    hashes = [load_agent(f"makers:make?seed={seed}").hash for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert load_agent("makers:make?features=9").hash not in hashes

    declared = finish_agent(Stepping(), "x", FAKE)
    other = Stepping()
    other.hash = "another"
    assert declared.hash == finish_agent(Stepping(), "x", FAKE).hash
    assert declared.hash != finish_agent(other, "x", FAKE).hash
    nameless = Stepping()
    nameless.hash = ""
    with pytest.raises(UserError, match="no identity"):
        finish_agent(nameless, "x", FAKE)


def test_a_dataset_may_name_modules_of_the_working_folder_only(workplace, tmp_path_factory):
    def load_recorded(reference):
        return load_chosen_agent(None, reference, "--data_dir data", FAKE)

    expected = load_agent("makers:make").hash
    assert load_recorded("makers:make").hash == expected
    assert load_recorded(f"{workplace}/makers.py:make").hash == expected

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "makers.py").write_text(MODULE)
    foreign = f"{elsewhere}/makers.py:make"
    for reference in (foreign, "subprocess:getoutput?cmd=touch bad", "agents.foreign:make_agent"):
        with pytest.raises(UserError, match="--data_dir data: names an agent made by code"):
            load_recorded(reference)
    assert not Path("bad").exists()
    sys.modules.pop("makers")
    assert load_chosen_agent(foreign, foreign, "--data_dir data", FAKE).hash == expected
    with pytest.raises(UserError, match="names is gone: old/agent"):
        load_recorded("old/agent")


def test_training_from_an_agent_of_other_code_is_refused(workplace):
    found = finish_agent(Averaging(), "mine:Mine", FAKE)
    agent = replace(load_agent("makers:make"), policy=found.policy, path="mine:Mine")
    with pytest.raises(UserError, match="--model_file mine:Mine: its network, Averaging, is not"):
        require_recurrent_policy(agent, "--model_file")


def test_frames_and_actions_must_fit(workplace):
    agent = load_agent("makers:make")
    assert environment_of_agent(agent, "fake") == FAKE
    any_frames = replace(agent, policy=Averaging())
    assert environment_of_agent(any_frames, "fake") == FAKE
    averaging = Averaging()
    averaging.num_actions = 4
    with pytest.raises(UserError, match="number of actions 15"):
        environment_of_agent(replace(agent, policy=averaging), "fake")
    small = load_agent("makers:make_for", environment=SMALL)
    with pytest.raises(UserError, match=r"frames \(64, 64, 3\)"):
        environment_of_agent(small, "fake")


@pytest.mark.parametrize("obs_shape", [(64, 64, 3), (16, 24, 1)])
def test_agents_that_keep_the_promises_pass(obs_shape):
    policy = RecurrentPolicy(NetworkConfig(width=0.1, num_features=6, obs_shape=obs_shape))
    for agent in (policy, StepOnlyAgent(policy)):
        require_agent(agent, obs_shape, "x")
        require_differentiable(agent, obs_shape, "x")
    assert has_bounded_state(policy)
    assert not has_bounded_state(StepOnlyAgent(policy))


def break_shape(agent):
    agent.read_out = lambda state: Readout(
        agent.heads(state)[..., :-1], agent.heads(state)[..., -1:]
    )


def break_dtype(agent):
    agent.double()
    agent.embed = lambda images: images.mean(dim=(-2, -1)).double()


def break_parts(agent):
    sound = agent.step
    agent.step = lambda images, state, first=None: replace(
        sound(images, state, first), value=sound(images, state, first).value + 1
    )


def break_reset(agent):
    agent.advance = lambda embedding, state, first=None: 0.5 * state + 0.5 * embedding


def break_default_first(agent):
    sound = agent.advance

    def advance(embedding, state, first=None):
        return sound(
            embedding, state, torch.ones(len(state), dtype=torch.bool) if first is None else first
        )

    agent.advance = advance


def break_determinism(agent):
    agent.embed = lambda images: images.mean(dim=(-2, -1)) + torch.rand(1)


def break_memory(agent):
    calls = []

    def embed(images):
        calls.append(images)
        return images.mean(dim=(-2, -1)) + len(calls)

    agent.embed = embed


def break_rows(agent):
    agent.embed = lambda images: images.mean(dim=(-2, -1)) - images.mean(dim=(0, -2, -1))


def break_finiteness(agent):
    agent.embed = lambda images: images.mean(dim=(-2, -1)) / 0


def break_leading_dims(agent):
    sound = agent.read_out
    agent.read_out = lambda state: sound(state.reshape(-1, 3))


@pytest.mark.parametrize(
    ("breaking", "complaint"),
    [
        (break_shape, r"step: value is \(4, 1\) of torch.float32, expected \(4,\)"),
        (break_dtype, "torch.float64, expected"),
        (break_parts, "instead of step changes value by 1"),
        (break_reset, "`first` from another state than the initial one changes state"),
        (break_default_first, "a step without `first` changes state"),
        (break_determinism, r"done twice \(is it random, or does it remember\?\) changes state"),
        (break_memory, r"done twice \(is it random, or does it remember\?\) changes state"),
        (break_rows, "a row alone instead of in a batch changes state"),
        (break_finiteness, "not finite"),
        (break_leading_dims, r"read_out of \(2, B, state_dim\): logits is \(8, 15\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_broken_promise_is_found(breaking, complaint):
    agent = Averaging().requires_grad_(False)
    require_agent(agent, FAKE.obs_shape, "x")
    breaking(agent)
    with pytest.raises(UserError, match=f"^x: .*{complaint}"):
        require_agent(agent, FAKE.obs_shape, "x")


@pytest.mark.parametrize(
    "hidden", [3, slice(None), slice(0, 4), slice(2, 2), slice(0, 3, 2), slice(-1, 3)]
)
def test_a_hidden_slice_outside_the_state_is_refused(hidden):
    agent = Averaging()
    agent.hidden_slice = hidden
    with pytest.raises(UserError, match="hidden_slice"):
        finish_agent(agent, "x", FAKE)


def test_an_agent_through_which_no_gradient_flows_is_refused():
    agent = Averaging()
    agent.embed = lambda images: images.detach().mean(dim=(-2, -1))
    with pytest.raises(UserError, match="no gradient flows"):
        require_differentiable(agent, FAKE.obs_shape, "x")


def test_a_device_needs_a_way_to_get_there():
    with pytest.raises(UserError, match=r"to\(device\)"):
        finish_agent(Stepping(), "x", FAKE, "cuda")


def test_a_step_alone_becomes_the_whole_protocol():
    inner = Averaging().requires_grad_(False)
    agent = finish_agent(Stepping(inner), "x", FAKE).policy
    assert (agent.state_dim, agent.hidden_slice) == (3 + NUM_ACTIONS + 1, slice(1, 3))
    images, first = torch.rand(5, 2, 3, 8, 8), torch.zeros(5, 2, dtype=torch.bool)
    first[2, 0] = True
    state, expected_state = agent.initial_state(2), inner.initial_state(2)
    for t in range(5):
        output = agent.step(images[t], state, first[t])
        expected = inner.step(images[t], expected_state, first[t])
        state, expected_state = output.state, expected.state
        assert torch.equal(output.state[:, :3], expected.state)
        assert torch.equal(output.action_logits, expected.action_logits)
        assert torch.equal(output.value, expected.value)


def test_an_agent_without_state_is_analysed_by_its_logits():
    class Memoryless(Stepping):
        def __init__(self):
            super().__init__()
            self.state_dim, self.hidden_slice = 0, slice(0, 0)

        def initial_state(self, batch_size):
            return torch.zeros(batch_size, 0)

        def step(self, images, state, first=None):
            output = self.inner.step(images, self.inner.initial_state(len(images)))
            return replace(output, state=state)

    agent = finish_agent(Memoryless(), "x", FAKE).policy
    output = agent.step(torch.rand(2, 3, 8, 8), agent.initial_state(2))
    assert torch.equal(output.state[:, agent.hidden_slice], output.action_logits)


def test_a_folder_of_ours_still_loads_by_a_name_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = RecurrentPolicy(NetworkConfig(width=0.1, num_features=6))
    save_agent("a:b", policy, FAKE, {}, 0)
    assert load_agent("a:b").environment == FAKE
