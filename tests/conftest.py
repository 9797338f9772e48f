"""What several packages test with: the smallest whole chain, run once, and a small world."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from agents.checkpoint import LoadedAgent, load_agent, save_agent
from agents.networks import NetworkConfig, make_policy
from agents.protocol import AgentOutput, Readout
from agents.recorder import record_episodes
from agents.recording_config import RecordingConfig
from environments.fake import fake_spec
from experiment.command_line import apply_values, load_preset
from generative.checkpoint import LoadedSimulator, load_simulator, save_simulator
from generative.sample_actions import RecordedActions
from generative.sample_starts import InformedStarts, RandomStarts
from generative.sampling import SamplingConfig, SamplingPlan, record_samples
from generative.simulator import Simulator, SimulatorConfig
from rollouts.store import RolloutDataset

ROOT = Path(__file__).parent.parent

ChainCommand = Callable[..., list[str]]
RequireFromMachine = Callable[[bool, str], None]


@pytest.fixture(scope="session")
def chain_command() -> ChainCommand:
    """The command that runs a preset's chain into FOLDER/results, as `make demo` does."""

    def command(folder: Path, preset: str = "tiny") -> list[str]:
        return [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
            *("--directory", str(folder), "--cores", "1", "--nolock", "--rerun-incomplete"),
            *("--config", f"preset={preset}", "out=results"),
        ]

    return command


@pytest.fixture(scope="session")
def require_from_machine() -> RequireFromMachine:
    """Skips a test whose needs the machine does not meet; fails in CI, which installs them."""

    def require(is_there: bool, missing: str) -> None:
        if is_there:
            return
        if os.environ.get("CI") == "true":
            pytest.fail(f"{missing}: in CI this must be tested")
        pytest.skip(missing)

    return require


@pytest.fixture(scope="session")
def finished_chain(tmp_path_factory: pytest.TempPathFactory, chain_command: ChainCommand) -> Path:
    """Folder whose `results` hold every artefact of the tiny chain on real CoinRun."""
    folder = tmp_path_factory.mktemp("chain")
    result = subprocess.run(chain_command(folder), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="session")
def pixel_world() -> str:
    """`--env_name` of a small Gymnasium environment with image observations."""
    import gymnasium
    import numpy as np

    class PixelWorld(gymnasium.Env):
        """A counter per colour channel; action 1 adds to the first, action 2 ends the episode."""

        metadata: dict = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's interface)
        observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(3)

        def __init__(self, render_mode: str | None = None, **_: object) -> None:
            self.render_mode = render_mode

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.counts = np.array([0, 0, self.np_random.integers(256)])
            return self._frame(), {}

        def step(self, action):
            self.counts[:2] += (action == 1, 1)
            reward = float(self.np_random.random())
            return self._frame(), reward, action == 2, False, {"is_success": action == 2}

        def render(self):
            return self._frame().repeat(4, axis=0).repeat(4, axis=1)

        def _frame(self):
            return np.broadcast_to(self.counts, (8, 8, 3)).astype(np.uint8)

    gymnasium.register("PixelWorld-v0", entry_point=PixelWorld, max_episode_steps=12)
    return "gymnasium:PixelWorld-v0"


@pytest.fixture
def cell_first_lstm() -> nn.Module:
    """An agent for the fake environment: an LSTM whose state is c, then h, read by linear heads.

    So the hidden state is a part of the state, and not its first.
    """
    torch.manual_seed(0)
    return CellFirstLstm(num_actions=fake_spec().num_actions).requires_grad_(False).eval()


class CellFirstLstm(nn.Module):
    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.state_dim, self.hidden_slice, self.num_actions = 16, slice(8, 16), num_actions
        self.cell = nn.LSTMCell(3 * 4 * 4, 8)
        self.heads = nn.Linear(8, num_actions + 1)

    def initial_state(self, batch_size):
        return torch.zeros(batch_size, 16)

    def embed(self, images):
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)

    def advance(self, embedding, state, first=None):
        if first is not None:
            state = torch.where(first[:, None], 0.0, state)
        hidden, cell = self.cell(embedding, (state[..., 8:], state[..., :8]))
        return torch.cat([cell, hidden], dim=-1)

    def read_out(self, state):
        heads = self.heads(state[..., 8:])
        return Readout(heads[..., :-1], heads[..., -1])

    def step(self, images, state, first=None):
        state = self.advance(self.embed(images), state, first)
        readout = self.read_out(state)
        return AgentOutput(state, readout.action_logits, readout.value)


@dataclass(frozen=True)
class FakeChain:
    """An untrained agent, its episodes in the fake world, a simulator and samples of its own."""

    folder: Path
    agent: LoadedAgent
    simulator: LoadedSimulator

    @property
    def data(self) -> Path:
        """The episodes."""
        return self.folder / "data"

    def record(self, name: str, **settings: object) -> Path:
        """Record samples of five steps into a folder of that name."""
        config = SamplingConfig(**{"max_samples": 8, "num_sim_steps": 5, **settings})  # type: ignore[arg-type]
        source = RandomStarts(0)
        if config.start_kind == "informed":
            source = InformedStarts(RolloutDataset(self.data), self.simulator, config.seed)
        actions = None
        if config.recorded_actions:
            assert isinstance(source, InformedStarts)
            actions = RecordedActions(source, self.simulator.environment)
        plan = SamplingPlan(self.simulator, self.agent, source, config, actions)
        record_samples(plan, self.folder / name)
        return self.folder / name


@pytest.fixture(scope="session")
def fake_chain(tmp_path_factory: pytest.TempPathFactory) -> FakeChain:
    """The smallest chain whose samples can be replayed in their environment."""
    folder = tmp_path_factory.mktemp("fake-chain")
    torch.manual_seed(0)
    policy = make_policy(NetworkConfig(width=0.25, num_features=12))
    # The initial heads are all but uniform, which would hide mistakes.
    torch.nn.init.normal_(policy.policy_head.weight)
    save_agent(folder / "agent", policy, fake_spec(), {}, 0)
    agent = load_agent(folder / "agent")
    recording = RecordingConfig(max_episodes=6, num_envs=2, seed=1, num_threads=0)
    record_episodes(agent, fake_spec(), folder / "data", recording)
    sizes = load_preset("simulator.yml", "tiny")["training"]["simulator"]
    simulator = Simulator(apply_values(SimulatorConfig, sizes, "tiny"), agent.policy)
    save_simulator(folder / "simulator", simulator, fake_spec(), agent.hash, {}, 0)
    return FakeChain(folder, agent, load_simulator(folder / "simulator", agent))
