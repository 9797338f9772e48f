"""Every command refuses bad input in one clear line, with exit code 2, and writes nothing."""

import importlib
import importlib.util
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from agents.checkpoint import load_agent, require_recurrent_policy, save_agent
from experiment.errors import USER_ERROR_EXIT_CODE, run_entry_point
from projections.hidden import HiddenProjection
from rollouts.store import RolloutDataset, RolloutWriter

pytestmark = [pytest.mark.medium, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parent.parent
UNWRITABLE = Path("/proc/dreamscope")
"""No process may create folders in /proc, not even root's."""
MODULES = {"panel": "panel.__main__", "findings": "findings.__main__"}
"""Commands that are run as `python -m`."""


@dataclass(frozen=True)
class Refusal:
    """What a refused command left behind."""

    line: str
    new_files: list[Path]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


Refuse = Callable[..., Refusal]


@pytest.fixture
def refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refuse:
    """Run a script's `main` in an empty folder, demand that it refuses, tell how."""
    folder = tmp_path / "empty"
    folder.mkdir()

    def run(script: str, *arguments: object) -> Refusal:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        module = MODULES.get(script)
        main = (importlib.import_module(module) if module else load_script(script)).main
        with pytest.raises(SystemExit) as stop:
            run_entry_point(main)
        assert stop.value.code == USER_ERROR_EXIT_CODE
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return Refusal(lines[0], [path for path in folder.rglob("*") if path.is_file()])

    return run


@pytest.fixture(scope="module")
def results(finished_chain: Path) -> Path:
    return finished_chain / "results"


@pytest.fixture
def other_agent(results: Path, tmp_path: Path) -> Path:
    """The chain's agent with one weight changed: another agent."""
    loaded = load_agent(results / "agent")
    assert loaded.environment is not None
    policy = require_recurrent_policy(loaded, "--agent_file")
    policy.value_head.bias.data += 1.0
    save_agent(tmp_path / "other_agent", policy, loaded.environment, {}, loaded.env_steps)
    return tmp_path / "other_agent"


@pytest.fixture
def empty_dataset(results: Path, tmp_path: Path) -> Path:
    """A dataset of the right kind without an episode."""
    folder = tmp_path / "no_episodes"
    with RolloutWriter(folder, RolloutDataset(results / "rollouts").metadata):
        pass
    return folder


VECTOR_SCRIPTS = (
    "analysis/env_h_analysis_precompute.py",
    "analysis/bottleneck_vec_analysis_precompute.py",
    "analysis/sml_analysis_precompute.py",
)
SCRIPTS = (
    "train.py",
    "record.py",
    "render.py",
    "train_gen_model.py",
    "record_gen_samples.py",
    "saliency_experiments.py",
    "analysis/hidden_analysis_precompute.py",
    "analysis/hidden_analysis_plotting.py",
    "analysis/simulator_fidelity_precompute.py",
    "analysis/simulator_fidelity_plotting.py",
    "analysis/probe_analysis_precompute.py",
    "analysis/probe_analysis_plotting.py",
    "analysis/show_hx_overlap.py",
    "plot_value_and_action_weights.py",
    "loss_over_time_experiment.py",
    "analysis/combined_agent_env_hx_analysis_precompute.py",
    "analysis/combined_agent_env_hx_analysis_plotting.py",
    "analysis/jacobian_analysis_precompute.py",
    "analysis/jacobian_analysis_plotting.py",
    "xcorr_and_xcaus_plots.py",
    "analysis/dynamics_grads_consistency_plots.py",
    "analysis/statement_effects_precompute.py",
    "analysis/intervention_effects_precompute.py",
    "analysis/target_functions_precompute.py",
    *VECTOR_SCRIPTS,
)


SCRIPTS_WITHOUT_PRESET = (
    "analysis/sample_trust_precompute.py",
    "analysis/sample_trust_plotting.py",
    "analysis/saliency_trust_precompute.py",
    "analysis/saliency_trust_plotting.py",
    "analysis/saliency_plotting.py",
    "analysis/statement_effects_plotting.py",
    "analysis/intervention_effects_plotting.py",
    "analysis/target_functions_plotting.py",
    "analysis/env_h_analysis_plotting.py",
    "analysis/bottleneck_vec_analysis_plotting.py",
    "analysis/sml_analysis_plotting.py",
)


@pytest.mark.parametrize("script", SCRIPTS + SCRIPTS_WITHOUT_PRESET)
def test_unknown_flag(refuse: Refuse, script: str) -> None:
    refusal = refuse(script, "--no_such_flag", "3")
    assert "no_such_flag" in refusal.line.replace("-", "_")
    assert not refusal.new_files


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_preset(refuse: Refuse, script: str) -> None:
    has_agent_preset = script in ("train.py", "render.py")
    flag = "--param_name" if has_agent_preset else "--interpreting_params_name"
    refusal = refuse(script, flag, "nonsense")
    assert "unknown preset 'nonsense'" in refusal.line
    assert not refusal.new_files


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is present")
@pytest.mark.parametrize("device", ["cuda", "gpu", "cuda:1"])
@pytest.mark.parametrize("script", ["train.py", "record.py", "train_gen_model.py"])
def test_cuda_asked_for_but_absent(refuse: Refuse, script: str, device: str) -> None:
    refusal = refuse(script, "--device", device)
    assert "CUDA is not available" in refusal.line
    assert not refusal.new_files


def test_unwritable_folder(refuse: Refuse, results: Path) -> None:
    refusal = refuse("train.py", "--param_name", "tiny", "--run_dir", UNWRITABLE / "run")
    assert str(UNWRITABLE) in refusal.line
    refusal = refuse(
        *("record.py", "--interpreting_params_name", "tiny"),
        *("--model_file", results / "agent", "--data_dir", UNWRITABLE / "data"),
    )
    assert str(UNWRITABLE) in refusal.line


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        ("record.py", "--model_file"),
        ("render.py", "--model_file"),
        ("train.py", "--model_file"),
    ],
)
def test_missing_agent(refuse: Refuse, script: str, flag: str) -> None:
    refusal = refuse(script, flag, "nowhere.pth")
    assert "nowhere.pth" in refusal.line
    assert not refusal.new_files


