"""The recorder: what it keeps is what happened, whatever the batch, and all of it."""

import itertools
import json
import math
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import record
from agents import recorder
from agents.action_noise import ACTION_NOISE
from agents.checkpoint import (
    LoadedAgent,
    hash_agent,
    load_agent,
    require_recurrent_policy,
    save_agent,
)
from agents.environment_match import environment_of_agent
from agents.networks import NetworkConfig, RecurrentPolicy
from agents.player import BehaviourConfig, Player
from agents.recorder import group_sizes, play_episodes, record_episodes
from agents.recording_config import RecordingConfig, apply_slurm_defaults, level_seeds
from agents.recording_plan import EXPECTED_COMPRESSION, RowEstimate, estimate_rows
from environments.factory import EnvironmentConfig, environment_spec, make_environment_from_spec
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from rollouts.description import read_metadata
from rollouts.store import RolloutDataset, RolloutWriter, verify_dataset
from rollouts.types import Rollout

FAKE = environment_spec(EnvironmentConfig(env_name="fake"))
COINRUN = environment_spec(EnvironmentConfig(env_name="coinrun"))
STARPILOT = environment_spec(EnvironmentConfig(env_name="starpilot"))
SMALL = RecordingConfig(max_episodes=8, num_envs=4, seed=3, num_threads=1)


def make_agent(spec: EnvironmentSpec | None, seed: int = 0, **network) -> LoadedAgent:
    torch.manual_seed(seed)
    policy = RecurrentPolicy(NetworkConfig(width=0.25, num_features=16, **network))
    # The initial heads are all but uniform, which would hide mistakes.
    policy.policy_head.weight.data *= 100
    # Who runs to the right meets an end soon.
    policy.policy_head.bias.data[7:9] += 3
    policy.requires_grad_(False).eval()
    return LoadedAgent(policy, spec, hash_agent(policy), Path("agent"), 0)


def play(spec: EnvironmentSpec, config: RecordingConfig) -> dict[int, Rollout]:
    agent = make_agent(spec)
    player = Player(agent.policy, config.behaviour_in(spec))
    episode_ids = range(config.max_episodes)
    rollouts = play_episodes(player, agent.hash, spec, config, episode_ids)
    return {rollout.info.episode_id: rollout for rollout in rollouts}


def read_episodes(folder: Path) -> dict[int, Rollout]:
    dataset = RolloutDataset(folder)
    rollouts = [dataset.read_episode(index) for index in range(dataset.num_episodes)]
    return {rollout.info.episode_id: rollout for rollout in rollouts}


