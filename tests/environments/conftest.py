"""Environments on trial."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from environments.factory import EnvironmentConfig, make_environment
from environments.protocol import VectorEnvironment

MakeVectorEnvironment = Callable[..., VectorEnvironment]


@pytest.fixture
def make_env() -> Iterator[MakeVectorEnvironment]:
    """Make an environment by name; all are closed when the test ends."""
    opened: list[VectorEnvironment] = []

    def make(env_name: str, num_envs: int = 3, seed: int = 0, **options) -> VectorEnvironment:
        config = replace(EnvironmentConfig(env_name=env_name, num_threads=1), **options)
        opened.append(make_environment(config, num_envs, seed=seed))
        return opened[-1]

    yield make
    for env in opened:
        env.close()


@pytest.fixture(scope="session")
def pixel_world() -> str:
    """`--env_name` of a small Gymnasium environment with image observations."""
    gymnasium = pytest.importorskip("gymnasium")
    import numpy as np

    class PixelWorld(gymnasium.Env):
        """A counter per colour channel; action 1 adds to the first, action 2 ends the episode."""

        metadata: dict = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's interface)
        observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
        action_space = gymnasium.spaces.Discrete(3)

        def __init__(self, render_mode: str | None = None) -> None:
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
