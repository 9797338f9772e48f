"""Several processes train the simulator that one trains, stop together, and go on as others."""

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
from safetensors.torch import load_file

from experiment.runs import STOPPED_EXIT_CODE
from generative.checkpoint import WEIGHTS_NAME

ROOT = Path(__file__).parents[2]
NUM_STEPS = 5
# Of six windows three are shown to the posterior's decoder, and one, on one process, to the agent.
# Adam divides by the size of a gradient: where that is nearly zero the order of a sum decides on
# the update, a share of lr. That is small here; the weights still move by ten times the tolerance.
SETTINGS = (
    *("--interpreting_params_name", "tiny", "--seed", "3", "--device", "cpu"),
    *("--batch_size", "6", "--observed_share", "0.5", "--agent_share", "0.1"),
    *("--num_video_windows", "0", "--loss_scale_act_log_probs", "1", "--lr", "2e-5"),
)


def command(num_processes: int, script: Path, data: Path, folder: Path, *flags: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    launched = [*(launcher if num_processes > 1 else ()), str(script)]
    paths = ["--data_dir", str(data), "--run_dir", str(folder)]
    steps = ["--num_training_steps", str(NUM_STEPS)]
    return [sys.executable, *launched, *SETTINGS, *paths, *steps, *flags]


def start(num_processes: int, data: Path, folder: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(num_processes, ROOT / "train_gen_model.py", data, folder, *flags),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def train(num_processes: int, data: Path, folder: Path, *flags: str) -> str:
    process = start(num_processes, data, folder, *flags)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    return output


def assert_same_training(folder: Path, expected: Path) -> None:
    found, wanted = (
        load_file(run / f"model_{NUM_STEPS}" / WEIGHTS_NAME) for run in (folder, expected)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    pd.testing.assert_frame_equal(
        log_without_time(folder), log_without_time(expected), rtol=1e-4, atol=1e-5
    )


def log_without_time(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "log.csv").drop(columns=["seconds", "data_wait_share"])


@pytest.fixture(scope="module")
def whole_run(training_files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(1, training_files.data, folder, "--heldout_data_dir", str(training_files.heldout))
    return folder


@pytest.mark.medium
def test_two_processes_learn_what_one_learns(training_files, whole_run, tmp_path):
    heldout = ("--heldout_data_dir", str(training_files.heldout))
    output = train(2, training_files.data, tmp_path / "two", *heldout)
    assert output.count("run folder:") == 1
    assert output.count("waited for data") == 1
    assert_same_training(tmp_path / "two", whole_run)


@pytest.mark.medium
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_training_goes_on_with_another_number_of_processes(
    training_files, whole_run, tmp_path, before, after
):
    killed = f"""
import os, sys
from generative.trainer import SimulatorTrainer
update = SimulatorTrainer._update
def update_or_die(trainer, windows):
    if trainer.step == 3:
        os._exit(1)
    update(trainer, windows)
SimulatorTrainer._update = update_or_die
sys.path.insert(0, {str(ROOT)!r})
import train_gen_model
from experiment.errors import run_entry_point
run_entry_point(train_gen_model.main)
"""
    script = tmp_path / "killed.py"
    script.write_text(killed)
    folder, heldout = tmp_path / "parts", ("--heldout_data_dir", str(training_files.heldout))
    subprocess.run(
        command(before, script, training_files.data, folder, *heldout),
        check=False,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    output = train(after, training_files.data, folder, *heldout)
    assert "going on after 3 training steps" in output
    assert_same_training(folder, whole_run)


@pytest.mark.medium
def test_two_processes_stop_together(training_files, tmp_path):
    """SIGUSR1 reaches one process; both end, and the state is that of one step."""
    folder = tmp_path / "parts"
    process = start(2, training_files.data, folder, "--num_training_steps", "100000")
    state = folder / "training_state.pt"
    wait_until(state.exists, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert output.count("stopped by SIGUSR1; state saved") == 1
    # torchrun ends the slower one by SIGTERM, which may come when it has saved and is leaving.
    exit_codes = set(re.findall(r"exitcode\s*:\s*(-?\d+)", output))
    assert str(STOPPED_EXIT_CODE) in exit_codes
    assert exit_codes <= {str(STOPPED_EXIT_CODE), str(-signal.SIGTERM)}
    assert (folder / "stopped").read_text() == "SIGUSR1\n"
    assert torch.load(state, weights_only=True)["step"] > 0


@pytest.mark.medium
@pytest.mark.parametrize(
    ("flags", "refusal"),
    [
        (("--batch_size", "5"), "error: --batch_size 5: does not divide among 2 processes"),
        (("--data_dir", "nowhere"), "error: nowhere"),
    ],
)
def test_what_cannot_work_is_refused_once(training_files, tmp_path, flags, refusal):
    process = start(2, training_files.data, tmp_path / "run", *flags)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert output.count(refusal) == 1
    assert not (tmp_path / "run").exists()


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