def assert_same_rollout(left: Rollout, right: Rollout) -> None:
    assert len(left) == len(right)
    for name in ("obs", "action", "reward", "done"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    for name in ("agent_hidden", "action_logits", "value", "behaviour_log_prob"):
        np.testing.assert_allclose(
            getattr(left, name), getattr(right, name), atol=1e-5, err_msg=name
        )
    for name in ("level_seed", "level_complete", "truncated", "cut"):
        assert getattr(left.info, name) == getattr(right.info, name)


def assert_replays(rollout: Rollout, agent: LoadedAgent) -> None:
    """Every row's outputs follow from the frames alone, one frame at a time."""
    state = torch.as_tensor(rollout.info.agent_initial_state)[None]
    for t in range(len(rollout)):
        images = torch.as_tensor(rollout.obs[t : t + 1]).permute(0, 3, 1, 2) / 255
        output = agent.policy.step(images, state)
        state = output.state
        np.testing.assert_allclose(rollout.agent_hidden[t], state[0], atol=1e-5)
        np.testing.assert_allclose(rollout.action_logits[t], output.action_logits[0], atol=1e-5)
        np.testing.assert_allclose(rollout.value[t], output.value[0], atol=1e-5)


def assert_happens_again(rollout: Rollout, spec: EnvironmentSpec) -> None:
    """The level and the recorded actions lead to the recorded frames, rewards and end."""
    env = make_environment_from_spec(spec, 1, num_threads=1)
    env.start_level([0], [rollout.info.level_seed])
    for t in range(len(rollout)):
        np.testing.assert_array_equal(env.observe().obs[0], rollout.obs[t])
        env.send(rollout.action[t : t + 1])
        assert env.observe().reward[0] == rollout.reward[t]
        assert env.observe().first[0] == rollout.done[t]
    outcome = env.observe()
    if not rollout.info.cut:
        assert outcome.level_complete[0] == rollout.info.level_complete
        assert outcome.truncated[0] == rollout.info.truncated
    env.close()


@pytest.mark.parametrize("spec", [FAKE, STARPILOT, COINRUN], ids=lambda spec: spec.name)
def test_recording_replays_through_agent_and_environment(spec, tmp_path) -> None:
    agent = make_agent(spec)
    config = replace(SMALL, max_episodes=3, num_envs=2)
    record_episodes(agent, spec, tmp_path, config)
    episodes = read_episodes(tmp_path)
    assert sorted(episodes) == [0, 1, 2]
    for rollout in episodes.values():
        assert not rollout.info.agent_initial_state.any()
        assert rollout.done[-1]
        assert not rollout.done[:-1].any()
        assert_replays(rollout, agent)
        assert_happens_again(rollout, spec)


@pytest.mark.parametrize("spec", [FAKE, STARPILOT], ids=lambda spec: spec.name)
def test_number_of_environments_changes_nothing(spec) -> None:
    alone, together = (play(spec, replace(SMALL, num_envs=count)) for count in (1, 8))
    assert sorted(alone) == sorted(together) == list(range(8))
    for episode_id, rollout in alone.items():
        assert_same_rollout(rollout, together[episode_id])


def test_another_seed_gives_other_levels_and_actions() -> None:
    one, other = play(FAKE, SMALL), play(FAKE, replace(SMALL, seed=4))
    assert one[0].info.level_seed != other[0].info.level_seed
    same_level = replace(SMALL, start_level=5, num_levels=1)
    one, other = play(FAKE, same_level), play(FAKE, replace(same_level, seed=4))
    assert one[0].info.level_seed == other[0].info.level_seed == 5
    assert any(
        len(one[e]) != len(other[e]) or (one[e].action != other[e].action).any() for e in one
    )


def test_flags_of_an_episode_agree_with_its_rewards() -> None:
    episodes = play(FAKE, replace(SMALL, max_episodes=60, num_envs=16)).values()
    for rollout in episodes:
        assert rollout.info.level_complete == (rollout.reward[-1] == 10)
        assert not rollout.reward[:-1].any()
        assert rollout.info.truncated <= (len(rollout) == FAKE.time_limit)
    assert len({(e.info.level_complete, e.info.truncated) for e in episodes}) == 3


def test_groups_of_environments_are_of_about_one_size_and_three_where_large() -> None:
    assert group_sizes(1) == [1]
    assert group_sizes(5) == [3, 2]
    assert group_sizes(95) == [48, 47]
    assert group_sizes(97) == [33, 32, 32]


def test_spent_budget_cuts_running_episodes_and_keeps_them(tmp_path) -> None:
    agent = make_agent(FAKE)
    config = replace(SMALL, max_episodes=100, num_envs=8, max_steps=60)
    summary = record_episodes(agent, FAKE, tmp_path, config)
    episodes = read_episodes(tmp_path)
    for half in (0, 1):
        begun = sorted(number for number in episodes if number % 2 == half)
        assert begun == list(range(half, 2 * len(begun), 2)), "one is missing that was begun"
    cut = [rollout for rollout in episodes.values() if rollout.info.cut]
    assert 0 < len(cut) == summary.cut_episodes <= 8
    assert 60 <= summary.rows <= 60 + 8
    uncut = play(FAKE, replace(config, max_steps=None, max_episodes=max(episodes) + 1))
    for rollout in cut:
        assert not rollout.done.any()
        assert_replays(rollout, agent)
        assert_happens_again(rollout, FAKE)
        whole = uncut[rollout.info.episode_id]
        np.testing.assert_array_equal(rollout.reward, whole.reward[: len(rollout)])


@pytest.mark.parametrize(("large_group", "num_groups"), [(32, 2), (2, 3)])
@pytest.mark.parametrize("budget", [{"max_episodes": 24}, {"max_episodes": 100, "max_steps": 101}])
def test_two_threads_record_the_same_in_the_same_order_as_one(
    tmp_path, monkeypatch, budget, large_group, num_groups
) -> None:
    monkeypatch.setattr(recorder, "_LARGE_GROUP", large_group)
    agent, config = make_agent(FAKE), replace(SMALL, num_envs=6, **budget)
    assert len(group_sizes(config.num_envs)) == num_groups
    recorded = {}
    threads_before = torch.get_num_threads()
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        try:
            record_episodes(agent, FAKE, tmp_path / str(num_threads), config)
            with ThreadPoolExecutor(2) as others:
                in_others = others.map(lambda _: torch.get_num_threads(), range(2))
                assert {torch.get_num_threads(), *in_others} == {num_threads}
        finally:
            torch.set_num_threads(threads_before)
        recorded[num_threads] = read_episodes(tmp_path / str(num_threads))
    assert list(recorded[1]) == list(recorded[2])
    for one, other in zip(recorded[1].values(), recorded[2].values(), strict=True):
        assert_same_rollout(one, other)


@pytest.mark.parametrize(
    ("num_cores", "asked", "expected"), [(1, 4, 4), (2, 4, 0), (3, 4, 0), (4, 4, 2), (8, 3, 3)]
)
def test_a_player_with_one_core_steps_its_environments_itself(
    monkeypatch, num_cores, asked, expected
) -> None:
    found = []
    make = recorder.make_environment_from_spec

    def make_watched(*args: Any, **kwargs: Any) -> Any:
        found.append(kwargs["num_threads"])
        return make(*args, **kwargs)

    monkeypatch.setattr(recorder, "make_environment_from_spec", make_watched)
    agent, config = make_agent(FAKE), replace(SMALL, num_threads=asked)
    player = Player(agent.policy, config.behaviour_in(FAKE))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_cores)
    try:
        list(play_episodes(player, agent.hash, FAKE, config, range(4)))
    finally:
        torch.set_num_threads(threads_before)
    assert found == [expected, expected]


