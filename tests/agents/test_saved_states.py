"""Branches that begin at saved states: the same as from the level's first frame, only sooner."""

import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.branching import BranchConfig, BranchPlan, check_branches, record_branches
from agents.checkpoint import LoadedAgent, hash_agent
from agents.networks import NetworkConfig, RecurrentPolicy
from agents.recorder import record_episodes
from agents.recording_config import RecordingConfig
from agents.replay import SourceRow, restore_points
from environments.factory import EnvironmentConfig, environment_spec, make_environment_from_spec
from environments.game_trace import GameTrace
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from rollouts.saved_states import CHECKSUM, NUM_BYTES
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import Rollout

FAKE = environment_spec(EnvironmentConfig(env_name="fake"))
STARPILOT = environment_spec(EnvironmentConfig(env_name="starpilot"))
COINRUN = environment_spec(EnvironmentConfig(env_name="coinrun"))
EVERY = 3
RECORDING = RecordingConfig(max_episodes=6, num_envs=4, seed=3, num_threads=0, max_steps=200)
BRANCHING = RecordingConfig(num_envs=1, seed=3, num_threads=0)


def make_agent(spec: EnvironmentSpec) -> LoadedAgent:
    torch.manual_seed(0)
    height, width, channels = spec.obs_shape
    network = NetworkConfig(
        width=0.25,
        num_features=16,
        obs_shape=(height, width, channels),
        num_actions=spec.num_actions,
    )
    policy = RecurrentPolicy(network).requires_grad_(False).eval()
    if spec.adapter == "gymnasium":
        # Its last action ends episodes.
        policy.policy_head.bias.data[2] -= 4
    return LoadedAgent(policy, spec, hash_agent(policy), Path("agent"), 0)


def record(folder: Path, spec: EnvironmentSpec, every: int | None) -> RolloutDataset:
    recording = replace(RECORDING, save_state_every=every)
    record_episodes(make_agent(spec), spec, folder, recording)
    return RolloutDataset(folder)


def read_episodes(dataset: RolloutDataset) -> dict[int, Rollout]:
    rollouts = [dataset.read_episode(index) for index in range(dataset.num_episodes)]
    return {rollout.info.episode_id: rollout for rollout in rollouts}


def assert_equal_content(left: Rollout, right: Rollout) -> None:
    """But for the saved states."""
    for field in fields(Rollout):
        if field.name not in ("info", "game", "saved_states", "saved_state_table"):
            one, other = getattr(left, field.name), getattr(right, field.name)
            np.testing.assert_array_equal(one, other, err_msg=field.name)
    assert (left.game is None) == (right.game is None)
    for field in fields(GameTrace) if left.game else ():
        one, other = getattr(left.game, field.name), getattr(right.game, field.name)
        np.testing.assert_array_equal(one, other, err_msg=field.name)


def make_plan(dataset: RolloutDataset, *points: tuple[int, int]) -> BranchPlan:
    episodes, rows = zip(*points, strict=True)
    config = BranchConfig(
        branch_from=dataset.folder, episode=episodes, step=rows, branches=2, branch_steps=30
    )
    return BranchPlan(make_agent(dataset.metadata.environment), dataset, config, BRANCHING)


def branch(plan: BranchPlan, folder: Path) -> dict[int, Rollout]:
    record_branches(plan, folder)
    return read_episodes(RolloutDataset(folder))


def assert_branches_are_equal(spec: EnvironmentSpec, folder: Path) -> None:
    plain, saved = record(folder / "plain", spec, None), record(folder / "saved", spec, EVERY)
    found = read_episodes(saved)
    for episode_id, rollout in read_episodes(plain).items():
        assert_equal_content(found[episode_id], rollout)
    assert plain.metadata.schema_version < saved.metadata.schema_version == 3
    longest = max(found.values(), key=len)
    last, which = len(longest) - 1, longest.info.episode_id
    assert last > EVERY
    points = [(which, row) for row in sorted({1, EVERY, EVERY + 1, last - 1, last})]
    one = branch(make_plan(plain, *points), folder / "one")
    other = branch(make_plan(saved, *points), folder / "other")
    assert sorted(one) == sorted(other)
    for episode_id, rollout in one.items():
        assert_equal_content(other[episode_id], rollout)


@pytest.fixture(scope="module")
def coinrun(tmp_path_factory: pytest.TempPathFactory) -> RolloutDataset:
    return record(tmp_path_factory.mktemp("coinrun") / "data", COINRUN, 10)


@pytest.mark.parametrize("spec", [FAKE, COINRUN, STARPILOT], ids=lambda spec: spec.name)
def test_branches_are_equal_bit_for_bit_either_way(spec: EnvironmentSpec, tmp_path: Path) -> None:
    assert_branches_are_equal(spec, tmp_path)


def test_states_of_a_gymnasium_environment_serve_too(pixel_world: str, tmp_path: Path) -> None:
    assert_branches_are_equal(environment_spec(EnvironmentConfig(env_name=pixel_world)), tmp_path)


def test_a_saved_state_is_the_environment_s_when_the_row_s_frame_is_shown(tmp_path: Path) -> None:
    dataset = record(tmp_path, STARPILOT, 20)
    environment = make_environment_from_spec(STARPILOT, 1, num_threads=0)
    for index in range(dataset.num_episodes):
        rollout = dataset.read_episode(index)
        for number, row in enumerate(dataset.saved_state_rows(index).tolist()):
            environment.set_state([dataset.read_saved_state(index, number)])
            np.testing.assert_array_equal(environment.observe().obs[0], rollout.obs[row])
    environment.close()


