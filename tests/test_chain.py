"""The whole chain at its smallest size, as Snakemake runs it: complete, skipped, killed."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.checkpoint import load_agent
from experiment.command_line import load_preset
from rollouts.store import RolloutDataset

ChainCommand = Callable[..., list[str]]
ROOT = Path(__file__).parents[1]
STAGES = {
    "train_agent",
    "record_rollouts",
    "record_heldout",
    "train_simulator",
    "simulator_fidelity",
    "fidelity_figures",
    "record_samples",
    "hidden_analysis",
    "saliency",
    "figures",
    "record_followed",
    "probe_analysis",
    "probe_figures",
    "behaviour_clusters",
    "behaviour_figures",
    "jacobians",
    "jacobian_figures",
    "cross_dynamics",
    "consistency",
    "statement_effects",
    "statement_figures",
    "saliency_trust",
    "saliency_trust_figures",
    "overlap",
    "readout_weights",
    "record_random",
    "env_h_analysis",
    "env_h_figures",
    "bottleneck_analysis",
    "bottleneck_figures",
    "sml_analysis",
    "sml_figures",
    "target_functions",
    "target_figures",
    "sample_trust_figures",
    "saliency_paths",
    "integrated_gradients",
    "attribution_figures",
    "intervention_effects",
    "intervention_figures",
}


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_summary(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / "results" / "summary.json").read_text())["stages"]


def modification_times(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for path in (folder / "results").rglob("*")
        if path.is_file() and path.name != "summary.json"
    }


@pytest.mark.medium
@pytest.mark.timeout(2400)
def test_summary_has_every_stage_with_its_outputs(finished_chain: Path) -> None:
    stages = read_summary(finished_chain)
    assert set(stages) == STAGES
    for name, stage in stages.items():
        assert stage["status"] == "done", name
        assert isinstance(stage["seconds"], float)
        assert stage["seconds"] > 0
        outputs = stage["outputs"]
        assert isinstance(outputs, list)
        assert outputs, name


@pytest.mark.medium
@pytest.mark.timeout(2400)
def test_simulator_errors_stand_beside_their_baselines(finished_chain: Path) -> None:
    metrics = json.dumps(read_summary(finished_chain)["simulator_fidelity"]["metrics"])
    for word in ("mode", "mean_frame", "last_frame"):
        assert word in metrics


@pytest.mark.medium
@pytest.mark.timeout(2400)
def test_second_run_makes_nothing_again(finished_chain: Path, chain_command: ChainCommand) -> None:
    before = modification_times(finished_chain)
    start = time.perf_counter()
    result = run(chain_command(finished_chain))
    seconds = time.perf_counter() - start
    assert result.returncode == 0, result.stderr
    assert modification_times(finished_chain) == before
    assert seconds < 20


@pytest.mark.medium
@pytest.mark.timeout(2400)
def test_an_agent_that_is_there_already_takes_the_place_of_the_trained_one(
    finished_chain: Path, tmp_path: Path, chain_command: ChainCommand
) -> None:
    trained = finished_chain / "results" / "agent"
    shutil.copytree(trained, tmp_path / "asset")
    result = run([*chain_command(tmp_path), f"agent={tmp_path / 'asset'}", "--until", "take_agent"])
    assert result.returncode == 0, result.stdout + result.stderr
    taken = load_agent(tmp_path / "results" / "agent")
    assert taken.hash == load_agent(trained).hash
    assert not list((tmp_path / "results").glob("runs/train_agent*"))


@pytest.mark.medium
def test_a_task_of_a_job_array_records_all_episodes(
    tmp_path: Path, chain_command: ChainCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """record.py by itself would keep every third of them."""
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    agent = ROOT / load_preset("chains.yml", "demo")["agent"]
    command = [*chain_command(tmp_path), f"agent={agent}", "--until", "record_rollouts"]
    result = run(command)
    assert result.returncode == 0, result.stdout + result.stderr
    episodes = load_preset("recording.yml", "tiny")["recording"]["max_episodes"]
    assert RolloutDataset(tmp_path / "results" / "rollouts").num_episodes == episodes


@pytest.mark.medium
def test_an_agent_that_is_not_there_is_an_error_before_any_stage(
    tmp_path: Path, chain_command: ChainCommand
) -> None:
    result = run([*chain_command(tmp_path), "agent=nowhere"])
    assert result.returncode != 0
    assert "AGENT=nowhere: neither `train` nor the folder of an agent" in result.stderr
    assert not (tmp_path / "results").exists()


def test_the_demo_leaves_the_further_stages_to_the_report() -> None:
    demo, report, tiny = (load_preset("chains.yml", name) for name in ("demo", "report", "tiny"))
    assert demo["further_stages"] == []
    assert report["further_stages"] == tiny["further_stages"]
    assert set(report["further_stages"]) < STAGES


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, pending = [], [pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def kill_stage(chain: "subprocess.Popen[bytes]", script: str, sign: Path, pattern: str) -> None:
    """Wait until `pattern` exists below `sign`, then SIGKILL the process that runs `script`."""
    # The stages before it take minutes on a machine that is busy otherwise.
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline and chain.poll() is None:
        if list(sign.rglob(pattern)):
            for pid in descendants(chain.pid):
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(argument.endswith(script.encode()) for argument in arguments[1:2]):
                    os.kill(pid, signal.SIGKILL)
                    return
        time.sleep(0.05)
    raise AssertionError(f"{script} was not seen at work")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("script", "pattern"),
    [
        ("train.py", "runs/train_agent-*"),
        ("record.py", "runs/record_rollouts-*/dataset.json"),
        ("train_gen_model.py", "runs/train_simulator-*"),
        ("record_gen_samples.py", "runs/record_samples-*/dataset.json"),
    ],
)
def test_a_killed_stage_is_taken_up_again(
    tmp_path: Path, chain_command: ChainCommand, script: str, pattern: str
) -> None:
    command = chain_command(tmp_path, "tiny-base")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as chain:
        kill_stage(chain, script, tmp_path / "results", pattern)
    assert chain.returncode != 0
    result = run(command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(stage["status"] == "done" for stage in read_summary(tmp_path).values())
    assert not list((tmp_path / "results").rglob("*.partial*"))
    for folder in ("rollouts", "heldout_rollouts", "samples"):
        dataset = RolloutDataset(tmp_path / "results" / folder)
        for index in range(dataset.num_episodes):
            assert len(dataset.read_episode(index)) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stage_that_was_deleted_is_made_again_with_all_that_depends_on_it(
    tmp_path: Path, finished_chain: Path, chain_command: ChainCommand
) -> None:
    shutil.copytree(finished_chain, tmp_path / "copy")
    results = tmp_path / "copy" / "results"
    shutil.rmtree(results / "agent")
    shutil.rmtree(results / "runs")
    result = run(chain_command(tmp_path / "copy"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(stage["status"] == "done" for stage in read_summary(tmp_path / "copy").values())
    made_again = (results / "simulator" / "simulator.json").stat().st_mtime_ns
    assert made_again > (results / "agent" / "agent.json").stat().st_mtime_ns