def test_whoever_stops_early_stops_the_threads_before_the_environments_close(monkeypatch) -> None:
    players_when_closed = []
    make = recorder.make_environment_from_spec

    def make_watched(*args: Any, **kwargs: Any) -> Any:
        environment = make(*args, **kwargs)
        close = environment.close

        def watched_close() -> None:
            names = [thread.name for thread in threading.enumerate()]
            players_when_closed.append([name for name in names if name.startswith("player")])
            close()

        monkeypatch.setattr(environment, "close", watched_close)
        return environment

    monkeypatch.setattr(recorder, "make_environment_from_spec", make_watched)
    agent, config = make_agent(FAKE), replace(SMALL, max_episodes=1000, num_envs=6)
    player = Player(agent.policy, config.behaviour_in(FAKE))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rollouts = play_episodes(player, agent.hash, FAKE, config, range(1000))
        next(rollouts)
        assert any(thread.name.startswith("player") for thread in threading.enumerate())
        rollouts.close()  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(threads_before)
    assert players_when_closed == [[], []]


def test_a_failure_to_write_stops_those_who_play(tmp_path, monkeypatch) -> None:
    write, num_written = RolloutWriter.write, itertools.count()

    def write_or_fail(writer: RolloutWriter, rollout: Rollout) -> None:
        if next(num_written) == 3:
            raise OSError("disk full")
        write(writer, rollout)

    monkeypatch.setattr(RolloutWriter, "write", write_or_fail)
    config = replace(SMALL, max_episodes=1000, num_envs=6)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        # The error at hand keeps all that its traceback leads to.
        with pytest.raises(OSError, match="disk full"):
            record_episodes(make_agent(FAKE), FAKE, tmp_path, config)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads_before)
    assert not any(thread.name.startswith("player") for thread in threading.enumerate())


def test_time_that_is_over_at_once_leaves_one_step_of_each_episode(tmp_path) -> None:
    """There is never a dataset without an episode."""
    config = replace(SMALL, max_hours=1e-9)
    summary = record_episodes(make_agent(FAKE), FAKE, tmp_path, config)
    begun = read_episodes(tmp_path)
    assert summary.episodes == summary.rows == len(begun) == SMALL.num_envs
    assert {len(rollout) for rollout in begun.values()} == {1}
    assert verify_dataset(tmp_path) == []
    record_episodes(make_agent(FAKE), FAKE, tmp_path, SMALL)
    assert sorted(read_episodes(tmp_path)) == list(range(SMALL.max_episodes))