def test_replay_begins_at_the_nearest_saved_state_and_compares_from_there(
    coinrun: RolloutDataset, tmp_path: Path
) -> None:
    dataset, rollouts = coinrun, read_episodes(coinrun).values()
    which = max(rollouts, key=len).info.episode_id

    def change_reward(row: int) -> Callable[[Rollout], Rollout]:
        def change(rollout: Rollout) -> Rollout:
            reward = rollout.reward.copy()
            reward[row] += 1
            return replace(rollout, reward=reward)

        return change

    before = rewrite(dataset, tmp_path / "before", which, change_reward(19))
    restore_points(before, [SourceRow(which, 20), SourceRow(which, 35)])
    earlier = rewrite(dataset, tmp_path / "earlier", which, change_reward(18))
    with pytest.raises(UserError, match=r"does not happen again.* at row 18 the reward"):
        restore_points(earlier, [SourceRow(which, 20), SourceRow(which, 19)])
    after = rewrite(dataset, tmp_path / "after", which, change_reward(20))
    with pytest.raises(UserError, match=r"does not happen again.* at row 20 the reward"):
        restore_points(after, [SourceRow(which, 21)])


def rewrite(
    dataset: RolloutDataset, folder: Path, episode_id: int, change: Callable[[Rollout], Rollout]
) -> RolloutDataset:
    with RolloutWriter(folder, dataset.metadata) as writer:
        for rollout in read_episodes(dataset).values():
            is_changed = rollout.info.episode_id == episode_id
            writer.write(change(rollout) if is_changed else rollout)
    return RolloutDataset(folder)


def with_first_state(rollout: Rollout, state: bytes) -> Rollout:
    """The rollout, with another first saved state whose checksum is right."""
    assert rollout.saved_state_table is not None
    assert rollout.saved_states is not None
    table = rollout.saved_state_table.copy()
    rest = rollout.saved_states[table[0, NUM_BYTES] :]
    table[0, NUM_BYTES], table[0, CHECKSUM] = len(state), zlib.crc32(state)
    states = np.concatenate([np.frombuffer(state, np.uint8), rest])
    return replace(rollout, saved_state_table=table, saved_states=states)


def state_of(spec: EnvironmentSpec, level_seed: int) -> bytes:
    environment = make_environment_from_spec(spec, 1, num_threads=0)
    environment.start_level([0], [level_seed])
    (state,) = environment.get_state()
    environment.close()
    return state


HARD = environment_spec(EnvironmentConfig(env_name="coinrun", distribution_mode="hard"))


@pytest.mark.parametrize(
    ("make_state", "complaint"),
    [
        (lambda level: state_of(STARPILOT, level), "it is of starpilot, expected coinrun"),
        (lambda level: state_of(HARD, level), "its distribution_mode is hard, expected easy"),
        (lambda level: state_of(COINRUN, level)[:-100], "saved state"),
        (lambda level: b"", "saved state"),
        (lambda level: bytes(40_000), "saved state"),
        (lambda level: state_of(COINRUN, level + 1), "it is of level"),
        (lambda level: state_of(COINRUN, level), "at row 10 the frame differs"),
    ],
    ids=["game", "mode", "cut", "empty", "zeros", "level", "row"],
)
def test_a_foreign_state_is_a_clear_error(
    coinrun: RolloutDataset, tmp_path: Path, make_state: Callable[[int], bytes], complaint: str
) -> None:
    which = max(read_episodes(coinrun).values(), key=len).info.episode_id

    def change(rollout: Rollout) -> Rollout:
        return with_first_state(rollout, make_state(rollout.info.level_seed))

    foreign = rewrite(coinrun, tmp_path / "foreign", which, change)
    with pytest.raises(UserError, match=complaint):
        branch(make_plan(foreign, (which, 11)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    branch(make_plan(foreign, (which, 9)), tmp_path / "before")


def test_foreign_states_of_other_environments_are_refused_too(
    pixel_world: str, tmp_path: Path
) -> None:
    for name in ("fake", pixel_world):
        spec = environment_spec(EnvironmentConfig(env_name=name))
        dataset = record(tmp_path / spec.adapter, spec, 1)
        which = max(read_episodes(dataset).values(), key=len).info.episode_id
        foreign = rewrite(
            dataset, tmp_path / f"{spec.adapter}-out", which, lambda r: with_first_state(r, b"[1]")
        )
        with pytest.raises(UserError, match=r"saved at row 1 of episode .* does not belong there"):
            restore_points(foreign, [SourceRow(which, 1)])


def test_the_setting_is_part_of_the_dataset(tmp_path: Path) -> None:
    record(tmp_path / "plain", FAKE, None)
    with pytest.raises(UserError, match=r"--save_state_every 3: the dataset .* with None"):
        record(tmp_path / "plain", FAKE, 3)
    record(tmp_path / "saved", FAKE, 3)
    with pytest.raises(UserError, match=r"--save_state_every 4: the dataset .* with 3"):
        record(tmp_path / "saved", FAKE, 4)
    with pytest.raises(UserError, match="--save_state_every 0: at least 1"):
        RecordingConfig(save_state_every=0)


def test_branches_keep_no_states(tmp_path: Path) -> None:
    plan = make_plan(record(tmp_path / "data", FAKE, 3), (0, 1))
    asked = replace(plan, recording=replace(BRANCHING, save_state_every=3))
    with pytest.raises(UserError, match=r"--save_state_every 3: .* branches cannot be branched"):
        check_branches(asked, tmp_path / "out")
    rollouts = branch(plan, tmp_path / "out").values()
    assert all(rollout.saved_states is None for rollout in rollouts)
