"""record.py's counterfactuals, interventions and videos, as they are typed."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import record
from agents.checkpoint import load_agent, save_agent
from agents.networks import NetworkConfig, RecurrentPolicy
from environments.factory import EnvironmentConfig, environment_spec
from experiment.errors import run_entry_point
from experiment.files import read_json
from projections.descriptions import interventions_from_descriptions
from projections.hidden import HiddenProjection
from projections.interventions import RULES
from rollouts.episode_videos import write_episode_videos
from rollouts.store import RolloutDataset
from rollouts.types import Rollout
from rollouts.video import read_video

FAKE = environment_spec(EnvironmentConfig(env_name="fake"))
HIDDEN_DIM = 16
SWAP = "--projection projection --direction_type pca --swap_directions_from 0 1 "
SWAP += "--swap_directions_to 2 None"


def type_command(monkeypatch: pytest.MonkeyPatch, command: str) -> int:
    monkeypatch.setattr(sys, "argv", ["record.py", *command.split(), "--device", "cpu"])
    with pytest.raises(SystemExit) as exit_request:
        run_entry_point(record.main)
    assert isinstance(exit_request.value.code, int)
    return exit_request.value.code


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An agent, its rollouts and a projection, in the current folder."""
    torch.manual_seed(0)
    policy = RecurrentPolicy(NetworkConfig(width=0.25, num_features=HIDDEN_DIM))
    policy.policy_head.weight.data *= 100
    save_agent(tmp_path / "agent", policy, FAKE, {}, 0)
    states = np.random.default_rng(0).normal(size=(100, HIDDEN_DIM))
    HiddenProjection("pca", 4).fit(states).save(tmp_path / "projection")
    monkeypatch.chdir(tmp_path)
    command = "--model_file agent --data_dir data --max_episodes 4 --num_envs 2 --seed 4"
    assert type_command(monkeypatch, command) == 0
    return tmp_path


def read_episodes(folder: str) -> dict[int, Rollout]:
    dataset = RolloutDataset(folder)
    rollouts = [dataset.read_episode(index) for index in range(dataset.num_episodes)]
    return {rollout.info.episode_id: rollout for rollout in rollouts}


def test_branches_of_two_points_with_the_dataset_s_own_agent(workplace, monkeypatch) -> None:
    command = "--branch_from data --episode 1 3 --step 2 0 --branches 2 --report report.json"
    assert type_command(monkeypatch, command) == 0
    branches = read_episodes("branches")
    sources = [(b.info.source_episode_id, b.info.source_row) for _, b in sorted(branches.items())]
    assert sources == [(1, 2), (3, 0), (1, 2), (3, 0)]
    assert read_json("report.json")["metrics"]["episodes"] == 4
    # Nothing is left to do, and more may be asked for.
    assert type_command(monkeypatch, command) == 0
    assert type_command(monkeypatch, f"{command} --branches 3") == 0
    assert sorted(read_episodes("branches")) == list(range(6))


def test_one_row_of_many_episodes_and_many_rows_of_one(workplace, monkeypatch) -> None:
    assert type_command(monkeypatch, "--branch_from data --episode 0 2 --step 1 --logdir a") == 0
    assert type_command(monkeypatch, "--branch_from data --episode 2 --step 0 1 --logdir b") == 0
    for folder, expected in (("a", {(0, 1), (2, 1)}), ("b", {(2, 0), (2, 1)})):
        table = RolloutDataset(f"{folder}/branches").episodes
        assert set(zip(table["source_episode_id"], table["source_row"], strict=True)) == expected


def test_a_task_of_a_job_array_records_all_its_branches(workplace, monkeypatch, capsys) -> None:
    """A part of the episodes is what an array is for; branches are each task's own."""
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "8")
    command = "--branch_from data --episode 1 --step 2 --branches 3"
    assert type_command(monkeypatch, command) == 0
    assert "recording all these branches" in capsys.readouterr().out
    assert sorted(read_episodes("branches")) == [0, 1, 2]
    shard = f"{command} --shard_index 1 --num_shards 2 --logdir shard"
    assert type_command(monkeypatch, shard) == 0
    assert sorted(read_episodes("shard/branches")) == [1]


def test_time_that_is_over_at_once_leaves_one_step_of_each_branch(workplace, monkeypatch) -> None:
    command = "--branch_from data --episode 1 --step 2 --branches 3 --max_hours 1e-9"
    assert type_command(monkeypatch, command) == 0
    assert [len(branch) for branch in read_episodes("branches").values()] == [1, 1, 1]