def test_step_budget_is_that_of_the_dataset_in_all(tmp_path) -> None:
    agent = make_agent(FAKE)
    config = replace(SMALL, max_episodes=100, max_steps=60)
    first = record_episodes(agent, FAKE, tmp_path, config)
    assert record_episodes(agent, FAKE, tmp_path, config).rows == first.rows
    more = record_episodes(agent, FAKE, tmp_path, replace(config, max_steps=100))
    assert 100 <= more.rows <= 100 + config.num_envs


def test_continued_dataset_equals_one_recorded_at_once(tmp_path) -> None:
    agent = make_agent(FAKE)
    record_episodes(agent, FAKE, tmp_path / "parts", replace(SMALL, max_episodes=3))
    record_episodes(agent, FAKE, tmp_path / "parts", replace(SMALL, max_episodes=7, num_envs=2))
    summary = record_episodes(agent, FAKE, tmp_path / "whole", replace(SMALL, max_episodes=7))
    parts, whole = read_episodes(tmp_path / "parts"), read_episodes(tmp_path / "whole")
    assert sorted(parts) == sorted(whole) == list(range(7))
    for episode_id, rollout in whole.items():
        assert_same_rollout(rollout, parts[episode_id])
    assert summary.mean_return == pytest.approx(np.mean([r.reward.sum() for r in whole.values()]))
    assert summary.rows == sum(map(len, whole.values()))


def test_complete_dataset_is_left_as_it_is(tmp_path) -> None:
    agent = make_agent(FAKE)
    first = record_episodes(agent, FAKE, tmp_path, SMALL)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    second = record_episodes(agent, FAKE, tmp_path, replace(SMALL, max_episodes=5))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert second.episodes == first.episodes == 8
    assert second.frames_per_second == 0


def test_shards_make_the_dataset_of_one_process(tmp_path) -> None:
    agent = make_agent(FAKE)
    record_episodes(agent, FAKE, tmp_path / "whole", SMALL)
    for index in (2, 0, 1):
        config = replace(SMALL, shard_index=index, num_shards=3, num_envs=2 + index)
        record_episodes(agent, FAKE, tmp_path / "parts", config)
    parts, whole = read_episodes(tmp_path / "parts"), read_episodes(tmp_path / "whole")
    assert sorted(parts) == sorted(whole) == list(range(8))
    for episode_id, rollout in whole.items():
        assert_same_rollout(rollout, parts[episode_id])
    episodes = RolloutDataset(tmp_path / "parts").episodes
    np.testing.assert_array_equal(episodes["episode_id"].to_numpy() % 3, episodes["shard"])
    names = {path.name for path in (tmp_path / "parts").iterdir()}
    assert names == {"dataset.json", *(f"shard-{index}-00000.h5" for index in range(3))}


def test_a_shard_recorded_by_another_number_of_processes_is_continued(tmp_path) -> None:
    agent = make_agent(FAKE)
    record_episodes(agent, FAKE, tmp_path, replace(SMALL, shard_index=1, num_shards=2))
    assert sorted(read_episodes(tmp_path)) == [1, 3, 5, 7]
    record_episodes(agent, FAKE, tmp_path, replace(SMALL, max_episodes=9))
    assert sorted(read_episodes(tmp_path)) == list(range(9))


def test_each_shard_has_its_part_of_the_step_budget(tmp_path) -> None:
    agent = make_agent(FAKE)
    config = replace(SMALL, max_episodes=100, max_steps=121, num_shards=2)
    for part in (61, 60):
        for _ in range(2):
            shard = replace(config, shard_index=61 - part)
            record_episodes(agent, FAKE, tmp_path, shard)
            lengths = RolloutDataset(tmp_path).episodes.set_index("episode_id")["length"]
            rows = lengths[lengths.index % 2 == 61 - part].sum()
            assert part <= rows < part + SMALL.num_envs


