"""Which environment an `--env_name` stands for, and how to make it."""

import os
from dataclasses import dataclass

from environments.fake import FakeEnvironment, fake_spec
from environments.gymnasium_adapter import GYMNASIUM_PREFIX, GymnasiumEnvironment, gymnasium_spec
from environments.procgen_adapter import ProcgenEnvironment, procgen_spec, require_level_range
from environments.protocol import EnvironmentSpec, VectorEnvironment
from experiment.errors import UserError

DEFAULT_NUM_THREADS = min(os.cpu_count() or 1, 8)
"""Stepping threads: more than the cores only adds switching, more than 8 gains little."""


@dataclass(frozen=True)
class EnvironmentConfig:
    """Which game to play, on which levels, and how it looks."""

    env_name: str = "coinrun"
    """A Procgen game; `gymnasium:ID` for an environment of Gymnasium; `fake` for the test world."""
    start_level: int = 0
    """First level seed. Levels from 1000000000 on are held out: training never sees them."""
    num_levels: int = 0
    """Number of levels from the first on; 0 means 1000000000, all training levels."""
    distribution_mode: str = "easy"
    """Procgen's difficulty: easy, hard, and in some games extreme or memory."""
    use_backgrounds: bool = False
    """Draw Procgen's background pictures instead of a black background."""
    restrict_themes: bool = False
    """Use one theme only in Procgen games that have several."""
    use_monochrome_assets: bool = False
    """Draw plain coloured shapes instead of Procgen's pictures."""
    num_threads: int = DEFAULT_NUM_THREADS
    """Threads that step the environments."""


def environment_spec(config: EnvironmentConfig) -> EnvironmentSpec:
    """Describe the environment; raises `UserError` naming the flag for an unknown one."""
    if config.env_name == "fake":
        return fake_spec()
    if config.env_name.startswith(GYMNASIUM_PREFIX):
        return gymnasium_spec(config.env_name.removeprefix(GYMNASIUM_PREFIX))
    return procgen_spec(
        config.env_name,
        {
            "distribution_mode": config.distribution_mode,
            "use_backgrounds": config.use_backgrounds,
            "restrict_themes": config.restrict_themes,
            "use_monochrome_assets": config.use_monochrome_assets,
        },
    )


def environment_name(spec: EnvironmentSpec) -> str:
    """The `--env_name` that stands for `spec`."""
    return GYMNASIUM_PREFIX + spec.name if spec.adapter == "gymnasium" else spec.name


def require_levels(spec: EnvironmentSpec, start_level: int, num_levels: int) -> None:
    """Raise `UserError`, naming the flags, when the environment does not have these levels.

    Making an environment checks it too; this is for before something has been written.
    """
    if spec.adapter == "procgen":
        require_level_range(start_level, num_levels)
    elif start_level < 0 or num_levels < 0:
        raise UserError(f"--start_level {start_level} --num_levels {num_levels}: below 0")


def make_environment(config: EnvironmentConfig, num_envs: int, seed: int = 0) -> VectorEnvironment:
    """Make `num_envs` slots; `seed` decides in which order levels are drawn from the range."""
    return make_environment_from_spec(
        environment_spec(config),
        num_envs,
        seed=seed,
        num_levels=config.num_levels,
        start_level=config.start_level,
        num_threads=config.num_threads,
    )


def make_environment_from_spec(
    spec: EnvironmentSpec,
    num_envs: int,
    seed: int = 0,
    num_levels: int = 0,
    start_level: int = 0,
    num_threads: int = DEFAULT_NUM_THREADS,
) -> VectorEnvironment:
    """Make the environment that an agent's or dataset's metadata describe.

    Args:
        spec: the game and its options.
        num_envs: number of slots.
        seed: decides in which order levels are drawn from the range.
        num_levels: number of levels; 0 means 10^9.
        start_level: first level of the range.
        num_threads: threads that step the environments. With 0 Procgen's are stepped by whoever
            sends the actions; Gymnasium's have one thread at least.

    Raises:
        UserError: unknown adapter, a level range that the environment does not have, or a negative
            number of threads.
    """
    if num_threads < 0:
        raise UserError(f"--num_threads {num_threads}: below 0")
    require_levels(spec, start_level, num_levels)
    if spec.adapter == "procgen":
        return ProcgenEnvironment(spec, num_envs, seed, start_level, num_levels, num_threads)
    if spec.adapter == "gymnasium":
        return GymnasiumEnvironment(spec, num_envs, seed, start_level, num_levels, num_threads)
    if spec.adapter == "fake":
        return FakeEnvironment(spec, num_envs, seed, start_level, num_levels)
    raise UserError(f"unknown environment adapter {spec.adapter!r} in the metadata")