def assert_swapped(intervened: Rollout, twin: Rollout, policy: RecurrentPolicy) -> None:
    """The description, applied by hand to what the agent proposes, gives the recorded states."""
    swap = interventions_from_descriptions(intervened.info.interventions)
    assert swap is not None
    previous = torch.as_tensor(intervened.info.agent_initial_state)[None]
    for t in range(len(intervened)):
        images = torch.as_tensor(intervened.obs[t : t + 1]).permute(0, 3, 1, 2) / 255
        proposed = policy.advance(policy.embed(images), previous)
        expected = swap(previous, proposed, t)
        assert (expected - proposed).abs().max() > 1e-4
        np.testing.assert_allclose(intervened.agent_hidden[t], expected[0], atol=1e-5)
        previous = expected
    assert not twin.info.interventions
    assert twin.info.twin_of == -1
    assert intervened.info.twin_of == twin.info.episode_id == intervened.info.episode_id
    np.testing.assert_array_equal(intervened.obs[0], twin.obs[0])
    assert (intervened.agent_hidden[0] != twin.agent_hidden[0]).any()


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("--branch_from data --episode 1 --step 2 --branches 3", "branches"),
        ("--model_file agent --max_episodes 4 --num_envs 2 --seed 4 --data_dir swapped", "swapped"),
    ],
)
def test_intervened_episodes_lie_beside_their_twins(
    workplace, monkeypatch, command: str, folder: str
) -> None:
    assert type_command(monkeypatch, f"{command} {SWAP} --report report.json") == 0
    policy = load_agent("agent").policy
    assert isinstance(policy, RecurrentPolicy)
    intervened, twins = read_episodes(folder), read_episodes(f"{folder}_twin")
    assert sorted(intervened) == sorted(twins)
    for episode_id, rollout in intervened.items():
        assert_swapped(rollout, twins[episode_id], policy)
    assert read_json("report.json")["outputs"] == [folder, f"{folder}_twin"]
    stored = RolloutDataset(folder).metadata.provenance["config"]["twin_dataset"]
    assert stored == f"{folder}_twin"


EVERY_RULE = "--projection projection --direction_type pca --swap_directions_from 0 "
EVERY_RULE += (
    "--swap_directions_to 2 --scale_directions 1 --scale_factors 0.5 --add_directions 2 3 "
)
EVERY_RULE += "--add_amounts 0.5 -0.5 --add_once --clamp_directions 4 --clamp_values 1 "
EVERY_RULE += "--intervention_steps 1 to end"


def test_every_rule_acts_in_order_at_the_chosen_rows_of_a_branch(workplace, monkeypatch) -> None:
    command = "--branch_from data --episode 1 --step 2 --branches 3 --report report.json"
    assert type_command(monkeypatch, f"{command} {EVERY_RULE}") == 0
    policy = load_agent("agent").policy
    assert isinstance(policy, RecurrentPolicy)
    for rollout in read_episodes("branches").values():
        assert [link["kind"] for link in rollout.info.interventions] == list(RULES)
        chain = interventions_from_descriptions(rollout.info.interventions)
        assert chain is not None
        state = torch.as_tensor(rollout.info.agent_initial_state)[None]
        for t in range(len(rollout)):
            images = torch.as_tensor(rollout.obs[t : t + 1]).permute(0, 3, 1, 2) / 255
            proposed = policy.advance(policy.embed(images), state)
            state = chain(state, proposed, t)
            assert torch.equal(state, proposed) == (t == 0)
            np.testing.assert_allclose(rollout.agent_hidden[t], state[0], atol=1e-5)
    strength = read_json("branches/intervention.json")
    assert read_json("report.json")["metrics"]["intervention"] == strength
    lengths = RolloutDataset("branches").episodes["length"].to_numpy()
    assert strength["share_of_rows_changed"] == pytest.approx(1 - len(lengths) / lengths.sum())


