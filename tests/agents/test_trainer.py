import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from agents.checkpoint import load_agent, require_recurrent_policy
from agents.ppo import PPOConfig, ppo_losses
from agents.trainer import LOG_COLUMNS, Trainer, num_agents_due, train
from agents.training_config import NetworkOptions, TrainingConfig, resolve_settings
from environments.factory import EnvironmentConfig
from environments.fake import FakeEnvironment
from environments.procgen_adapter import ProcgenEnvironment
from experiment.command_line import parse_command_line
from experiment.distributed import ALONE
from experiment.errors import UserError
from experiment.report import StageReport
from experiment.runs import STOPPED_EXIT_CODE, hold_run
from train import main as train_command

ROOT = Path(__file__).parents[2]


def tiny_config(folder: Path, *flags: str) -> TrainingConfig:
    arguments = ["--param_name", "tiny", "--env_name", "fake", "--run_dir", str(folder), *flags]
    return parse_command_line(TrainingConfig, "", "param_name", "agents.yml", None, arguments)


def train_tiny(folder: Path, *flags: str) -> Path:
    return train(tiny_config(folder, *flags), StageReport("train"))


def weights(agent: Path) -> torch.Tensor:
    policy = require_recurrent_policy(load_agent(agent), "agent")
    return torch.cat([p.flatten() for p in policy.parameters()])


def log_without_time(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "log.csv").drop(columns="wall_time")


class KilledError(Exception):
    pass


@pytest.fixture
def killed_after(monkeypatch):
    """Ends the training process, without any farewell, in the update after the given number."""

    update = Trainer._update

    def arrange(num_updates: int) -> None:
        count = 0

        def update_or_die(trainer):
            nonlocal count
            count += 1
            if count > num_updates:
                raise KilledError
            return update(trainer)

        monkeypatch.setattr(Trainer, "_update", update_or_die)

    return arrange


def test_training_leaves_agents_log_and_export(tmp_path):
    report = StageReport("train")
    flags = ("--num_checkpoints", "2", "--eval_every", "2", "--eval_episodes", "4")
    flags += ("--export_dir", str(tmp_path / "agent"))
    agent = train(tiny_config(tmp_path / "run", *flags), report)
    assert agent == tmp_path / "run" / "model_128"
    assert sorted(p.name for p in (tmp_path / "run").glob("model_*")) == ["model_128", "model_64"]
    assert load_agent(tmp_path / "agent").hash == load_agent(agent).hash
    loaded = load_agent(agent)
    assert loaded.env_steps == 128
    assert loaded.environment is not None
    assert loaded.environment.name == "fake"
    log = pd.read_csv(tmp_path / "run" / "log.csv")
    assert tuple(log.columns) == LOG_COLUMNS
    assert log["timesteps"].tolist() == [32, 64, 96, 128]
    # Evaluated after every second update, on four levels each time.
    assert log["val_mean_episode_rewards"].notna().tolist() == [False, True, False, True]
    assert log["num_episodes_val"].tolist() == [0, 4, 4, 8]
    assert list((tmp_path / "run").glob("events.out.tfevents*"))
    assert report.metrics["env_steps"] == 128
    assert 0 <= report.metrics["random_policy_return_held_out"] <= 10


def test_a_limit_on_time_ends_the_training_with_an_evaluated_agent(tmp_path):
    flags = ("--num_timesteps", "1000000000", "--max_minutes", "0.02", "--eval_episodes", "2")
    report = StageReport("train")
    agent = train(tiny_config(tmp_path / "run", *flags), report)
    log = pd.read_csv(tmp_path / "run" / "log.csv")
    assert 0 < load_agent(agent).env_steps == log["timesteps"].iloc[-1] < 10**9
    # The evaluation follows the update after which the time was over, and no earlier one.
    assert log["wall_time"].iloc[-1] >= 1.2
    assert (log["wall_time"].iloc[:-1] < 1.2).all()
    evaluated = log["val_mean_episode_rewards"].notna()
    assert evaluated.iloc[-1]
    assert evaluated.sum() == 1
    assert train(tiny_config(tmp_path / "run", *flags), StageReport("train")) == agent


