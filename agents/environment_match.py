"""Which environment an agent is to play in."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agents.checkpoint import LoadedAgent
from agents.protocol import expected_frames
from environments.factory import EnvironmentConfig, environment_name, environment_spec
from environments.procgen_adapter import procgen_spec
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError

DEFAULT_ENV_NAME = "coinrun"


def environment_of_agent(
    agent: LoadedAgent,
    env_name: str | None = None,
    distribution_mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> EnvironmentSpec:
    """The environment to play in: the agent's own, or what the flags say where it has none.

    Args:
        agent: the agent; one from elsewhere does not know its environment.
        env_name: `--env_name`; None takes the agent's.
        distribution_mode: `--distribution_mode`; None takes the agent's.
        options: fields of `EnvironmentConfig` for an agent that does not know its own
            environment; the flags override them.

    Raises:
        UserError: the agent belongs to another environment, or does not fit this one's frames or
            number of actions.
    """
    if agent.environment is None:
        spec = environment_from_flags(env_name, distribution_mode, options or {})
    else:
        spec = _spec_of_agent(agent, agent.environment, env_name, distribution_mode)
    require_fitting_agent(agent, spec)
    return spec


def require_fitting_agent(agent: LoadedAgent, spec: EnvironmentSpec) -> None:
    """Raise `UserError` unless frames and number of actions are those that the agent expects."""
    for what, found, expected in (
        ("frames", spec.obs_shape, expected_frames(agent.policy) or spec.obs_shape),
        ("number of actions", spec.num_actions, agent.policy.num_actions),
    ):
        if found != expected:
            raise UserError(
                f"{agent.path}: this agent does not fit {environment_name(spec)}: "
                f"{what} {found}, the agent's network has {expected}"
            )


def _spec_of_agent(
    agent: LoadedAgent, own: EnvironmentSpec, env_name: str | None, mode: str | None
) -> EnvironmentSpec:
    if env_name is not None and env_name != environment_name(own):
        raise UserError(
            f"--env_name {env_name}: the agent {agent.path} belongs to {environment_name(own)}"
        )
    if mode is None or own.adapter != "procgen":
        return own
    return procgen_spec(own.name, {**own.options, "distribution_mode": mode})


def environment_from_flags(
    env_name: str | None, mode: str | None, options: Mapping[str, Any]
) -> EnvironmentSpec:
    """The environment that the flags name, for an agent that knows none.

    Args:
        env_name: `--env_name`; CoinRun by default.
        mode: `--distribution_mode`; None takes that of the options.
        options: fields of `EnvironmentConfig`, which the flags override.

    Raises:
        UserError: no such environment.
    """
    config = EnvironmentConfig(**{"env_name": DEFAULT_ENV_NAME, **options})
    if env_name is not None:
        config = replace(config, env_name=env_name)
    if mode is not None:
        config = replace(config, distribution_mode=mode)
    return environment_spec(config)