def test_shard_that_does_not_exist_is_refused_and_writes_nothing(tmp_path) -> None:
    for change, complaint in (
        ({"shard_index": 2, "num_shards": 2}, "--shard_index 2: expected 0 to 1"),
        ({"shard_index": 1}, "--shard_index 1: expected 0 to 0"),
        ({"shard_index": -1, "num_shards": 2}, "--shard_index -1: below 0"),
        ({"num_shards": 0}, "--num_shards 0: at least 1"),
        ({"num_shards": 9}, "--num_shards 9: more than --max_episodes 8"),
        ({"num_shards": 5, "max_steps": 4}, "--num_shards 5: more than --max_steps 4"),
    ):
        with pytest.raises(UserError, match=complaint):
            record_episodes(make_agent(FAKE), FAKE, tmp_path / "data", replace(SMALL, **change))
    assert not (tmp_path / "data").exists()


def test_job_array_names_the_shard_where_no_flag_does() -> None:
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert apply_slurm_defaults(SMALL, {}) == SMALL
    assert apply_slurm_defaults(SMALL, array) == replace(SMALL, shard_index=3, num_shards=4)
    named = replace(SMALL, shard_index=0)
    assert apply_slurm_defaults(named, array) == replace(named, num_shards=4)
    named = replace(SMALL, shard_index=0, num_shards=1)
    assert apply_slurm_defaults(named, {"SLURM_ARRAY_TASK_ID": "x"}) == named
    with pytest.raises(UserError, match=r"SLURM_ARRAY_TASK_ID=x: .*--shard_index"):
        apply_slurm_defaults(SMALL, {"SLURM_ARRAY_TASK_ID": "x"})


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (("8", "8"), "--shard_index 8: expected 0 to 7"),
        (("1", "9"), "--num_shards 9: more than --max_episodes 8"),
        (("0", "0"), "--num_shards 0: at least 1"),
    ],
)
def test_a_job_array_that_does_not_fit_is_named(array: tuple[str, str], complaint: str) -> None:
    """Nobody typed the flags that the error is about."""
    task, count = array
    environ = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": count}
    with pytest.raises(UserError) as error:
        apply_slurm_defaults(SMALL, environ)
    assert str(error.value).startswith(complaint)
    for part in (f"SLURM_ARRAY_TASK_ID={task}", f"SLURM_ARRAY_TASK_COUNT={count}", "record all"):
        assert part in str(error.value)
    with pytest.raises(UserError) as typed:
        apply_slurm_defaults(replace(SMALL, shard_index=9, num_shards=2), environ)
    assert "SLURM" not in str(typed.value)


def leave_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=num_bytes)
    monkeypatch.setattr("experiment.files.shutil.disk_usage", lambda path: usage)


def test_a_disk_too_small_for_the_step_budget_is_refused(tmp_path, monkeypatch, capsys) -> None:
    agent, config = make_agent(FAKE), replace(SMALL, max_steps=100)
    row_bytes = 64 * 64 * 3 + 4 * (16 + 15 + 4) + 1
    needed = math.ceil((100 + 4) * row_bytes / EXPECTED_COMPRESSION)
    leave_free(monkeypatch, needed - 1)
    with pytest.raises(UserError, match=r"--data_dir: .* are needed"):
        record_episodes(agent, FAKE, tmp_path / "data", config)
    assert not (tmp_path / "data").exists()
    leave_free(monkeypatch, needed)
    record_episodes(agent, FAKE, tmp_path / "data", config)
    assert capsys.readouterr().out.count("recording about 104 rows, about 0.00 GB in") == 2


def test_rows_to_come_are_estimated_from_what_is_known() -> None:
    limited, unlimited = replace(FAKE, time_limit=50), replace(FAKE, time_limit=None)
    recorded = pd.DataFrame({"length": [7, 8] * 5 + [1], "cut": [False] * 10 + [True]})
    none, few = recorded.head(0), recorded.tail(9)
    budget = replace(SMALL, max_steps=30, num_envs=4)
    assert estimate_rows(SMALL, 6, none, unlimited) is None
    assert estimate_rows(SMALL, 6, none, limited) == RowEstimate(300, is_loose=True)
    assert estimate_rows(SMALL, 6, few, limited) == RowEstimate(300, is_loose=True)
    assert estimate_rows(SMALL, 6, recorded, limited) == RowEstimate(45, is_loose=False)
    assert estimate_rows(budget, 6, recorded, unlimited) == RowEstimate(34, is_loose=False)
    assert estimate_rows(budget, 1, recorded, unlimited) == RowEstimate(8, is_loose=False)


