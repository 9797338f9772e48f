from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.checkpoint import load_agent, save_agent
from agents.networks import NetworkConfig, RecurrentPolicy, make_policy
from environments.protocol import EnvironmentSpec
from generative.simulator import Simulator, SimulatorConfig
from rollouts.schema import DatasetMetadata
from rollouts.store import RolloutWriter
from rollouts.types import EpisodeInfo, Rollout, WindowBatch

SMALL_SIMULATOR = SimulatorConfig(
    latent_dim=8,
    deter_dim=12,
    num_categoricals=3,
    num_classes=4,
    hidden_dim=16,
    encoder_channels=(2, 2, 4, 4),
    encoder_rnn_dim=12,
    encoder_mlp=(16,),
    environment_mlp=(16,),
    agent_mlp=(16,),
    action_mlp=(16,),
    head_mlp=(16,),
    embedding_depth=2,
    decoder_depth=2,
)
NUM_ACTIONS = 5
SMALL_SPEC = EnvironmentSpec(
    adapter="fake",
    name="fake",
    obs_shape=(64, 64, 3),
    num_actions=NUM_ACTIONS,
    action_names=tuple("abcde"),
    null_action=2,
    time_limit=None,
)


def build_policy(seed: int = 0) -> RecurrentPolicy:
    torch.manual_seed(seed)
    network = NetworkConfig(width=0.25, num_features=6, num_actions=NUM_ACTIONS)
    policy = make_policy(network)
    # Larger policy weights, so that the agent's choice depends on what it sees.
    torch.nn.init.normal_(policy.policy_head.weight)
    return policy.requires_grad_(False).eval()


@pytest.fixture
def small_simulator() -> Simulator:
    policy = build_policy()
    torch.manual_seed(1)
    return Simulator(SMALL_SIMULATOR, policy).eval()


def build_rollout(episode_id: int, length: int, agent_hash: str, level: int) -> Rollout:
    generator = np.random.default_rng(episode_id)
    return Rollout(
        obs=generator.integers(0, 256, (length, 64, 64, 3), np.uint8),
        agent_hidden=generator.uniform(-1, 1, (length, 6)).astype(np.float32),
        action_logits=np.zeros((length, NUM_ACTIONS), np.float32),
        value=np.zeros(length, np.float32),
        action=generator.integers(0, NUM_ACTIONS, length).astype(np.int32),
        behaviour_log_prob=np.zeros(length, np.float32),
        reward=generator.normal(size=length).astype(np.float32),
        done=np.arange(length) == length - 1,
        info=EpisodeInfo(episode_id, agent_hash, np.zeros(6, np.float32), level_seed=level),
    )


def write_rollouts(
    folder: Path, agent_hash: str, agent_file: Path, lengths: tuple[int, ...]
) -> Path:
    metadata = DatasetMetadata(
        environment=SMALL_SPEC,
        agent_hash=agent_hash,
        agent_file=str(agent_file),
        state_dim=6,
        hidden_slice=(0, 6),
        num_actions=NUM_ACTIONS,
    )
    with RolloutWriter(folder, metadata) as writer:
        for episode_id, length in enumerate(lengths):
            writer.write(build_rollout(episode_id, length, agent_hash, 100 + episode_id // 2))
    return folder


@dataclass(frozen=True)
class TrainingFiles:
    agent: Path
    agent_hash: str
    data: Path
    heldout: Path


@pytest.fixture(scope="session")
def training_files(tmp_path_factory: pytest.TempPathFactory) -> TrainingFiles:
    folder = tmp_path_factory.mktemp("simulator-training")
    agent = save_agent(folder / "agent", build_policy(), SMALL_SPEC, {}, env_steps=0)
    agent_hash = load_agent(agent).hash
    data = write_rollouts(folder / "data", agent_hash, agent, (9, 2, 7, 5))
    heldout = write_rollouts(folder / "heldout", agent_hash, agent, (6, 8, 5))
    return TrainingFiles(agent, agent_hash, data, heldout)


@pytest.fixture
def padded_batch() -> WindowBatch:
    """Five rows, three windows: whole, ending at row 3, ending at row 2 (simulated step 0)."""
    generator = np.random.default_rng(0)
    num_real = np.array([5, 4, 3])
    valid = np.arange(5)[:, None] < num_real
    terminal = np.arange(5)[:, None] == np.where(num_real == 5, -1, num_real - 1)
    action = generator.integers(0, NUM_ACTIONS, (5, 3))
    return WindowBatch(
        obs=generator.integers(0, 256, (5, 3, 64, 64, 3), np.uint8) * valid[..., None, None, None],
        agent_hidden=generator.uniform(-1, 1, (5, 3, 6)).astype(np.float32) * valid[..., None],
        action=np.where(valid, action, 2),
        reward=generator.normal(size=(5, 3)).astype(np.float32) * valid,
        terminal=terminal,
        valid=valid,
        episode_id=np.arange(3),
        start_row=np.zeros(3, np.int64),
        num_init_steps=3,
    )
