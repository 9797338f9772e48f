"""Recordings that are killed again and again lose nothing but their open shard."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.checkpoint import save_agent
from agents.networks import NetworkConfig, RecurrentPolicy
from environments.factory import EnvironmentConfig, environment_spec
from environments.game_trace import GameTrace
from rollouts.description import METADATA_FILE
from rollouts.sealing import list_shards
from rollouts.store import RolloutDataset, verify_dataset
from rollouts.types import Rollout

NUM_KILLS = int(os.environ.get("NUM_KILLS", "30"))
EPISODES_PER_KILL = 16
FAR_MORE_EPISODES = 640 * NUM_KILLS
"""Than are recorded before the last kill."""
MOST_EPISODES_BEFORE_A_KILL = 24
"""A shard is sealed after about 8."""
LONGEST_DELAY = 0.1
"""Seconds from the last episode awaited to the kill."""
SHARD_BYTES = 10**6
LOST_ROWS = SHARD_BYTES / 12_000 + 24
"""Rows of a shard, and of an episode that goes beyond its size."""
NUM_COINRUN_KILLS = 5
STATE_EVERY = 20
"""Rows of CoinRun between two saved states: several in an episode."""
COINRUN_AGENT = Path(__file__).parents[1] / "assets" / "agents" / "coinrun-easy-half"
COINRUN = ("--model_file", COINRUN_AGENT, "--with_state", "--shard_size", 4)
"""A shard is sealed after about 5 episodes."""


class Recorders:
    """Starts, kills and awaits processes of `record.py` that append to one dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._num_started = 0
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("record_in_forks.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, *flags: object, data: str = "data") -> "Recorder":
        self._num_started += 1
        log = self.folder / f"{self._num_started}.log"
        log.touch()
        common = ("--model_file", self.folder / "agent", "--data_dir", self.folder / data)
        settings = ("--seed", 5, "--shard_size", 1, "--num_envs", 4, "--num_threads", 1)
        return Recorder(self._ask("start", str(log), *map(str, (*common, *settings, *flags))), log)

    def wait(self, recorder: "Recorder") -> int:
        return self._ask("wait", recorder.process_id)

    def kill_at_random(
        self,
        recorder: "Recorder",
        rng: np.random.Generator,
        most_episodes: int = MOST_EPISODES_BEFORE_A_KILL,
    ) -> None:
        """Kill after a random number of episodes and seconds: how fast it is does not matter."""
        num_episodes, delay = rng.integers(most_episodes), rng.random()
        while recorder.num_lines() < num_episodes:
            time.sleep(0.001)
        time.sleep(delay * LONGEST_DELAY)
        os.kill(recorder.process_id, signal.SIGKILL)
        assert self.wait(recorder) == -signal.SIGKILL, "it was done before it was killed"

    def close(self) -> None:
        self._server.communicate(timeout=60)

    def _ask(self, *command: object) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


class Recorder:
    def __init__(self, process_id: int, log: Path) -> None:
        self.process_id = process_id
        self._log = log

    def num_lines(self) -> int:
        return self._log.read_text().count("\n")

    def episodes(self) -> tuple[set[int], set[int]]:
        """Ids of the episodes it wrote, before its last seal and since."""
        lines = self._log.read_text().splitlines()
        last = max((i for i, line in enumerate(lines) if line == "seal"), default=0)
        before, since = (
            {int(line) for line in part if line != "seal"} for part in (lines[:last], lines[last:])
        )
        return before, since


@pytest.fixture
def recorders(tmp_path: Path) -> Iterator[Recorders]:
    torch.manual_seed(0)
    spec = environment_spec(EnvironmentConfig(env_name="fake"))
    policy = RecurrentPolicy(NetworkConfig(width=0.25, num_features=16))
    save_agent(tmp_path / "agent", policy, spec, {}, env_steps=0)
    started = Recorders(tmp_path)
    yield started
    started.close()


class Losses:
    """Checks a dataset after each kill and counts what was lost."""

    def __init__(self, data: Path) -> None:
        self.lost_episodes: list[int] = []
        self._data = data
        self._sealed: set[int] = set()

    def check(self, killed: Recorder) -> None:
        before_seal, since_seal = killed.episodes()
        sealed = sealed_episodes(self._data)
        assert self._sealed <= sealed, "an episode is gone that was sealed"
        assert before_seal <= sealed, "more than the open shard is lost"
        self.lost_episodes.append(len(since_seal - sealed))
        # The shortest of these episodes has one row.
        assert self.lost_episodes[-1] <= LOST_ROWS
        self._sealed = sealed

    def report(self) -> None:
        lost = np.array(self.lost_episodes)
        print(
            f"{len(lost)} kills, {len(list_shards(self._data))} shards, none unreadable; "
            f"episodes lost per kill: mean {lost.mean():.1f}, most {lost.max()}; "
            f"{np.count_nonzero(lost)} kills lost any; {len(self._sealed)} were sealed by then"
        )


@contextmanager
def paused(recorder: Recorder) -> Iterator[None]:
    os.kill(recorder.process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(recorder.process_id, signal.SIGCONT)


def sealed_episodes(data: Path) -> set[int]:
    """Ids of a dataset that reads well; it may be that nothing has been sealed yet."""
    if not (data / METADATA_FILE).exists() or not list_shards(data):
        return set()
    assert verify_dataset(data) == []
    return set(RolloutDataset(data).episodes["episode_id"].tolist())


def assert_same_episodes(found: Path, expected: Path) -> None:
    one, other = RolloutDataset(found), RolloutDataset(expected)
    assert set(one.episodes["episode_id"]) == set(other.episodes["episode_id"])
    for index, episode_id in enumerate(other.episodes["episode_id"].to_list()):
        left, right = one.read_episode(one.index_of(episode_id)), other.read_episode(index)
        assert_same_rollout(left, right)


def assert_same_rollout(left: Rollout, right: Rollout) -> None:
    for name in ("obs", "action", "reward", "done"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    # The network's last bits depend on the size of the batch.
    for name in ("agent_hidden", "action_logits", "value", "behaviour_log_prob"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), atol=1e-5)
    assert (left.info.level_seed, left.info.cut) == (right.info.level_seed, right.info.cut)
    assert (left.game is None) == (right.game is None)
    for field in fields(GameTrace) if left.game else ():
        one, other = getattr(left.game, field.name), getattr(right.game, field.name)
        np.testing.assert_array_equal(one, other, err_msg=field.name)


def verify_command(data: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "rollouts", "verify", str(data)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(60 * NUM_KILLS)
def test_a_recording_survives_kills_at_random_moments(recorders: Recorders) -> None:
    rng = np.random.default_rng(0)
    num_episodes = ("--max_episodes", EPISODES_PER_KILL * NUM_KILLS)
    losses = Losses(recorders.data)
    for _ in range(NUM_KILLS):
        recorder = recorders.start(*num_episodes)
        recorders.kill_at_random(recorder, rng)
        losses.check(recorder)
        assert len(list(recorders.data.glob("*.partial"))) <= 1
    losses.report()
    assert recorders.wait(recorders.start(*num_episodes)) == 0
    assert verify_command(recorders.data).returncode == 0
    assert not list(recorders.data.glob("*.partial"))
    never_killed = recorders.start(*num_episodes, "--num_envs", 16, data="never_killed")
    assert recorders.wait(never_killed) == 0
    assert_same_episodes(recorders.data, recorders.folder / "never_killed")


@pytest.mark.slow
@pytest.mark.timeout(60 * NUM_KILLS)
def test_two_shards_survive_kills_while_the_other_goes_on(recorders: Recorders) -> None:
    rng = np.random.default_rng(1)
    losses = Losses(recorders.data)
    running = [recorders.start(*shard(index, FAR_MORE_EPISODES)) for index in range(2)]
    for _ in range(NUM_KILLS):
        index = int(rng.integers(2))
        recorders.kill_at_random(running[index], rng)
        # It records on through every kill; what it would add during the check makes checks slow.
        with paused(running[1 - index]):
            losses.check(running[index])
        running[index] = recorders.start(*shard(index, FAR_MORE_EPISODES))
    losses.report()
    for recorder in running:
        recorders.kill_at_random(recorder, rng)
    # How far the shard came that was not being killed depends on the machine.
    num_episodes = max(sealed_episodes(recorders.data)) + EPISODES_PER_KILL
    running = [recorders.start(*shard(index, num_episodes)) for index in range(2)]
    assert [recorders.wait(recorder) for recorder in running] == [0, 0]
    assert verify_command(recorders.data).returncode == 0
    flags_of_one = ("--max_episodes", num_episodes, "--num_envs", 16)
    assert recorders.wait(recorders.start(*flags_of_one, data="never_killed")) == 0
    assert_same_episodes(recorders.data, recorders.folder / "never_killed")


def shard(index: int, num_episodes: int) -> tuple[object, ...]:
    return ("--max_episodes", num_episodes, "--num_shards", 2, "--shard_index", index)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_game_and_saved_states_of_coinrun_survive_kills_and_can_be_branched(
    recorders: Recorders,
) -> None:
    rng = np.random.default_rng(2)
    saving = (*COINRUN, "--save_state_every", STATE_EVERY)
    losses = Losses(recorders.data)
    for _ in range(NUM_COINRUN_KILLS):
        recorder = recorders.start(*saving, "--max_episodes", FAR_MORE_EPISODES)
        recorders.kill_at_random(recorder, rng, most_episodes=12)
        losses.check(recorder)
        assert len(list(recorders.data.glob("*.partial"))) <= 1
    losses.report()
    survivors = sealed_episodes(recorders.data)
    assert survivors
    all_episodes = (*saving, "--max_episodes", max(survivors) + 4)
    assert recorders.wait(recorders.start(*all_episodes)) == 0
    assert verify_command(recorders.data).returncode == 0
    assert not list(recorders.data.glob("*.partial"))
    never_killed = recorders.start(*all_episodes, "--num_envs", 16, data="never_killed")
    assert recorders.wait(never_killed) == 0
    assert_same_episodes(recorders.data, recorders.folder / "never_killed")
    assert_saved_states_lead_on(recorders, survivors)


def assert_saved_states_lead_on(recorders: Recorders, survivors: set[int]) -> None:
    """The longest episode that a kill spared and the one that was recorded last happen again."""
    dataset = RolloutDataset(recorders.data)
    table = dataset.episodes[["episode_id", "length"]].to_numpy().tolist()
    lengths = dict(table)
    spared, last = max(survivors, key=lengths.__getitem__), table[-1][0]
    points = {episode_id: lengths[episode_id] // 2 for episode_id in (spared, last)}
    assert points[spared] > STATE_EVERY, "it is branched without a saved state"
    flags = ("--branch_from", recorders.data, "--branch_actions", "recorded")
    where = ("--episode", *points, "--step", *points.values())
    assert recorders.wait(recorders.start(*COINRUN, *flags, *where, data="branches")) == 0
    branches = RolloutDataset(recorders.folder / "branches")
    assert branches.num_episodes == len(points) == 2
    for index in range(branches.num_episodes):
        branch = branches.read_episode(index)
        source = dataset.read_episode(dataset.index_of(branch.info.source_episode_id))
        assert branch.info.source_row == points[branch.info.source_episode_id]
        assert_continues(branch, source)


def assert_continues(branch: Rollout, source: Rollout) -> None:
    """Every row of the branch is the source's, bit for bit, and none is missing."""
    row = branch.info.source_row
    for name in ("obs", "action", "reward", "done", "behaviour_log_prob"):
        expected = getattr(source, name)[row:]
        np.testing.assert_array_equal(getattr(branch, name), expected, err_msg=name)
    assert branch.game is not None
    assert source.game is not None
    np.testing.assert_array_equal(branch.game.variables, source.game.variables[row:])