def test_a_loose_bound_is_told_and_does_not_refuse(tmp_path, monkeypatch, capsys) -> None:
    leave_free(monkeypatch, 0)
    record_episodes(make_agent(FAKE), FAKE, tmp_path, replace(SMALL, max_episodes=3))
    assert f"recording at most {3 * (FAKE.time_limit or 0)} rows" in capsys.readouterr().out


def test_shards_have_the_size_asked_for(tmp_path) -> None:
    config = replace(SMALL, max_episodes=12, shard_size=1)
    summary = record_episodes(make_agent(FAKE), FAKE, tmp_path, config)
    dataset = RolloutDataset(tmp_path)
    row_bytes = dataset.metadata.row_bytes
    shards = dataset.episodes["shard"].to_numpy()
    rows = [len(dataset.read_episode(index)) for index in range(dataset.num_episodes)]
    sizes = np.bincount(shards, weights=rows) * row_bytes
    assert summary.rows * row_bytes > 2e6
    assert (sizes[:-1] >= 1e6).all()
    assert (sizes < 1e6 + (FAKE.time_limit or 0) * row_bytes).all()


@pytest.mark.parametrize(
    ("change", "flag"),
    [({"seed": 4}, "--seed 4"), ({"greedy": True}, "--greedy True"), ({"start_level": 1}, "level")],
)
def test_dataset_of_another_recording_is_not_continued(tmp_path, change, flag) -> None:
    agent = make_agent(FAKE)
    record_episodes(agent, FAKE, tmp_path, SMALL)
    with pytest.raises(UserError, match=flag):
        record_episodes(agent, FAKE, tmp_path, replace(SMALL, max_episodes=9, **change))


def test_dataset_of_another_agent_is_not_continued(tmp_path) -> None:
    record_episodes(make_agent(FAKE), FAKE, tmp_path, SMALL)
    with pytest.raises(UserError, match="agent"):
        record_episodes(make_agent(FAKE, seed=1), FAKE, tmp_path, replace(SMALL, max_episodes=9))


def test_sequential_levels_are_played_once_each(tmp_path, capsys) -> None:
    config = replace(
        SMALL, max_episodes=20, sequential_levels=True, start_level=10**9, num_levels=12
    )
    record_episodes(make_agent(FAKE), FAKE, tmp_path, config)
    levels = [rollout.info.level_seed for rollout in read_episodes(tmp_path).values()]
    assert sorted(levels) == list(range(10**9, 10**9 + 12))
    assert "only 12 levels" in capsys.readouterr().out


def test_drawn_levels_stay_in_their_range() -> None:
    config = replace(SMALL, start_level=100, num_levels=50)
    levels = level_seeds(config, np.arange(2000))
    assert levels.min() == 100
    assert levels.max() == 149
    unlimited = level_seeds(SMALL, np.arange(2000))
    assert len(set(unlimited)) == 2000
    assert unlimited.max() < 10**9


