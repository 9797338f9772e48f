"""Small rollouts whose content is a pure function of the episode id."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from environments.protocol import EnvironmentSpec
from rollouts.schema import DatasetMetadata, SimulatedDims
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import EpisodeInfo, Rollout

OBS_SHAPE = (8, 6, 3)
STATE_DIM = 5
NUM_ACTIONS = 4
NULL_ACTION = 2
DIMS = SimulatedDims(deter_dim=7, num_categoricals=3, num_classes=11, latent_dim=9)


def build_metadata(simulated: bool = False, **options: Any) -> DatasetMetadata:
    environment = EnvironmentSpec(
        adapter="fake",
        name="fake",
        obs_shape=OBS_SHAPE,
        num_actions=NUM_ACTIONS,
        action_names=("left", "right", "null", "up"),
        null_action=NULL_ACTION,
        time_limit=None,
        options={"distribution_mode": "easy", **options},
    )
    return DatasetMetadata(
        environment=environment,
        agent_hash="agent",
        agent_file="agents/model_1",
        state_dim=STATE_DIM,
        hidden_slice=(0, STATE_DIM),
        num_actions=NUM_ACTIONS,
        simulated=DIMS if simulated else None,
        provenance={"seed": 3},
    )


def build_rollout(episode_id: int, length: int, simulated: bool = False, **info: Any) -> Rollout:
    rng = np.random.default_rng([episode_id, length])

    def floats(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    done = np.zeros(length, np.bool_)
    done[-1] = not info.get("cut", False)
    extra = {
        "env_deter": floats(length, DIMS.deter_dim),
        "env_stoch": rng.integers(
            DIMS.num_classes, size=(length, DIMS.num_categoricals), dtype=np.uint8
        ),
        "terminal_prob": rng.random(length, np.float32),
    }
    defaults = {"initialisation": "informed", "latent": floats(DIMS.latent_dim)}
    return Rollout(
        obs=rng.integers(256, size=(length, *OBS_SHAPE), dtype=np.uint8),
        agent_hidden=floats(length, STATE_DIM),
        action_logits=floats(length, NUM_ACTIONS),
        value=floats(length),
        action=rng.integers(NUM_ACTIONS, size=length, dtype=np.int32),
        behaviour_log_prob=-rng.random(length, np.float32),
        reward=floats(length),
        done=done,
        info=EpisodeInfo(
            episode_id=episode_id,
            agent_hash="agent",
            agent_initial_state=floats(STATE_DIM),
            **{**(defaults if simulated else {}), **info},
        ),
        **(extra if simulated else {}),
    )


def assert_same_rollout(found: Rollout, expected: Rollout) -> None:
    """Equal bit for bit, types included."""
    for field in fields(Rollout):
        if field.name != "info":
            assert_same(field.name, getattr(found, field.name), getattr(expected, field.name))
    for field in fields(EpisodeInfo):
        assert_same(field.name, getattr(found.info, field.name), getattr(expected.info, field.name))


def assert_same(name: str, found: object, expected: object) -> None:
    assert type(found) is type(expected), name
    if isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        assert found.dtype == expected.dtype, name
        np.testing.assert_array_equal(found, expected, err_msg=name)
    else:
        assert found == expected, name


BuildMetadata = Callable[..., DatasetMetadata]
BuildRollout = Callable[..., Rollout]
WriteDataset = Callable[..., RolloutDataset]


@pytest.fixture
def make_metadata() -> BuildMetadata:
    return build_metadata


@pytest.fixture
def make_rollout() -> BuildRollout:
    return build_rollout


@pytest.fixture
def assert_same_rollouts() -> Callable[[Rollout, Rollout], None]:
    return assert_same_rollout


@pytest.fixture
def write_rollouts(tmp_path: Path) -> WriteDataset:
    """`write_rollouts(rollouts, ...)` → the dataset that holds them."""

    def write(rollouts: list[Rollout], folder: str = "data", **arguments: Any) -> RolloutDataset:
        metadata = build_metadata(simulated=rollouts[0].is_simulated)
        with RolloutWriter(tmp_path / folder, metadata, **arguments) as writer:
            for rollout in rollouts:
                writer.write(rollout)
        return RolloutDataset(tmp_path / folder)

    return write