def test_foreign_checkpoint(refuse: Refuse, tmp_path: Path) -> None:
    text = tmp_path / "text.pth"
    text.write_text("not a checkpoint")
    assert "text.pth" in refuse("record.py", "--model_file", text).line
    foreign = tmp_path / "foreign.pth"
    torch.save({"model_state_dict": {"layer.weight": torch.zeros(2, 2)}}, foreign)
    assert "foreign.pth" in refuse("record.py", "--model_file", foreign).line


def test_agent_of_another_environment(refuse: Refuse, results: Path) -> None:
    refusal = refuse("record.py", "--model_file", results / "agent", "--env_name", "starpilot")
    assert "starpilot" in refusal.line
    assert "coinrun" in refusal.line
    assert not refusal.new_files


def test_simulator_of_another_agent(refuse: Refuse, results: Path, other_agent: Path) -> None:
    refusal = refuse(
        *("record_gen_samples.py", "--interpreting_params_name", "tiny"),
        *("--model_file", results / "simulator", "--agent_file", other_agent),
        *("--data_dir", results / "rollouts"),
    )
    assert "agent" in refusal.line
    assert not refusal.new_files


def test_missing_simulator(refuse: Refuse, results: Path) -> None:
    refusal = refuse(
        *("record_gen_samples.py", "--model_file", "nowhere", "--agent_file", results / "agent"),
        *("--data_dir", results / "rollouts"),
    )
    assert "nowhere" in refusal.line
    assert not refusal.new_files