@pytest.mark.parametrize("game", ["coinrun", "starpilot"])
def test_noise_changes_the_behaviour_and_not_the_recorded_logits(
    game: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(FAKE)
    config = replace(SMALL, max_episodes=3, action_noise=True)
    behaviour = config.behaviour_in(replace(FAKE, name=game))
    monkeypatch.setattr(RecordingConfig, "behaviour_in", lambda *_: behaviour)
    for rollout in play(FAKE, config).values():
        assert_replays(rollout, agent)
        for t, logits in enumerate(rollout.action_logits):
            noised = [min(max(0.7 * logit, -1.8), 0.8) for logit in logits.tolist()]
            if game == "coinrun":
                noised[9:] = [-3.0] * 6
                noised[7] = 0.1
            log_normaliser = math.log(sum(math.exp(logit) for logit in noised))
            expected = noised[rollout.action[t]] - log_normaliser
            assert rollout.behaviour_log_prob[t] == pytest.approx(expected, abs=1e-5)


def test_every_level_comes_once_before_any_comes_again() -> None:
    config = replace(SMALL, start_level=100, num_levels=50)
    levels = level_seeds(config, np.arange(150)).reshape(3, 50)
    for once in levels:
        assert sorted(once) == list(range(100, 150))
    assert len({tuple(once) for once in levels}) == 3
    assert list(level_seeds(replace(config, seed=4), np.arange(50))) != list(levels[0])


def test_the_parameters_of_the_noise_are_recorded(tmp_path: Path) -> None:
    config = replace(SMALL, max_episodes=2, action_noise=True)
    record_episodes(make_agent(FAKE), FAKE, tmp_path, config)
    noise = read_metadata(tmp_path).provenance["config"]["behaviour"]["noise"]
    assert noise == {"scale": 0.7, "lowest": -1.8, "highest": 0.8, "fixed_logits": []}


def test_noise_is_refused_where_its_actions_do_not_exist() -> None:
    few_actions = replace(FAKE, name="coinrun", num_actions=5)
    with pytest.raises(UserError, match="made for 15 actions, this environment has 5"):
        replace(SMALL, action_noise=True).behaviour_in(few_actions)


def test_clean_behaviour_is_the_softmax_of_the_logits() -> None:
    for rollout in play(FAKE, replace(SMALL, max_episodes=3)).values():
        log_probs = torch.log_softmax(torch.as_tensor(rollout.action_logits), dim=1).numpy()
        taken = np.take_along_axis(log_probs, rollout.action[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(rollout.behaviour_log_prob, taken, atol=1e-5)


def test_greedy_takes_the_best_action_with_certainty() -> None:
    for rollout in play(FAKE, replace(SMALL, greedy=True)).values():
        np.testing.assert_array_equal(rollout.action, rollout.action_logits.argmax(axis=1))
        assert not rollout.behaviour_log_prob.any()


def test_actions_are_drawn_from_the_policy() -> None:
    """Many episodes that see the same frame act with the policy's frequencies."""
    player = Player(make_agent(FAKE).policy, BehaviourConfig())
    num_episodes = 20_000
    logits = np.linspace(-2, 2, 15)
    log_probs = np.tile(logits - np.log(np.exp(logits).sum()), (num_episodes, 1))
    rows = np.zeros(num_episodes, np.int64)
    actions = player._choose(log_probs, np.arange(num_episodes), rows)
    expected = num_episodes * np.exp(log_probs[0])
    deviation = (np.bincount(actions, minlength=15) - expected) / np.sqrt(expected)
    assert np.abs(deviation).max() < 4.5
    assert (actions != player._choose(log_probs, np.arange(num_episodes), rows + 1)).any()


def test_agent_of_another_environment_is_refused() -> None:
    agent = make_agent(FAKE)
    assert environment_of_agent(agent) == FAKE
    assert environment_of_agent(agent, "fake") == FAKE
    with pytest.raises(UserError, match=r"--env_name coinrun: .* belongs to fake"):
        environment_of_agent(agent, "coinrun")


def test_agent_that_does_not_fit_the_frames_or_actions_is_refused() -> None:
    with pytest.raises(UserError, match="frames"):
        environment_of_agent(make_agent(None, obs_shape=(32, 32, 3)), "coinrun")
    with pytest.raises(UserError, match="number of actions"):
        environment_of_agent(make_agent(None, num_actions=5), "coinrun")


def test_distribution_mode_of_the_flag_wins_and_that_of_the_agent_is_the_default() -> None:
    hard = environment_spec(EnvironmentConfig(distribution_mode="hard"))
    assert environment_of_agent(make_agent(hard)) == hard
    assert environment_of_agent(make_agent(hard), distribution_mode="easy") == COINRUN
    imported = environment_of_agent(make_agent(None), "coinrun", "hard")
    assert imported == hard
    options = {"distribution_mode": "hard", "use_backgrounds": True}
    imported = environment_of_agent(make_agent(None), options=options)
    assert imported.options["use_backgrounds"]
    assert imported.options["distribution_mode"] == "hard"
    imported = environment_of_agent(make_agent(None), "coinrun", "easy", options)
    assert imported.options["distribution_mode"] == "easy"


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"max_episodes": 0}, "--max_episodes"),
        ({"num_envs": 0}, "--num_envs"),
        ({"shard_size": 0}, "--shard_size"),
    ],
)
def test_counts_below_one_are_refused(change, flag) -> None:
    with pytest.raises(UserError, match=flag):
        replace(SMALL, **change)