def test_agents_to_keep_are_spaced_by_whole_updates():
    """As the rule in whole numbers says, to whose shares floats only come near."""
    for total in (*range(1, 60), 100, 611, 3052):
        for count in (1, 2, 3, 10, 29, 100):
            due = [num_agents_due(done / total, count) for done in range(total + 1)]
            assert due == [done * count // total for done in range(total + 1)]


def test_agents_to_keep_are_spaced_by_time_where_time_ends_the_training(tmp_path, monkeypatch):
    flags = ("--num_timesteps", "1000000000", "--max_minutes", "1", "--eval_episodes", "0")
    clock = itertools.count(0.0, 2.0)  # seconds from one look at it to the next
    monkeypatch.setattr(Trainer, "seconds", property(lambda trainer: next(clock)))
    train_tiny(tmp_path, *flags, "--num_checkpoints", "2")
    timesteps = pd.read_csv(tmp_path / "log.csv")["timesteps"].tolist()
    kept = sorted(load_agent(folder).env_steps for folder in tmp_path.glob("model_*"))
    assert len(kept) == 2
    assert kept[1] == timesteps[-1]
    assert abs(kept[0] - kept[1] / 2) <= 32  # an update


def test_more_checkpoints_than_updates_keep_every_agent_and_say_so(tmp_path, capsys):
    train_tiny(tmp_path, "--num_checkpoints", "9")
    assert len(list(tmp_path.glob("model_*"))) == 4
    assert "--num_checkpoints 9: only 4 updates" in capsys.readouterr().out


def test_same_seed_same_agent_other_seed_other_agent(tmp_path):
    runs = [train_tiny(tmp_path / str(i), "--seed", seed) for i, seed in enumerate("334")]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


@pytest.mark.parametrize("num_updates", [0, 1, 3])
def test_killed_run_ends_bitwise_like_one_never_killed(tmp_path, killed_after, num_updates):
    flags = ("--num_checkpoints", "3")
    expected = train_tiny(tmp_path / "whole", *flags)
    killed_after(num_updates)
    with pytest.raises(KilledError):
        train_tiny(tmp_path / "killed", *flags)
    killed_after(100)
    resumed = train_tiny(tmp_path / "killed", *flags)
    assert torch.equal(weights(resumed), weights(expected))
    log, whole = (log_without_time(tmp_path / run) for run in ("killed", "whole"))
    pd.testing.assert_frame_equal(log, whole, check_exact=True)
    names = [sorted(p.name for p in (tmp_path / r).glob("model_*")) for r in ("whole", "killed")]
    assert names[0] == names[1]


def test_rows_after_the_saved_state_are_written_anew(tmp_path, killed_after):
    """With a state saved at no time but the first, all rows logged since are cut on resuming."""
    killed_after(1)
    with pytest.raises(KilledError):
        train_tiny(tmp_path, "--save_every_seconds", "0")
    killed_after(2)
    with pytest.raises(KilledError):
        train_tiny(tmp_path, "--save_every_seconds", "1000")
    assert pd.read_csv(tmp_path / "log.csv")["timesteps"].tolist() == [32, 64, 96]
    killed_after(100)
    train_tiny(tmp_path)
    assert pd.read_csv(tmp_path / "log.csv")["timesteps"].tolist() == [32, 64, 96, 128]


def test_resume_takes_the_settings_of_the_run(tmp_path, killed_after):
    killed_after(2)
    with pytest.raises(KilledError):
        train_tiny(tmp_path / "run", "--learning_rate", "0.01", "--seed", "5")
    killed_after(100)
    threads = EnvironmentConfig(num_threads=3)
    config = TrainingConfig(resume=tmp_path / "run", environment=threads)
    agent = train(config, StageReport("train"))
    assert (
        json.loads((agent / "agent.json").read_text())["provenance"]["config"]["environment"][
            "num_threads"
        ]
        == 3
    )
    expected = train_tiny(tmp_path / "other", "--learning_rate", "0.01", "--seed", "5")
    assert torch.equal(weights(agent), weights(expected))


def test_finished_run_is_not_trained_again(tmp_path):
    agent = train_tiny(tmp_path)
    time_written = (agent / "agent.json").stat().st_mtime_ns
    assert train_tiny(tmp_path) == agent
    assert (agent / "agent.json").stat().st_mtime_ns == time_written
    assert len(json.loads((tmp_path / "provenance.json").read_text())) == 2


def test_run_with_other_settings_is_refused(tmp_path):
    train_tiny(tmp_path)
    with pytest.raises(UserError, match=r"ppo\.gamma = 0\.999, now 0\.5"):
        train_tiny(tmp_path, "--gamma", "0.5")
    train_tiny(tmp_path, "--device", "cpu")


def test_run_of_a_release_that_knew_fewer_settings_goes_on(tmp_path, killed_after):
    killed_after(2)
    with pytest.raises(KilledError):
        train_tiny(tmp_path)
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    for name in ("precision", "cuda_graphs", "keep_last"):
        del saved[name]
    del saved["ppo"]["bootstrap_timeouts"]
    file.write_text(json.dumps(saved))
    killed_after(100)
    with pytest.raises(UserError, match=r"ppo\.bootstrap_timeouts = False, now True"):
        train_tiny(tmp_path, "--bootstrap_timeouts")
    agent = train(TrainingConfig(resume=tmp_path), StageReport("train"))
    assert load_agent(agent).env_steps == 128


def test_damaged_state_gives_way_to_the_one_before(tmp_path, killed_after, capsys):
    expected = train_tiny(tmp_path / "whole")
    killed_after(3)
    with pytest.raises(KilledError):
        train_tiny(tmp_path / "run", "--keep_last", "3")
    states = sorted(path.name for path in (tmp_path / "run").glob("training_state*"))
    assert states == ["training_state.1.pt", "training_state.2.pt", "training_state.pt"]
    (tmp_path / "run" / "training_state.pt").write_bytes(b"PK torn")
    killed_after(100)
    resumed = train_tiny(tmp_path / "run", "--keep_last", "3")
    output = capsys.readouterr().out
    assert "warning: " in output
    assert "going on from training_state.1.pt" in output
    assert "going on after 64 environment steps" in output
    assert torch.equal(weights(resumed), weights(expected))


def test_run_without_seed_draws_one_and_keeps_it(tmp_path):
    config = dataclasses.replace(
        tiny_config(tmp_path), seed=None, num_timesteps=32, eval_episodes=0
    )
    for _ in range(2):
        train(config, StageReport("train"))
    seeds = [entry["seed"] for entry in json.loads((tmp_path / "provenance.json").read_text())]
    assert seeds[0] == seeds[1]
    assert 0 <= seeds[0] < 10_000


def test_default_run_folder_is_that_of_the_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(
        tiny_config(tmp_path), run_dir=None, exp_name="dev", num_timesteps=32, eval_episodes=0
    )
    agent = train(config, StageReport("train"))
    assert agent.parts[:4] == ("logs", "procgen", "fake", "dev")
    assert agent.parts[4].startswith("seed_1_")


def test_model_file_gives_the_initial_weights(tmp_path):
    first = train_tiny(tmp_path / "first")
    flags = ("--model_file", str(first), "--learning_rate", "0")
    second = train_tiny(tmp_path / "second", *flags)
    assert torch.equal(weights(first), weights(second))
    provenance = json.loads((second / "agent.json").read_text())["provenance"]
    assert provenance["inputs"] == {"initial_agent": load_agent(first).hash}
    config = dataclasses.replace(
        tiny_config(tmp_path / "third", *flags), network=NetworkOptions(width=0.5)
    )
    with pytest.raises(UserError, match="--model_file"):
        train(config, StageReport("train"))
    assert not (tmp_path / "third").exists()
    with pytest.raises(UserError, match=r"model_file = .*first.*, now .*second"):
        train_tiny(tmp_path / "second", "--model_file", str(second), "--learning_rate", "0")


def test_a_run_goes_on_without_the_agent_that_it_began_with(tmp_path, killed_after):
    first = train_tiny(tmp_path / "first")
    flags = ("--model_file", str(first))
    whole = train_tiny(tmp_path / "whole", *flags)
    killed_after(2)
    with pytest.raises(KilledError):
        train_tiny(tmp_path / "killed", *flags)
    killed_after(100)
    identity = load_agent(first).hash
    shutil.rmtree(first)
    resumed = train_tiny(tmp_path / "killed", *flags)
    assert torch.equal(weights(resumed), weights(whole))
    provenance = json.loads((resumed / "agent.json").read_text())["provenance"]
    assert provenance["inputs"] == {"initial_agent": identity}


def test_so_does_a_run_that_was_killed_while_its_states_changed_places(tmp_path, killed_after):
    first = train_tiny(tmp_path / "first")
    flags = ("--model_file", str(first))
    killed_after(2)
    with pytest.raises(KilledError):
        train_tiny(tmp_path / "killed", *flags)
    state = tmp_path / "killed" / "training_state.pt"
    state.replace(state.with_name("training_state.1.pt"))
    killed_after(100)
    shutil.rmtree(first)
    assert load_agent(train_tiny(tmp_path / "killed", *flags)).env_steps == 128


def test_a_training_that_diverges_ends_with_an_error_and_saves_nothing_of_that(tmp_path):
    with pytest.raises(UserError, match="--learning_rate: the training has diverged"):
        train_tiny(tmp_path / "run", "--learning_rate", "1e30", "--num_timesteps", "640")
    assert not list((tmp_path / "run").glob("model_*"))
    assert not (tmp_path / "run" / "training_state.pt").exists()
    assert pd.read_csv(tmp_path / "run" / "log.csv").empty


def test_a_gradient_that_is_no_number_is_not_saved_even_where_the_losses_are(tmp_path, monkeypatch):
    def losses_without_a_slope(output, *args):
        losses = ppo_losses(output, *args)
        root = torch.sqrt(0.0 * output.value.abs()).sum()
        return dataclasses.replace(losses, value=losses.value + root)

    monkeypatch.setattr("agents.ppo.ppo_losses", losses_without_a_slope)
    flags = ("--num_timesteps", "640", "--num_epochs", "1", "--num_minibatches", "1")
    with pytest.raises(UserError, match="the gradient's norm is nan at update 1"):
        train_tiny(tmp_path / "run", *flags)
    assert not list((tmp_path / "run").glob("model_*"))


@pytest.mark.parametrize(
    ("env_name", "environment"), [("fake", FakeEnvironment), ("coinrun", ProcgenEnvironment)]
)
def test_the_command_trains_on_the_levels_that_its_flags_name(
    env_name, environment, tmp_path, monkeypatch
):
    met = set()
    observe = environment.observe

    def observe_and_note(self):
        transition = observe(self)
        met.update(transition.level_seed.tolist())
        return transition

    monkeypatch.setattr(environment, "observe", observe_and_note)
    flags = ["--param_name", "tiny", "--env_name", env_name, "--run_dir", str(tmp_path / "run")]
    flags += ["--start_level", "70", "--num_levels", "2", "--eval_episodes", "0"]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    train_command()
    assert met == {70, 71}


def test_a_second_training_in_the_same_run_folder_is_refused(tmp_path):
    with hold_run(tmp_path / "run", ALONE):
        with pytest.raises(UserError, match="another training is at work there"):
            train_tiny(tmp_path / "run")
        assert not (tmp_path / "run" / "log.csv").exists()


def test_bad_settings_are_refused_before_anything_is_written(tmp_path):
    for flags, pattern in (
        (("--device", "tpu"), "--device"),
        (("--num_envs", "0"), "--num_envs"),
        (("--num_timesteps", "0"), "--num_timesteps"),
        (("--start_level", "1"), "--start_level 1 --num_levels 0: levels from 1000000000 on"),
        (("--start_level", "999999990", "--num_levels", "11"), "--num_levels 11: .* held out"),
        (("--model_file", "nowhere"), "--model_file: nowhere: no such agent"),
        (("--resume", "nowhere"), "--resume nowhere"),
        (("--learning_rate", "-1"), "--learning_rate -1.0: must be at least 0"),
        (("--clip", "0"), "--clip 0.0: must be positive"),
        (("--max_grad_norm", "nan"), "--max_grad_norm nan: expected a finite number"),
        (("--learning_rate", "inf"), "--learning_rate inf: expected a finite number"),
        (("--width", "nan"), "--width nan: expected a finite number"),
        (("--max_minutes", "nan"), "--max_minutes nan: expected a finite number"),
        (("--entropy_coefficient", "-1"), "--entropy_coefficient -1.0: must be at least 0"),
        (("--save_every_seconds", "-3"), "--save_every_seconds -3.0: must be at least 0"),
    ):
        with pytest.raises(UserError, match=pattern):
            train_tiny(tmp_path / "run", *flags)
        assert not (tmp_path / "run").exists()
    config = dataclasses.replace(
        tiny_config(tmp_path / "run"), environment=EnvironmentConfig(env_name="chess")
    )
    with pytest.raises(UserError, match="--env_name"):
        train(config, StageReport("train"))


@pytest.mark.parametrize(
    ("flags", "refusal"),
    [
        (("--num_timesteps", "640"), "num_timesteps = 128, now 640"),
        (("--no-recurrent",), "recurrent = True, now False"),
        (("--model_file", "other"), "model_file = None, now 'other'"),
        (("--run_dir", "other"), "--run_dir other: --resume .* names the run already"),
    ],
)
def test_flags_beside_resume_that_change_the_run_are_refused(tmp_path, monkeypatch, flags, refusal):
    train_tiny(tmp_path / "run")
    before = (tmp_path / "run" / "log.csv").read_bytes()
    resume = ["train.py", "--resume", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", [*resume, *flags])
    with pytest.raises(UserError, match=refusal):
        train_command()
    assert (tmp_path / "run" / "log.csv").read_bytes() == before
    monkeypatch.setattr("sys.argv", [*resume, "--num_timesteps", "128", "--keep_last", "2"])
    train_command()


@pytest.mark.medium
def test_a_signal_during_the_start_lets_it_save_and_exit(tmp_path):
    process = start_training(tmp_path, "--save_every_seconds", "1000")
    assert process.stdout is not None
    next(line for line in process.stdout if "run folder" in line)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=240)
    assert process.returncode == STOPPED_EXIT_CODE
    assert saved_steps(tmp_path) == 32


@pytest.mark.parametrize(
    ("preset", "num_envs", "mini_batch_size", "is_recurrent"),
    [
        ("easy", 64, 2048, False),
        ("easy-200", 128, 2048, False),
        ("hard", 256, 2048, False),
        ("hard-500", 256, 8192, False),
        ("hard-500-mem", 256, 8192, False),
        ("hard-rec", 256, 2048, True),
        ("hard-rec-record", 128, 2048, True),
        ("hard-local-dev", 16, 8192, False),
        ("hard-local-dev-rec", 16, 8192, True),
    ],
)
def test_presets_of_the_reference_have_its_values(preset, num_envs, mini_batch_size, is_recurrent):
    arguments = ["--param-name", preset]
    config = parse_command_line(TrainingConfig, "", "param_name", "agents.yml", None, arguments)
    expected = PPOConfig(num_envs=num_envs, num_steps=256, mini_batch_size=mini_batch_size)
    assert config.ppo == expected
    assert config.network == NetworkOptions(recurrent=is_recurrent)


@pytest.mark.parametrize("preset", ["easy-rec-half", "demo", "tiny"])
def test_presets_of_our_own_make_valid_settings(preset):
    arguments = ["--param-name", preset]
    config = parse_command_line(TrainingConfig, "", "param_name", "agents.yml", None, arguments)
    assert resolve_settings(config).network.recurrent


def start_training(folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), "--param_name", "tiny", "--env_name", "fake"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--run_dir", str(folder), "--num_timesteps", "100000", *flags],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )


def saved_steps(folder: Path) -> int:
    # While a state takes the place of another there is for a moment only the older one.
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            return torch.load(folder / "training_state.pt", weights_only=True)["iteration"] * 32
        time.sleep(0.02)
    raise AssertionError(f"no training state in {folder}")


def wait_for_state(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not (folder / "training_state.pt").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_steps(folder: Path, process: subprocess.Popen[str], steps: int) -> None:
    deadline = time.monotonic() + 240
    while saved_steps(folder) < steps:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stop_training(process: subprocess.Popen[str]) -> str:
    """Ask it to stop; what it printed."""
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == STOPPED_EXIT_CODE
    return output


@pytest.mark.medium
def test_run_survives_sigkill_and_saves_itself_on_sigterm(tmp_path):
    """It goes on bit for bit like a run never killed, in another process."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start_training(killed)
    wait_for_state(killed, process)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    steps = saved_steps(killed)
    process = start_training(killed)
    wait_for_steps(killed, process, steps + 32)
    output = stop_training(process)
    assert f"going on after {steps} environment steps" in output
    assert "state saved" in output
    timesteps = pd.read_csv(killed / "log.csv")["timesteps"]
    assert saved_steps(killed) == timesteps.iloc[-1]
    assert timesteps.tolist() == [32 * (i + 1) for i in range(len(timesteps))]
    process = start_training(whole)
    wait_for_state(whole, process)
    wait_for_steps(whole, process, timesteps.iloc[-1])
    stop_training(process)
    expected = log_without_time(whole)[: len(timesteps)]
    pd.testing.assert_frame_equal(log_without_time(killed), expected, check_exact=True)


@pytest.mark.medium
def test_killed_run_on_procgen_ends_bitwise_like_one_never_killed(tmp_path, killed_after):
    flags = ("--env_name", "coinrun", "--num_steps", "64", "--num_timesteps", "1024")
    flags += ("--eval_episodes", "0")
    expected = train_tiny(tmp_path / "whole", *flags)
    killed_after(2)
    with pytest.raises(KilledError):
        train_tiny(tmp_path / "killed", *flags)
    killed_after(100)
    resumed = train_tiny(tmp_path / "killed", *flags)
    assert torch.equal(weights(resumed), weights(expected))
    log = log_without_time(tmp_path / "killed")
    pd.testing.assert_frame_equal(log, log_without_time(tmp_path / "whole"), check_exact=True)
    # Episodes that began before the kill end after it.
    num_episodes = log["num_episodes"].tolist()
    assert num_episodes[-1] > num_episodes[1]


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (("--param_name", "huge"), "unknown preset 'huge'"),
        (("--no_such_flag", "1"), "no.such.flag"),
    ],
)
def test_command_line_refuses_unknown_presets_and_flags(flags, pattern):
    with pytest.raises(UserError, match=pattern):
        parse_command_line(TrainingConfig, "", "param_name", "agents.yml", None, flags)


@pytest.mark.parametrize("name", ["num_checkpoints", "keep_last", "eval_every", "eval_episodes"])
def test_counts_that_are_too_small_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"--{name} -1: must be at least"):
        train_tiny(tmp_path / "run", f"--{name}", "-1")
    assert not (tmp_path / "run").exists()


@pytest.mark.medium
def test_script_refuses_in_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--run_dir", "run", "--device", "tpu"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --device")
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
