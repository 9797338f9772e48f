"""A `RecurrentPPO` of sb3-contrib, briefly trained, is the same agent here."""

import contextlib
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

import record
from agents.checkpoint import load_agent
from agents.images import to_float_images, to_float_observations
from agents.sb3_policy import Sb3Agent
from environments.fake import FakeEnvironment, fake_spec
from experiment.errors import UserError
from rollouts.store import RolloutDataset

with contextlib.redirect_stderr(io.StringIO()):  # sb3 imports gym, which prints an appeal
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from sb3_contrib.common.recurrent.type_aliases import RNNStates
    from stable_baselines3.common.torch_layers import FlattenExtractor

pytestmark = pytest.mark.medium

FAKE = fake_spec(40)
DOCUMENT = Path(__file__).parents[2] / "docs/agents.md"


class FakeGymnasium(gymnasium.Env):
    """The fake world as sb3 wants it."""

    observation_space = gymnasium.spaces.Box(0, 255, FAKE.obs_shape, np.uint8)
    action_space = gymnasium.spaces.Discrete(FAKE.num_actions)

    def __init__(self) -> None:
        self.slot = FakeEnvironment(FAKE, 1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.slot.observe().obs[0], {}

    def step(self, action):
        self.slot.send(np.array([action]))
        outcome = self.slot.observe()
        return outcome.obs[0], float(outcome.reward[0]), bool(outcome.first[0]), False, {}


class OwnExtractor(FlattenExtractor):
    pass


class OwnPolicy(RecurrentActorCriticPolicy):
    pass


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "cnn": ("CnnLstmPolicy", {"lstm_hidden_size": 8}),
    "mlp": ("MlpLstmPolicy", {"lstm_hidden_size": 8, "net_arch": [6]}),
    "shared, relu": (
        "CnnLstmPolicy",
        {
            "lstm_hidden_size": 8,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "activation_fn": nn.ReLU,
            "net_arch": {"pi": [7], "vf": [5, 4]},
        },
    ),
    "memoryless critic, two layers, two extractors": (
        "CnnLstmPolicy",
        {
            "lstm_hidden_size": 8,
            "n_lstm_layers": 2,
            "enable_critic_lstm": False,
            "share_features_extractor": False,
            "features_extractor_kwargs": {"features_dim": 16},
        },
    ),
    "pixels up to 255": ("MlpLstmPolicy", {"lstm_hidden_size": 8, "normalize_images": False}),
}
SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 16}}

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> Train:
    """Trains for a few dozen steps and saves."""

    def train(policy: Any, arguments: dict[str, Any]) -> Path:
        if policy == "CnnLstmPolicy":
            arguments = {**SMALL_CNN, **arguments}
        model = RecurrentPPO(
            policy,
            FakeGymnasium(),
            n_steps=32,
            batch_size=32,
            n_epochs=2,
            learning_rate=0.01,
            policy_kwargs=arguments,
            seed=0,
            device="cpu",
        )
        model.learn(64)
        file = tmp_path_factory.mktemp("sb3") / "model.zip"
        model.save(file)
        return file

    return train


@pytest.fixture(scope="module")
def cnn_file(train) -> Path:
    return train(*VARIANTS["cnn"])