def test_the_best_of_clipped_logits_is_not_asked_for() -> None:
    """The two most probable actions have one logit after the noise: the first would be taken."""
    noised = ACTION_NOISE["coinrun"].apply(np.array([2.0, 0, 0, 0, 0, 0, 0, 0, 9, *[0] * 6]))
    assert noised[0] == noised[8] == noised.max()
    with pytest.raises(UserError, match=r"--greedy: .* without --action_noise"):
        replace(SMALL, greedy=True, action_noise=True)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    for variable in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("sys.argv", ["record.py", *arguments])
    record.main()


def test_command_records_the_preset_and_reports(tmp_path, monkeypatch) -> None:
    agent = make_agent(FAKE)
    save_agent(
        tmp_path / "agent", require_recurrent_policy(agent, "--model_file"), FAKE, {}, env_steps=0
    )
    monkeypatch.chdir(tmp_path)
    run_command(
        monkeypatch,
        *("--model_file=agent", "--env-name", "fake", "--interpreting_params_name", "tiny"),
        *("--device", "cpu", "--seed", "5", "--report", "report.json", "--num_checkpoints", "200"),
    )
    episodes = read_episodes(tmp_path / "data")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["outputs"] == ["data"]
    assert report["metrics"]["episodes"] == len(episodes) == 6
    assert report["metrics"]["rows"] == sum(map(len, episodes.values()))
    assert_replays(episodes[5], load_agent(tmp_path / "agent"))


def test_command_in_a_job_array_records_its_part(tmp_path, monkeypatch, capsys) -> None:
    agent = make_agent(FAKE)
    save_agent(
        tmp_path / "agent", require_recurrent_policy(agent, "--model_file"), FAKE, {}, env_steps=0
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    arguments = ("--model_file", "agent", "--interpreting_params_name", "tiny", "--device", "cpu")
    monkeypatch.setattr("sys.argv", ["record.py", *arguments])
    record.main()
    assert "recording shard 1 of 3" in capsys.readouterr().out
    assert sorted(read_episodes(tmp_path / "data")) == [1, 4]


def test_command_refuses_what_it_cannot_do(tmp_path, monkeypatch) -> None:
    agent = make_agent(FAKE)
    save_agent(
        tmp_path / "agent", require_recurrent_policy(agent, "--model_file"), FAKE, {}, env_steps=0
    )
    monkeypatch.chdir(tmp_path)
    for arguments, complaint in (
        (["--model_file", "absent"], "absent"),
        ([], "--model_file"),
        (["--model_file", "agent", "--env_name", "maze"], "--env_name maze"),
        (["--model_file", "agent", "--max_episodes", "many"], "max-episodes|max_episodes"),
        (["--model_file", "agent", "--max_episodes", "0"], "--max_episodes 0"),
        (["--model_file", "agent", "--start_level", "-4"], "--start_level -4"),
        (["--model_file", "agent", "--max_hours", "0"], "--max_hours 0"),
        (["--model_file", "agent", "--num_threads", "-1"], "--num_threads -1"),
        (["--model_file", "agent", "--shard_index", "1"], "--shard_index 1"),
        (["--model_file", "agent", "--interpreting_params_name", "nonsense"], "nonsense"),
        (["--model_file", "agent", "--param_name", "nonsense"], "unknown preset 'nonsense'"),
        (["--model_file", "agent", "--data_dir", "agent/agent.json/x"], "--data_dir"),
    ):
        with pytest.raises(UserError, match=complaint):
            run_command(monkeypatch, *arguments)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "agent.json",
        "weights.safetensors",
    ]


@pytest.mark.medium
def test_killed_recording_is_continued(tmp_path) -> None:
    agent = make_agent(FAKE)
    save_agent(
        tmp_path / "agent", require_recurrent_policy(agent, "--model_file"), FAKE, {}, env_steps=0
    )
    command = [sys.executable, record.__file__, "--model_file", "agent", "--seed", "3"]
    process = subprocess.Popen([*command, "--max_episodes", "100000"], cwd=tmp_path)
    while not (tmp_path / "data" / "dataset.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    process.kill()
    process.wait()
    record_episodes(load_agent(tmp_path / "agent"), FAKE, tmp_path / "data", SMALL)
    continued = read_episodes(tmp_path / "data")
    assert set(continued) >= set(range(8))
    for episode_id, rollout in play(FAKE, SMALL).items():
        assert_same_rollout(rollout, continued[episode_id])
