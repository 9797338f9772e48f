"""CartPole, whose observations are vectors, through the commands, played by an agent of a file."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import record
import record_gen_samples
import saliency_experiments
import train
import train_gen_model
from agents.checkpoint import load_agent
from environments.factory import EnvironmentConfig, environment_spec
from experiment.errors import UserError
from generative.checkpoint import load_simulator
from generative.networks import VectorDecoder
from rollouts.schema import SCHEMA_VERSION_OF_VECTORS
from rollouts.store import RolloutDataset

CART_POLE = "gymnasium:CartPole-v1"
AGENT = '''
import torch
from torch import nn

from agents.protocol import AgentOutput, Readout


class Pole(nn.Module):
    """Pushes towards the side to which the pole falls, as a memory of the angle tells."""

    state_dim, hidden_slice, num_actions, obs_shape = 4, slice(0, 4), 2, (4,)

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(4.0))

    def initial_state(self, batch_size):
        return self.gain.new_zeros(batch_size, 4)

    def embed(self, vectors):
        return vectors

    def advance(self, embedding, state, first=None):
        if first is not None:
            state = torch.where(first[:, None], 0.0, state)
        return 0.5 * state + embedding

    def read_out(self, state):
        right = self.gain * (state[..., 2] + state[..., 3])
        return Readout(torch.stack([-right, right], -1), state[..., 2])

    def step(self, vectors, state, first=None):
        state = self.advance(self.embed(vectors), state, first)
        readout = self.read_out(state)
        return AgentOutput(state, readout.action_logits, readout.value)


def make_agent():
    return Pole()
'''
VIDEO, NO = ("--num_videos", "1"), "--num_videos: needs .* images"
CPU = ("--interpreting_params_name", "tiny", "--device", "cpu")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder in which the commands have run: data, a simulator, samples."""
    folder = tmp_path_factory.mktemp("cart-pole")
    (folder / "pole_agent.py").write_text(AGENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        agent = ("--model_file", "pole_agent:make_agent", "--env_name", CART_POLE)
        _run(patch, record, *agent, "--max_episodes", "12", *CPU)
        steps = (
            "--num_training_steps",
            "80",
            "--batch_size",
            "16",
            "--vector_mlp",
            "32",
            "--seed",
            "0",
        )
        _run(patch, train_gen_model, "--run_dir", "run", "--export_dir", "sim", *steps, *CPU)
        samples = ("--max_samples", "6", "--num_sim_steps", "5")
        _run(patch, record_gen_samples, "--model_file", "sim", *samples, *CPU)
        yield folder
    sys.modules.pop("pole_agent", None)


@pytest.mark.medium
def test_rollouts_hold_the_vectors_that_the_agent_saw(workplace):
    dataset = RolloutDataset("data")
    assert dataset.metadata.schema_version == SCHEMA_VERSION_OF_VECTORS
    obs = dataset.read_field("obs")
    assert (obs.dtype, obs.shape) == (np.float32, (dataset.num_rows, 4))
    assert dataset.metadata.environment.time_limit == 500
    # CartPole's own rule ends an episode beyond 0.2095 rad, on a frame that is never shown.
    assert 0 < np.abs(obs[:, 2]).max() <= 0.2095
    _assert_replays(dataset)


@pytest.mark.medium
def test_a_simulator_learns_vectors_and_its_samples_replay(workplace):
    dataset = RolloutDataset("data")
    simulator = load_simulator("sim", load_agent("pole_agent:make_agent")).simulator
    obs = dataset.read_field("obs").astype(np.float64)
    assert isinstance(simulator.image_decoder, VectorDecoder)
    standardise = simulator.image_decoder.standardise
    np.testing.assert_allclose(standardise.mean.numpy(), obs.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(standardise.std.numpy(), obs.std(0), rtol=1e-5)
    rows = (workplace / "run/log.csv").read_text().splitlines()
    column = rows[0].split(",").index("image")
    errors = [float(row.split(",")[column]) for row in rows[1:]]
    assert errors[-1] < 0.8 * errors[0]
    samples = RolloutDataset("generative/rec_gen_mod_data/informed_init")
    assert samples.read_field("obs").dtype == np.float32
    assert samples.num_rows == 30
    _assert_replays(samples)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (train, ("--env_name", CART_POLE), "training an agent: needs .* images"),
        (record, ("--model_file", "pole_agent:make_agent", "--env_name", CART_POLE, *VIDEO), NO),
        (record_gen_samples, ("--model_file", "sim", *VIDEO), NO),
        (
            saliency_experiments,
            ("--model_file", "sim"),
            "samples again: needs .* vectors of 4 numbers",
        ),
    ],
    ids=["train", "record", "sample", "saliency"],
)
def test_what_needs_images_says_so(workplace, monkeypatch, command, arguments, message):
    with pytest.raises(UserError, match=message):
        _run(monkeypatch, command, *arguments, "--device", "cpu")


def test_only_vectors_of_floating_point_numbers_are_taken():
    assert environment_spec(EnvironmentConfig(CART_POLE)).obs_dtype == "float32"
    with pytest.raises(UserError, match=r"uint8 images .* or floating-point vectors"):
        environment_spec(EnvironmentConfig("gymnasium:FrozenLake-v1"))


def _run(patch: pytest.MonkeyPatch, command, *arguments: object) -> None:
    patch.setattr("sys.argv", [command.__name__, *map(str, arguments)])
    command.main()


def _assert_replays(dataset: RolloutDataset) -> None:
    """The agent over recorded vectors says what was recorded."""
    policy = load_agent("pole_agent:make_agent").policy
    for index in range(dataset.num_episodes):
        rollout = dataset.read_episode(index)
        state, states = torch.from_numpy(rollout.info.agent_initial_state)[None], []
        for vector in torch.from_numpy(rollout.obs):
            state = policy.advance(policy.embed(vector[None]), state)
            states.append(state[0])
        np.testing.assert_allclose(torch.stack(states), rollout.agent_hidden, atol=1e-5)
        logits = policy.read_out(torch.stack(states)).action_logits.detach()
        np.testing.assert_allclose(logits, rollout.action_logits, atol=1e-4)
