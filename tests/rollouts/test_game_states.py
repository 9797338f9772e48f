"""Game states beside the frames: through the store and back, and against the game itself."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from environments.factory import (
    EnvironmentConfig,
    environment_spec,
    make_environment_from_spec,
)
from environments.game_trace import ENTITY_COLUMNS, GameTrace, GameTracer, game_tables
from environments.game_variables import game_variables
from environments.procgen_adapter import ALL_GAMES
from environments.procgen_state import entity_boxes, parse_state
from experiment.errors import UserError
from rollouts.export import export_npz, read_npz
from rollouts.game_video import entity_boxes_at, write_game_video
from rollouts.merge import merge_datasets
from rollouts.schema import DatasetMetadata, SchemaError
from rollouts.store import RolloutDataset, RolloutWriter, verify_dataset
from rollouts.types import EpisodeInfo, Rollout

STATE_DIM = 3


def play(game: str, episode_id: int, num_rows: int = 25) -> tuple[Rollout, list[bytes]]:
    """A cut episode under random actions, and the states saved when its frames were shown."""
    spec = environment_spec(EnvironmentConfig(env_name=game))
    env = make_environment_from_spec(spec, 1, num_threads=0)
    env.start_level([0], [episode_id])
    rng, tracer, rows, saved = np.random.default_rng(episode_id), GameTracer(), [], []
    for _ in range(num_rows):
        saved += env.get_state()
        tracer.append(saved[-1])
        action = rng.integers(0, 9, 1).astype(np.int32)
        frame = env.observe().obs[0].copy()
        env.send(action)
        outcome = env.observe()
        rows.append((frame, action[0], outcome.reward[0], outcome.first[0]))
        if outcome.first[0]:
            break
    env.close()
    obs, actions, rewards, dones = (np.array(column) for column in zip(*rows, strict=True))
    length = len(rows)
    rollout = Rollout(
        obs=obs,
        agent_hidden=np.zeros((length, STATE_DIM), np.float32),
        action_logits=np.zeros((length, 15), np.float32),
        value=np.zeros(length, np.float32),
        action=actions,
        behaviour_log_prob=np.zeros(length, np.float32),
        reward=rewards,
        done=dones,
        info=EpisodeInfo(
            episode_id=episode_id,
            agent_hash="agent",
            agent_initial_state=np.zeros(STATE_DIM, np.float32),
            level_seed=episode_id,
            cut=not dones[-1],
        ),
        game=tracer.trace(),
    )
    return rollout, saved


def metadata_of(game: str, with_state: bool = True) -> DatasetMetadata:
    spec = environment_spec(EnvironmentConfig(env_name=game))
    tables = game_tables(spec) if with_state else None
    return DatasetMetadata(spec, "agent", "agent", STATE_DIM, (0, 1), 15, game=tables)


def write(folder: Path, rollouts: list[Rollout], game: str) -> RolloutDataset:
    with RolloutWriter(folder, metadata_of(game, rollouts[0].game is not None)) as writer:
        for number, rollout in enumerate(rollouts):
            writer.write(rollout)
            if number == 1:
                writer.seal()
    return RolloutDataset(folder)


def assert_same_trace(found: GameTrace | None, expected: GameTrace | None) -> None:
    assert found is not None
    assert expected is not None
    for field in fields(GameTrace):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other, err_msg=field.name)


@pytest.mark.parametrize("game", ["coinrun", "chaser", "miner", "bigfish"])
def test_states_come_back_bit_for_bit_from_store_merge_and_export(tmp_path, game) -> None:
    rollouts = [play(game, episode_id)[0] for episode_id in range(4)]
    dataset = write(tmp_path / "data", rollouts, game)
    assert len(dataset.shard_paths) == 2
    assert verify_dataset(dataset.folder) == []
    merged = merge_datasets(tmp_path / "merged", [dataset.folder])
    export_npz(dataset, tmp_path / "npz")
    for index, rollout in enumerate(rollouts):
        again = read_npz(tmp_path / "npz" / f"episode-{index:08d}.npz", dataset.metadata)
        for found in (dataset.read_episode(index), merged.read_episode(index), again):
            assert_same_trace(found.game, rollout.game)
            np.testing.assert_array_equal(found.obs, rollout.obs)
    tables = np.concatenate([r.game.variables for r in rollouts if r.game is not None])
    np.testing.assert_array_equal(dataset.read_field("game_variables"), tables)


@pytest.mark.parametrize("game", ALL_GAMES)
def test_every_row_says_what_the_state_of_its_frame_says(game) -> None:
    rollout, saved = play(game, 5)
    trace = rollout.game
    assert trace is not None
    assert trace.variables.shape == (len(saved), len(game_variables(game)))
    for row, state in enumerate(map(parse_state, saved)):
        entities = trace.entities_at(row)
        for column, name in enumerate(ENTITY_COLUMNS):
            np.testing.assert_array_equal(entities[:, column], state.entities[name])
        np.testing.assert_array_equal(trace.grid_at(row), state.grid)
        assert trace.camera_at(row) == state.camera
        found, expected = entity_boxes_at(trace, row), entity_boxes(state)
        np.testing.assert_array_equal(found.left, expected.left)
        np.testing.assert_array_equal(found.bottom, expected.bottom)
        assert trace.variables[row, 0] == row


def test_states_are_those_of_a_fresh_replay_of_level_and_actions(tmp_path) -> None:
    rollout, _ = play("coinrun", 7)
    stored = write(tmp_path, [rollout], "coinrun").read_episode(0)
    env = make_environment_from_spec(environment_spec(EnvironmentConfig(env_name="coinrun")), 2)
    env.start_level([1], [stored.info.level_seed])
    tracer = GameTracer()
    for row in range(len(stored)):
        np.testing.assert_array_equal(env.observe().obs[1], stored.obs[row])
        tracer.append(env.get_state([1])[0])
        env.send(np.repeat(stored.action[row], 2))
    env.close()
    assert_same_trace(stored.game, tracer.trace())


def test_without_states_the_dataset_is_of_version_one_and_other_fields_are_the_same(
    tmp_path,
) -> None:
    rollouts = [play("coinrun", episode_id)[0] for episode_id in range(2)]
    plain = [replace(rollout, game=None) for rollout in rollouts]
    with_state = write(tmp_path / "with", rollouts, "coinrun")
    without = write(tmp_path / "without", plain, "coinrun")
    assert without.metadata.to_dict()["schema_version"] == 1
    assert not {"game", "ragged_fields"} & set(without.metadata.to_dict())
    assert without.read_episode(0).game is None
    for spec in without.metadata.step_fields:
        one, other = (dataset.read_field(spec.name) for dataset in (with_state, without))
        assert one.tobytes() == other.tobytes()
    with pytest.raises(UserError, match="--with_state"):
        write_game_video(without, 0, tmp_path / "video.mp4")


def test_a_rollout_that_does_not_fit_is_refused(tmp_path) -> None:
    rollout, _ = play("coinrun", 1)
    assert rollout.game is not None
    with RolloutWriter(tmp_path, metadata_of("coinrun")) as writer:
        with pytest.raises(SchemaError, match="game: a rollout without game states"):
            writer.write(replace(rollout, game=None))
        short = replace(rollout.game, entities=rollout.game.entities[:-1])
        with pytest.raises(SchemaError, match="game_entities: found shape"):
            writer.write(replace(rollout, game=short))