def test_missing_dataset(refuse: Refuse, results: Path) -> None:
    refusal = refuse(
        "train_gen_model.py", "--data_dir", "nowhere", "--agent_file", results / "agent"
    )
    assert "nowhere" in refusal.line
    for script in ("hidden_analysis_precompute.py", "probe_analysis_precompute.py"):
        refusal = refuse(f"analysis/{script}", "--data_dir", "nowhere")
        assert "nowhere" in refusal.line
        assert not refusal.new_files


def test_rollouts_of_another_agent_than_the_untrained_ones(
    refuse: Refuse, results: Path, other_agent: Path
) -> None:
    refusal = refuse(
        *("analysis/probe_analysis_precompute.py", "--agent_file", other_agent),
        *("--data_dir", results / "rollouts", "--no-generated"),
        *("--projection", results / "hidden_analysis" / "projection"),
    )
    assert "was recorded with agent" in refusal.line
    assert not refusal.new_files


def test_projection_of_another_agent(refuse: Refuse, results: Path, other_agent: Path) -> None:
    refusal = refuse(
        *("plot_value_and_action_weights.py", "--agent_file", other_agent),
        *("--data_dir", results / "rollouts"),
        *("--projection", results / "hidden_analysis" / "projection"),
    )
    assert "fitted to hidden states of agent" in refusal.line
    assert not refusal.new_files


def test_empty_dataset(refuse: Refuse, results: Path, empty_dataset: Path) -> None:
    for script in ("train_gen_model.py", "analysis/hidden_analysis_precompute.py"):
        agent = ("--agent_file", results / "agent") if script == "train_gen_model.py" else ()
        refusal = refuse(script, "--data_dir", empty_dataset, *agent)
        assert str(empty_dataset) in refusal.line
        assert not refusal.new_files


def test_no_episode_longer_than_the_initial_frames(refuse: Refuse, results: Path) -> None:
    refusal = refuse(
        *("train_gen_model.py", "--interpreting_params_name", "tiny"),
        *("--data_dir", results / "rollouts", "--agent_file", results / "agent"),
        *("--num_initializing_steps", "100000"),
    )
    assert str(results / "rollouts") in refusal.line
    assert not refusal.new_files


def test_results_that_were_not_made_yet(refuse: Refuse) -> None:
    for script, maker in (
        ("hidden_analysis_plotting.py", "hidden_analysis_precompute.py"),
        ("show_hx_overlap.py", "hidden_analysis_precompute.py"),
        ("probe_analysis_plotting.py", "probe_analysis_precompute.py"),
        ("intervention_effects_plotting.py", "intervention_effects_precompute.py"),
        ("target_functions_plotting.py", "target_functions_precompute.py"),
        ("env_h_analysis_plotting.py", "env_h_analysis_precompute.py"),
        ("bottleneck_vec_analysis_plotting.py", "bottleneck_vec_analysis_precompute.py"),
        ("sml_analysis_plotting.py", "sml_analysis_precompute.py"),
    ):
        refusal = refuse(f"analysis/{script}")
        assert maker in refusal.line
        assert not refusal.new_files


@pytest.mark.parametrize("script", VECTOR_SCRIPTS)
def test_vectors_of_rollouts_that_have_none(refuse: Refuse, results: Path, script: str) -> None:
    refusal = refuse(script, "--generated_data_dir", "nowhere")
    assert "nowhere" in refusal.line
    refusal = refuse(script, "--generated_data_dir", results / "rollouts")
    assert f"--generated_data_dir {results / 'rollouts'}: holds real rollouts" in refusal.line
    refusal = refuse(script, "--generated_data_dir", results / "samples", "--num_samples", 0)
    assert "--num_samples 0" in refusal.line
    assert not refusal.new_files