def test_a_control_is_recorded_beside_the_same_twin(workplace, monkeypatch) -> None:
    command = f"--branch_from data --episode 1 --step 2 --branches 3 {SWAP}"
    assert type_command(monkeypatch, f"{command} --data_dir tested") == 0
    control = f"{command} --intervention_control random_like_states --control_norm_of tested"
    assert type_command(monkeypatch, f"{control} --data_dir control") == 0
    assert RolloutDataset("control_twin").hash == RolloutDataset("tested_twin").hash
    norms = [
        read_json(f"{name}/intervention.json")["mean_change_norm"] for name in ("tested", "control")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_the_twin_of_an_ordinary_recording_is_the_ordinary_recording(
    workplace, monkeypatch
) -> None:
    command = "--model_file agent --max_episodes 4 --num_envs 2 --seed 4 --data_dir swapped"
    assert type_command(monkeypatch, f"{command} {SWAP}") == 0
    assert RolloutDataset("swapped_twin").hash == RolloutDataset("data").hash


def test_an_intervened_recording_is_not_mixed_with_another(workplace, monkeypatch, capsys) -> None:
    command = "--model_file agent --max_episodes 5 --seed 4 --data_dir data"
    assert type_command(monkeypatch, f"{command} {SWAP}") == 2
    assert "--swap_directions_from/to" in capsys.readouterr().err
    assert RolloutDataset("data").num_episodes == 4
    assert not Path("data_twin").exists()


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("--branch_from absent --episode 0 --step 0", "absent: not a rollout dataset"),
        ("--branch_from data --episode 0", "--branch_from: needs --episode and --step"),
        ("--branch_from data --episode 9 --step 0", "--episode 9: --branch_from data has no such"),
        ("--branch_from data --episode 0 --step 99", "--step 99: episode 0 has rows 0 to"),
        ("--branch_from data --episode 0 --step 0 --env_name maze", "--env_name maze"),
        ("--branch_from data --episode 0 --step 0 --distribution_mode hard", "hard"),
        ("--branch_from data --episode 0 --step 0 --model_file other", "--model_file other"),
        ("--branch_from data --episode 0 --step 0 --force_action fly", "--force_action fly"),
        ("--branch_from data --episode 0 --step 0 --data_dir data", "--data_dir data: is the"),
        ("--branch_from data --episode 0 --step 0 --branch_actions x", "branch-actions"),
        ("--branch_from data --episode 0 --step 0 --swap_directions_from 1", "has 1 directions"),
        (
            "--branch_from data --episode 0 --step 0 --branch_steps 3 --direction_type unit "
            "--swap_directions_from 1 --swap_directions_to None --intervention_steps 3 to end",
            "step 3 does not exist, rows are 0 to 2 (--branch_steps 3)",
        ),
        (
            "--model_file agent --direction_type unit --swap_directions_from 1 "
            "--swap_directions_to None --intervention_control random --control_norm_of data",
            "--control_norm_of data: is no recording of the intervention",
        ),
        ("--model_file agent --intervention_steps 3", "no intervention is asked for"),
        ("--branches 3", "--branches: branches need --branch_from"),
        ("--model_file agent --num_videos -1", "--num_videos -1: must be at least 0"),
    ],
)
def test_mistakes_end_in_one_line(
    workplace, monkeypatch, capsys, command: str, complaint: str
) -> None:
    torch.manual_seed(1)
    other = RecurrentPolicy(NetworkConfig(width=0.25, num_features=HIDDEN_DIM))
    save_agent(workplace / "other", other, FAKE, {}, 0)
    before = sorted(workplace.rglob("*"))
    assert type_command(monkeypatch, command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert sorted(workplace.rglob("*")) == before


def test_an_agent_that_is_gone_is_named(workplace, monkeypatch, capsys) -> None:
    shutil.rmtree("agent")
    assert type_command(monkeypatch, "--branch_from data --episode 0 --step 0") == 2
    expected = "--model_file: none given, and the agent that --branch_from data names is gone"
    assert expected in capsys.readouterr().err


def test_videos_show_the_first_episodes_and_stay(workplace, monkeypatch) -> None:
    command = "--model_file agent --data_dir data --max_episodes 4 --num_envs 2 --seed 4"
    assert type_command(monkeypatch, f"{command} --num_videos 2") == 0
    videos = sorted(Path("data/videos").iterdir())
    assert [path.name for path in videos] == ["episode_00000000.mp4", "episode_00000001.mp4"]
    episodes = read_episodes("data")
    for episode_id, path in enumerate(videos):
        assert read_video(path).shape == (len(episodes[episode_id]), 256, 256, 3)
    kept = videos[0].stat().st_mtime_ns
    videos[1].unlink()
    assert write_episode_videos("data", range(2)) == [videos[1]]
    assert videos[0].stat().st_mtime_ns == kept
    assert write_episode_videos("data", [99]) == []


@pytest.mark.medium
def test_killed_branching_is_continued(workplace, monkeypatch) -> None:
    command = "--branch_from data --episode 0 1 2 3 --step 0 --device cpu --shard_size 1 "
    command += "--branches"
    script = [sys.executable, record.__file__, *command.split()]
    process = subprocess.Popen([*script, "100000"], cwd=workplace)
    while not Path("branches/dataset.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    while len(list(Path("branches").glob("shard-*.h5"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    sealed = {path: path.read_bytes() for path in Path("branches").glob("shard-*.h5")}
    assert sealed
    assert type_command(monkeypatch, f"{command} 3") == 0
    assert {path: path.read_bytes() for path in sealed} == sealed
    assert type_command(monkeypatch, f"{command} 3 --logdir whole") == 0
    whole = read_episodes("whole/branches")
    continued = read_episodes("branches")
    for episode_id, rollout in whole.items():
        np.testing.assert_array_equal(rollout.obs, continued[episode_id].obs)
        np.testing.assert_array_equal(rollout.action, continued[episode_id].action)
