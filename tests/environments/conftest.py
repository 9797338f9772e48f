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
