from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents.checkpoint import load_agent, save_agent
from agents.networks import NetworkConfig, make_policy
from environments.protocol import EnvironmentSpec
from experiment.command_line import apply_values, load_preset
from generative.checkpoint import load_simulator, save_simulator
from generative.sample_actions import ListedActions
from generative.sample_starts import RandomStarts
from generative.sampling import SamplingConfig, SamplingPlan, record_samples
from generative.simulator import Simulator, SimulatorConfig
from projections.hidden import HiddenProjection
from rollouts.schema import DatasetMetadata, SimulatedDims
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import EpisodeInfo, Rollout

HIDDEN_DIM, NUM_ACTIONS, NUM_PLANTED = 12, 5, 3


def environment_spec():
    return EnvironmentSpec(
        adapter="fake",
        name="fake",
        obs_shape=(8, 8, 3),
        num_actions=NUM_ACTIONS,
        action_names=("downleft", "left", "up", "upright", "noop"),
        null_action=4,
        time_limit=None,
    )


def planted_hidden(rng, labels):
    """States around one centre per label, with a little noise in every direction."""
    centres = np.random.default_rng(5).normal(size=(NUM_PLANTED, HIDDEN_DIM)) * 4
    return (centres[labels] + rng.normal(size=(len(labels), HIDDEN_DIM))).astype(np.float32)


def planted_rollout(episode_id, length, simulated, agent_hash="agent"):
    rng = np.random.default_rng(1000 * simulated + episode_id)
    logits = rng.normal(size=(length, NUM_ACTIONS)).astype(np.float32)
    done = np.zeros(length, np.bool_)
    done[-1] = True
    extra = {}
    if simulated:
        extra = {
            "env_deter": rng.normal(size=(length, 4)).astype(np.float32),
            "env_stoch": rng.integers(0, 3, (length, 2)).astype(np.uint8),
            "terminal_prob": done.astype(np.float32),
        }
    return Rollout(
        obs=rng.integers(0, 256, (length, 8, 8, 3)).astype(np.uint8),
        agent_hidden=planted_hidden(rng, rng.integers(0, NUM_PLANTED, length)),
        action_logits=logits,
        value=rng.normal(size=length).astype(np.float32),
        action=rng.integers(0, NUM_ACTIONS, length).astype(np.int32),
        behaviour_log_prob=np.zeros(length, np.float32),
        reward=(done * 10).astype(np.float32),
        done=done,
        info=EpisodeInfo(
            episode_id=episode_id,
            agent_hash=agent_hash,
            agent_initial_state=np.zeros(HIDDEN_DIM, np.float32),
            initialisation="informed" if simulated else "real",
            latent=np.ones(6, np.float32) if simulated else None,
        ),
        **extra,
    )


def write_planted_dataset(folder, lengths, simulated=False, agent_hash="agent"):
    metadata = DatasetMetadata(
        environment=environment_spec(),
        agent_hash=agent_hash,
        agent_file="nowhere",
        state_dim=HIDDEN_DIM,
        hidden_slice=(0, HIDDEN_DIM),
        num_actions=NUM_ACTIONS,
        simulated=SimulatedDims(4, 2, 3, 6) if simulated else None,
    )
    with RolloutWriter(folder, metadata) as writer:
        for episode_id, length in enumerate(lengths):
            writer.write(planted_rollout(episode_id + 100, length, simulated, agent_hash))
    return folder


@pytest.fixture(scope="session")
def planted_datasets(tmp_path_factory):
    """Real rollouts of 30 episodes and simulated ones of 10, hidden states in three clusters."""
    folder = tmp_path_factory.mktemp("planted")
    lengths = np.random.default_rng(0).integers(5, 30, 30)
    return SimpleNamespace(
        real=write_planted_dataset(folder / "real", lengths),
        simulated=write_planted_dataset(folder / "simulated", [10] * 10, simulated=True),
        lengths=lengths,
    )


@pytest.fixture(scope="session")
def foreign_dataset(tmp_path_factory):
    """Simulated rollouts of another agent."""
    folder = tmp_path_factory.mktemp("foreign") / "data"
    return write_planted_dataset(folder, [5, 6], simulated=True, agent_hash="other")


@pytest.fixture(scope="session")
def simulated_chain(tmp_path_factory):
    """A tiny agent and simulator, six samples of theirs with all choices drawn, a projection."""
    folder = tmp_path_factory.mktemp("chain")
    torch.manual_seed(0)
    environment = replace(environment_spec(), obs_shape=(64, 64, 3))
    policy = make_policy(NetworkConfig(width=0.25, num_features=8, num_actions=NUM_ACTIONS))
    save_agent(folder / "agent", policy, environment, {}, 0)
    agent = load_agent(folder / "agent")
    sizes = load_preset("simulator.yml", "tiny")["training"]["simulator"]
    simulator = Simulator(apply_values(SimulatorConfig, sizes, "tiny"), agent.policy)
    save_simulator(folder / "simulator", simulator, environment, agent.hash, {}, 0)
    loaded = load_simulator(folder / "simulator", agent)
    config = SamplingConfig(6, 5, latents="sample", agent_actions="sample", seed=3)
    record_samples(SamplingPlan(loaded, agent, RandomStarts(3), config), folder / "samples")
    hidden = RolloutDataset(folder / "samples").read_field("agent_hidden")
    HiddenProjection("pca", 3).fit(hidden).save(folder / "projection")
    return folder


@pytest.fixture(scope="session")
def told_samples(simulated_chain, tmp_path_factory):
    """Three samples of the chain's simulator, five steps long, under given actions."""
    agent = load_agent(simulated_chain / "agent")
    loaded = load_simulator(simulated_chain / "simulator", agent)
    config = SamplingConfig(3, 5, manual_actions=("left", "up"))
    plan = SamplingPlan(loaded, agent, RandomStarts(3), config, ListedActions((1, 2)))
    folder = tmp_path_factory.mktemp("told") / "samples"
    record_samples(plan, folder)
    return folder
