"""Mistakes on the command line of record_gen_samples.py end in one line, before any work."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import record_gen_samples
from agents.checkpoint import hash_agent, save_agent
from agents.networks import NetworkConfig, RecurrentPolicy, make_policy
from environments.protocol import EnvironmentSpec
from experiment.errors import run_entry_point
from experiment.files import read_json
from generative.checkpoint import save_simulator
from generative.simulator import Simulator, SimulatorConfig
from projections.hidden import HiddenProjection
from record import RecordConfig
from record_gen_samples import RecordSamplesConfig
from rollouts.schema import DatasetMetadata
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import EpisodeInfo, Rollout

HIDDEN_DIM = 16
NUM_ACTIONS = 15
LENGTH = 6
SPEC = EnvironmentSpec(
    adapter="procgen",
    name="coinrun",
    obs_shape=(64, 64, 3),
    num_actions=NUM_ACTIONS,
    action_names=tuple(f"action-{index}" for index in range(NUM_ACTIONS)),
    null_action=4,
    time_limit=1000,
)
SIMULATOR = SimulatorConfig(
    latent_dim=8,
    deter_dim=16,
    num_categoricals=4,
    num_classes=5,
    hidden_dim=16,
    encoder_channels=(4, 4, 4, 4),
    encoder_rnn_dim=16,
    embedding_depth=2,
    decoder_depth=2,
)


def _policy(seed: int) -> RecurrentPolicy:
    torch.manual_seed(seed)
    return make_policy(NetworkConfig(width=0.25, num_features=HIDDEN_DIM))


def _write_dataset(folder: Path, agent_hash: str, spec: EnvironmentSpec, length: int) -> None:
    metadata = DatasetMetadata(
        spec, agent_hash, str(folder.parent / "agent"), HIDDEN_DIM, (0, HIDDEN_DIM), NUM_ACTIONS
    )
    numbers = np.zeros(length, np.float32)
    rollout = Rollout(
        obs=np.zeros((length, 64, 64, 3), np.uint8),
        agent_hidden=np.zeros((length, HIDDEN_DIM), np.float32),
        action_logits=np.zeros((length, NUM_ACTIONS), np.float32),
        value=numbers,
        action=np.zeros(length, np.int32),
        behaviour_log_prob=numbers,
        reward=numbers,
        done=np.arange(length) == length - 1,
        info=EpisodeInfo(0, agent_hash, np.zeros(HIDDEN_DIM, np.float32), level_seed=0),
    )
    with RolloutWriter(folder, metadata) as writer:
        writer.write(rollout)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An agent, its simulator, its rollouts and a projection, in the current folder."""
    policy = _policy(0)
    save_agent(tmp_path / "agent", policy, SPEC, {}, 0)
    save_agent(tmp_path / "other_agent", _policy(1), SPEC, {}, 0)
    simulator = Simulator(SIMULATOR, policy)
    save_simulator(tmp_path / "simulator", simulator, SPEC, hash_agent(policy), {}, 0)
    _write_dataset(tmp_path / "data", hash_agent(policy), SPEC, LENGTH)
    states = np.random.default_rng(0).normal(size=(100, HIDDEN_DIM))
    HiddenProjection("pca", 4).fit(states).save(tmp_path / "projection")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _type(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    command = "record_gen_samples.py --model_file simulator --device cpu"
    # The preset comes first: of a flag given twice the last one counts.
    monkeypatch.setattr(
        sys, "argv", [*command.split(), "--interpreting_params_name", "tiny", *flags]
    )
    with pytest.raises(SystemExit) as exit_request:
        run_entry_point(record_gen_samples.main)
    assert isinstance(exit_request.value.code, int)
    return exit_request.value.code


def test_it_works_without_mistakes(workplace, monkeypatch):
    assert _type(monkeypatch, "--data_save_dir", "samples") == 0
    assert RolloutDataset("samples").num_episodes == LENGTH - 2


def test_interventions_have_the_flags_that_record_py_has():
    assert RecordSamplesConfig().intervention == RecordConfig().intervention


def test_held_units_and_their_control(workplace, monkeypatch):
    flags = "--direction_type unit --clamp_directions 3 5 --clamp_values 0.5 -0.5 "
    flags += "--amount_unit coordinate --intervention_steps 2 to end"
    report = ("--report", "report.json")
    assert _type(monkeypatch, *flags.split(), "--data_save_dir", "held", *report) == 0
    for index in range(RolloutDataset("held").num_episodes):
        rollout, twin = (RolloutDataset(n).read_episode(index) for n in ("held", "held_twin"))
        assert np.allclose(rollout.agent_hidden[2:, [3, 5]], [0.5, -0.5], atol=1e-6)
        assert np.array_equal(rollout.agent_hidden[:2], twin.agent_hidden[:2])
        assert np.array_equal(rollout.obs[:3], twin.obs[:3])
    strength = read_json("held/intervention.json")
    assert read_json("report.json")["metrics"]["intervention"] == strength
    assert strength["share_of_rows_changed"] == 0.8
    control = "--intervention_control random --control_norm_of held --data_save_dir control"
    assert _type(monkeypatch, *flags.split(), *control.split()) == 0
    found = read_json("control/intervention.json")
    assert found["mean_change_norm"] == pytest.approx(strength["mean_change_norm"], rel=1e-3)
    assert RolloutDataset("control_twin").hash == RolloutDataset("held_twin").hash
    # Another control is another recording.
    again = (*flags.split(), *control.split(), "--control_seed", "1")
    assert _type(monkeypatch, *again) == 2


@pytest.mark.parametrize("flags", ["", "--data_dir data", "--data_dir absent --agent_file agent"])
def test_random_starts_need_an_agent_and_no_windows(workplace, monkeypatch, flags):
    flags = f"--recording_rand_init --data_save_dir samples {flags}"
    assert _type(monkeypatch, *flags.split()) == 0
    samples = RolloutDataset("samples")
    assert set(samples.episodes["initialisation"]) == {"random"}
    assert samples.metadata.agent_hash == RolloutDataset("data").metadata.agent_hash


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--agent_file other_agent", "belongs to agent"),
        ("--agent_file absent", "absent: no such agent"),
        ("--model_file absent", "absent: not a simulator"),
        ("--data_dir absent", "absent: not a rollout dataset"),
        ("--data_dir foreign", "rollouts of maze"),
        ("--data_dir short", "none of the 1 episodes has the 3 frames"),
        ("--env_name maze", "--env_name maze: the simulator simulator imitates coinrun"),
        (
            "--recording_rand_init --data_dir absent",
            "--agent_file: none given, and --data_dir absent holds no rollouts",
        ),
        (
            "--recording_rand_init --data_dir orphaned/data",
            "--agent_file: none given, and the agent that --data_dir orphaned/data names is gone",
        ),
        ("--max_samples 0", "--max_samples 0: must be at least 1"),
        ("--data_save_dir agent/agent.json/x", "--data_save_dir: folder"),
        ("--swap_directions_from 1", "--swap_directions_from has 1 directions"),
        ("--swap_directions_from 1 --swap_directions_to 2", "hx_analysis_precomp/projection"),
        (
            "--projection projection --direction_type pca --swap_directions_from 16 "
            "--swap_directions_to None",
            "--swap_directions_from 16: expected a direction from 0 to 15",
        ),
        (
            "--projection projection --swap_directions_from 1 --swap_directions_to 2",
            "--direction_type ica: the projection was fitted by pca",
        ),
        (
            "--direction_type unit --scale_directions 1 --scale_factors 2 "
            "--intervention_steps 4 10",
            "--intervention_steps 4 10: step 10 does not exist, rows are 0 to 9",
        ),
        (
            "--direction_type file --add_directions 1 --add_amounts 2",
            "--direction_type file: needs --directions_file",
        ),
        ("--direction_type unit --add_directions 1 --add_amounts 2", "name a --projection"),
        ("--clamp_directions 1 --clamp_values x", "clamp"),
        ("--add_once", "--add_once: no intervention is asked for"),
        ("--no_such_flag 1", "no_such_flag"),
        ("--interpreting_params_name absent", "unknown preset 'absent'"),
    ],
)
def test_mistakes_end_in_one_line(workplace, monkeypatch, capsys, flags, complaint):
    _write_dataset(workplace / "foreign", "hash", replace(SPEC, name="maze"), LENGTH)
    _write_dataset(workplace / "short", "hash", SPEC, 2)
    _write_dataset(workplace / "orphaned/data", "hash", SPEC, LENGTH)
    assert _type(monkeypatch, *flags.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert not (workplace / "generative").exists()