def test_random_latents_that_are_windows_of_real_rollouts(refuse: Refuse, results: Path) -> None:
    refusal = refuse(
        *("analysis/bottleneck_vec_analysis_precompute.py", "--generated_data_dir"),
        *(results / "samples", "--random_data_dir", results / "rollouts"),
    )
    assert f"--random_data_dir {results / 'rollouts'}: holds real rollouts" in refusal.line
    assert not refusal.new_files


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--target_functions", "increase_sadness"), "increase_sadness"),
        (("--target_functions", "increase_hx_direction_0", "--projection", "gone"), "gone"),
        (("--num_copies", "0"), "--num_copies 0"),
        (("--model_file", "nowhere"), "nowhere"),
    ],
)
def test_searches_that_cannot_be_made(
    refuse: Refuse, results: Path, flags: tuple[str, ...], complaint: str
) -> None:
    simulator = () if "--model_file" in flags else ("--model_file", results / "simulator")
    refusal = refuse(
        *("analysis/target_functions_precompute.py", "--interpreting_params_name", "tiny"),
        *("--data_dir", results / "rollouts", *simulator, *flags),
    )
    assert complaint in refusal.line
    assert not refusal.new_files


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--num_pushed", "0"), "--num_pushed 0"),
        (("--match_ratio", "1"), "--match_ratio 1.0: expected more than 1"),
        (("--pushes.no-real",), "statements are tested in reality too"),
    ],
)
def test_statements_that_cannot_be_tested(
    refuse: Refuse, results: Path, flags: tuple[str, ...], complaint: str
) -> None:
    refusal = refuse(
        *("analysis/statement_effects_precompute.py", "--interpreting_params_name", "tiny"),
        *("--cross", results / "cross_dynamics", "--consistency", results / "consistency"),
        *("--projection", results / "hidden_analysis" / "projection", *flags),
    )
    assert complaint in refusal.line
    assert not refusal.new_files


def test_dynamics_that_were_not_computed_yet(refuse: Refuse, results: Path) -> None:
    for script, producer in (
        ("analysis/combined_agent_env_hx_analysis_plotting.py", "_precompute.py"),
        ("analysis/jacobian_analysis_plotting.py", "jacobian_analysis_precompute.py"),
        ("analysis/dynamics_grads_consistency_plots.py", "xcorr_and_xcaus_plots.py"),
        ("analysis/statement_effects_precompute.py", "xcorr_and_xcaus_plots.py"),
        ("analysis/statement_effects_plotting.py", "statement_effects_precompute.py"),
    ):
        refusal = refuse(script)
        assert producer in refusal.line
        assert not refusal.new_files
    refusal = refuse("xcorr_and_xcaus_plots.py", "--generated_data_dir", results / "samples")
    assert "hidden_analysis_precompute.py" in refusal.line
    assert not refusal.new_files
    refusal = refuse(
        "analysis/jacobian_analysis_precompute.py", "--generated_data_dir", results / "rollouts"
    )
    assert "holds real rollouts" in refusal.line
    assert not refusal.new_files


def test_statements_of_other_components_than_those_of_the_projection(
    refuse: Refuse, results: Path, tmp_path: Path
) -> None:
    states = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    HiddenProjection(n_components=2).fit(states).save(tmp_path / "projection")
    refusal = refuse(
        *("analysis/statement_effects_precompute.py", "--interpreting_params_name", "tiny"),
        *("--cross", results / "cross_dynamics", "--consistency", results / "consistency"),
        *("--projection", tmp_path / "projection"),
    )
    assert f"--projection {tmp_path / 'projection'}: fitted on data" in refusal.line
    assert not refusal.new_files


def test_report_of_results_that_are_not_there(refuse: Refuse) -> None:
    refusal = refuse("findings", "--results", "nowhere")
    assert "--results nowhere: no such folder; make it with: make report" in refusal.line
    assert not refusal.new_files


def test_training_log_that_does_not_exist(refuse: Refuse) -> None:
    assert "nowhere" in refuse("plot_training_csv.py", "--datapath", "nowhere").line


def test_panel_port_that_is_taken(refuse: Refuse, results: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in refuse("panel", results, "--port", port).line


def test_panel_export_of_a_sample_that_does_not_exist(refuse: Refuse) -> None:
    refusal = refuse("panel", "export", "nowhere:3", "--out", "page")
    assert "nowhere" in refusal.line
    assert not refusal.new_files