def sb3_states(agent: Sb3Agent, states: Any) -> torch.Tensor:
    """The part of our state that sb3 carries too."""
    pairs = [states.pi] if agent.policy.lstm_critic is None else [states.pi, states.vf]
    flat = [part.transpose(0, 1).flatten(1) for pair in pairs for part in pair]
    return torch.cat(flat, dim=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_distributions_values_and_states_are_those_of_sb3(train, variant):
    """Over two slots, with episodes that end at different steps."""
    file = train(*VARIANTS[variant])
    policy: Any = RecurrentPPO.load(file, device="cpu").policy
    policy.set_training_mode(False)
    loaded = load_agent(file)
    agent = loaded.policy
    assert isinstance(agent, Sb3Agent)
    assert loaded.env_steps == 64
    zeros = torch.zeros(policy.lstm_hidden_state_shape[0], 2, 8)
    theirs, ours = RNNStates((zeros, zeros), (zeros, zeros)), agent.initial_state(2)
    frames = np.random.default_rng(0).integers(0, 256, (12, 2, *FAKE.obs_shape), np.uint8)
    first = np.zeros((12, 2), bool)
    first[0] = True
    first[5, 0] = first[8, 1] = True
    for frame, starts in zip(frames, first, strict=True):
        obs, _ = policy.obs_to_tensor(np.moveaxis(frame, -1, 1))
        starts = torch.tensor(starts)
        with torch.no_grad():
            distribution, _ = policy.get_distribution(obs, theirs.pi, starts.float())
            _, value, _, theirs = policy.forward(obs, theirs, starts.float())
            output = agent.step(to_float_images(frame), ours, starts)
        ours = output.state
        log_probs = torch.log_softmax(output.action_logits, dim=-1)
        hidden = theirs.pi[0].transpose(0, 1).flatten(1)
        carried = sb3_states(agent, theirs)
        assert_close(log_probs, distribution.distribution.logits, variant)
        assert_close(output.value, value[:, 0], variant)
        assert_close(ours[:, : carried.shape[1]], carried, variant)
        assert_close(ours[:, agent.hidden_slice], hidden, variant)


def assert_close(found: torch.Tensor, expected: torch.Tensor, variant: str) -> None:
    # Sums over thousands of numbers up to 255 have fewer digits to spare.
    tolerance = 1e-3 if variant == "pixels up to 255" else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_greedy_actions_over_an_episode_are_those_of_predict(cnn_file):
    model, agent = RecurrentPPO.load(cnn_file, device="cpu"), load_agent(cnn_file).policy
    slot, state, lstm_state = FakeEnvironment(FAKE, 1), agent.initial_state(1), None
    for step in range(60):
        outcome = slot.observe()
        with torch.no_grad():
            first = torch.tensor(outcome.first)
            output = agent.step(to_float_observations(outcome.obs), state, first)
        expected, lstm_state = model.predict(
            np.moveaxis(outcome.obs, -1, 1),
            state=lstm_state,
            episode_start=outcome.first,
            deterministic=True,
        )
        assert int(output.action_logits.argmax()) == int(expected[0]), step
        state = output.state
        # Actions from elsewhere, so that episodes end.
        slot.send(np.array([(7, 5, 1, 3)[step % 4]]))


def test_nothing_in_the_archive_is_unpickled(cnn_file, tmp_path):
    trace, file = tmp_path / "trace", tmp_path / "trap.zip"
    with zipfile.ZipFile(cnn_file) as archive, zipfile.ZipFile(file, "w") as trap:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "data":
                settings = json.loads(content)
                for value in settings.values():
                    if isinstance(value, dict) and ":serialized:" in value:
                        value[":serialized:"] = "bm90IGEgcGlja2xl"
                content = json.dumps(settings)
            trap.writestr(name, content)
    assert load_agent(file).hash == load_agent(cnn_file).hash

    class Touching:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    weights = tmp_path / "policy.pth"
    torch.save({"action_net.weight": Touching()}, weights)
    with zipfile.ZipFile(cnn_file) as archive, zipfile.ZipFile(file, "w") as trap:
        trap.writestr("data", archive.read("data"))
        trap.write(weights, "policy.pth")
    with pytest.raises(UserError, match=r"policy\.pth in it\): not a readable file of weights"):
        load_agent(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("policy", "arguments", "complaint"),
    [
        ("MlpLstmPolicy", {"features_extractor_class": OwnExtractor}, "features_extractor_class"),
        (OwnPolicy, {}, "none of sb3-contrib's CnnLstmPolicy and MlpLstmPolicy"),
        ("MlpLstmPolicy", {"activation_fn": OwnExtractor}, None),
    ],
    ids=["extractor", "class", "activation"],
)
def test_what_only_unpickling_would_tell_is_refused(train, policy, arguments, complaint):
    if complaint is None:
        file = train("MlpLstmPolicy", {"activation_fn": nn.Tanh, "lstm_hidden_size": 8})
        change_settings(file, "policy_kwargs", activation_fn="<class 'evil.Activation'>")
        complaint = "activation_fn = <class 'evil.Activation'>"
    else:
        file = train(policy, {"lstm_hidden_size": 8, **arguments})
    with pytest.raises(UserError, match=complaint) as refusal:
        load_agent(file)
    assert "write a factory that loads it" in str(refusal.value)


def test_the_documented_factory_loads_what_needs_unpickling(train, tmp_path, monkeypatch):
    file = train("MlpLstmPolicy", {"features_extractor_class": OwnExtractor, "lstm_hidden_size": 8})
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "my_sb3.py" in block]
    (tmp_path / "my_sb3.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    agent = load_agent(f"my_sb3:make_agent?file={file}")
    sys.modules.pop("my_sb3")
    assert isinstance(agent.policy, Sb3Agent)
    assert isinstance(agent.policy.policy.features_extractor, OwnExtractor)


def change_settings(file: Path, name: str, **changes: Any) -> None:
    with zipfile.ZipFile(file) as archive:
        contents = {entry: archive.read(entry) for entry in archive.namelist()}
    settings = json.loads(contents["data"])
    settings[name].update(changes)
    contents["data"] = json.dumps(settings).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for entry, content in contents.items():
            archive.writestr(entry, content)


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("observation_space", {"dtype": "float32"}, "uint8 images are expected"),
        ("observation_space", {"_shape": [17]}, "uint8 images are expected"),
        ("action_space", {":type:": "<class 'gymnasium.spaces.box.Box'>"}, "Discrete from 0"),
        ("policy_kwargs", {"lstm_hidden_size": 9}, "weights do not fit"),
    ],
)
def test_other_spaces_and_sizes_are_refused(train, name, changes, complaint):
    file = train("MlpLstmPolicy", {"lstm_hidden_size": 8})
    change_settings(file, name, **changes)
    with pytest.raises(UserError, match=complaint):
        load_agent(file)


