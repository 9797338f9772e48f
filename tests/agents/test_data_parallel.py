import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from agents.checkpoint import load_agent
from agents.networks import RecurrentPolicy
from experiment.runs import STOPPED_EXIT_CODE

ROOT = Path(__file__).parents[2]
UPDATES = 3


def command(num_processes: int, script: Path, folder: Path, *flags: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    settings = ["--param_name", "tiny", "--env_name", "fake", "--run_dir", str(folder)]
    steps = ["--num_timesteps", str(32 * UPDATES)]
    launched = [*(launcher if num_processes > 1 else ()), str(script)]
    return [sys.executable, *launched, *settings, *steps, *flags]


def start(folder: Path, num_processes: int, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(num_processes, ROOT / "train.py", folder, *flags),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def train(folder: Path, num_processes: int, *flags: str) -> str:
    process = start(folder, num_processes, *flags)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def weights(folder: Path) -> torch.Tensor:
    agent = load_agent(folder / f"model_{32 * UPDATES}")
    assert isinstance(agent.policy, RecurrentPolicy)
    return torch.cat([p.flatten() for p in agent.policy.parameters()])


def log_without_time(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "log.csv").drop(columns="wall_time")


def assert_same_training(folder: Path, expected: Path) -> None:
    torch.testing.assert_close(weights(folder), weights(expected), rtol=0, atol=1e-5)
    pd.testing.assert_frame_equal(
        log_without_time(folder), log_without_time(expected), rtol=1e-3, atol=1e-5
    )


@pytest.mark.medium
@pytest.mark.parametrize("recurrent", ["--recurrent", "--no-recurrent"])
def test_two_processes_learn_what_one_learns(tmp_path, recurrent):
    """Three updates, statistics of rewards and advantages over both, three held-out levels."""
    flags = (recurrent, "--eval_episodes", "3", "--eval_every", "2", "--num_minibatches", "3")
    train(tmp_path / "one", 1, *flags)
    output = train(tmp_path / "two", 2, *flags)
    assert output.count("run folder:") == 1
    assert_same_training(tmp_path / "two", tmp_path / "one")


@pytest.mark.medium
def test_two_processes_stop_together(tmp_path):
    """SIGUSR1 reaches one process; both save the state of all environments and end."""
    process = start(tmp_path / "parts", 2, "--num_timesteps", "100000")
    state = tmp_path / "parts" / "training_state.pt"
    wait_until(state.exists, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert output.count("stopped by SIGUSR1; state saved") == 1
    # torchrun ends the slower one by SIGTERM, which may come when it has saved and is leaving.
    exit_codes = set(re.findall(r"exitcode\s*:\s*(-?\d+)", output))
    assert str(STOPPED_EXIT_CODE) in exit_codes
    assert exit_codes <= {str(STOPPED_EXIT_CODE), str(-signal.SIGTERM)}
    saved = torch.load(state, weights_only=True)
    assert pd.read_csv(tmp_path / "parts" / "log.csv")["timesteps"].iloc[-1] == (
        32 * saved["iteration"]
    )
    assert len(saved["collector"]["groups"]) == 4


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_the_launcher_saves_and_leaves_no_process_behind(tmp_path, number):
    """torchrun hides exit code 75, and SIGUSR1 ends it alone: the run folder tells."""
    folder = tmp_path / "parts"
    process = start(folder, 2, "--num_timesteps", "100000")
    wait_until((folder / "training_state.pt").exists, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)  # returns once no process can write any more
    assert process.returncode in (1, -number)
    assert output.count("stopped by SIGTERM; state saved") == 1
    assert (folder / "stopped").read_text() == "SIGTERM\n"
    saved = torch.load(folder / "training_state.pt", weights_only=True)
    assert saved["iteration"] > 0


@pytest.mark.medium
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_training_goes_on_with_another_number_of_processes(tmp_path, before, after):
    train(tmp_path / "whole", 1)
    killed = f"""
import os, signal, sys
from agents.trainer import Trainer
update, count = Trainer._update, []
def update_or_die(trainer):
    if len(count) == 2:
        os._exit(1)
    count.append(1)
    return update(trainer)
Trainer._update = update_or_die
sys.argv = ["train.py", *sys.argv[1:]]
sys.path.insert(0, {str(ROOT)!r})
import train
from experiment.errors import run_entry_point
run_entry_point(train.main)
"""
    script = tmp_path / "killed.py"
    script.write_text(killed)
    subprocess.run(
        command(before, script, tmp_path / "parts"),
        check=False,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert len(pd.read_csv(tmp_path / "parts" / "log.csv")) == 2
    output = train(tmp_path / "parts", after)
    assert "going on after 64 environment steps" in output
    assert_same_training(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.medium
def test_environments_that_do_not_divide_are_refused_once(tmp_path):
    process = start(tmp_path / "run", 2, "--num_envs", "5")
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    refusal = "error: --num_envs 5: does not divide among 2 processes"
    assert output.count(refusal) == 1
    assert not (tmp_path / "run").exists()


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