def test_another_archive_is_refused(tmp_path):
    file = tmp_path / "model.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="not an archive that RecurrentPPO"):
        load_agent(file)
    file = file.rename(tmp_path / "model")
    with pytest.raises(UserError, match="not an archive that RecurrentPPO"):
        load_agent(f"sb3:{file}")


def test_without_sb3_the_extra_is_named(cnn_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib.common.recurrent", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[sb3\]'"):
        load_agent(cnn_file)


def test_record_takes_it_and_the_recording_replays(train, tmp_path, monkeypatch):
    class Wide(FakeGymnasium):
        observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)

        def __init__(self):
            self.slot = FakeEnvironment(fake_spec(), 1)

    monkeypatch.setattr(sys.modules[__name__], "FakeGymnasium", Wide)
    file = train(*VARIANTS["cnn"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv",
        [
            *("record.py", "--model_file", f"sb3:{file}", "--env_name", "fake"),
            *("--interpreting_params_name", "tiny", "--device", "cpu"),
        ],
    )
    record.main()
    dataset = RolloutDataset("data")
    agent = load_agent(file)
    assert dataset.metadata.agent_file == str(file)
    assert dataset.metadata.agent_hash == agent.hash
    assert dataset.metadata.hidden_slice == (0, 8)
    for rollout in map(dataset.read_episode, range(dataset.num_episodes)):
        state = agent.policy.initial_state(1)
        for t in range(len(rollout)):
            with torch.no_grad():
                output = agent.policy.step(to_float_observations(rollout.obs[t : t + 1]), state)
            state = output.state
            np.testing.assert_allclose(rollout.agent_hidden[t], state[0], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(
                rollout.action_logits[t], output.action_logits[0], rtol=1e-5, atol=1e-5
            )
            np.testing.assert_allclose(rollout.value[t], output.value[0], rtol=1e-5, atol=1e-5)
