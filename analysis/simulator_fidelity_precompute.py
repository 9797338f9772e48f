"""Measure the simulator's predictions on held-out levels beside baselines."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from agents.checkpoint import load_chosen_agent
from analysis.fidelity_file import to_dataset
from analysis.results import write_results
from experiment.command_line import parse_command_line
from experiment.devices import resolve_device
from experiment.errors import UserError, require_at_least, run_entry_point
from experiment.files import require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport, stage_report
from generative.checkpoint import LoadedSimulator, load_simulator, newest_simulator
from generative.fidelity import measure_fidelity
from generative.fidelity_windows import FidelityConfig
from projections.hidden import load_fitting_projection
from rollouts.store import RolloutDataset

DESCRIPTION = """Measure how well a simulator predicts levels that it was not trained on.

Given the initial frames of a window and the actions recorded after them, the simulator predicts
the next frames. At each horizon they are compared with the true ones, in pixels (squared error,
signal-to-noise ratio, structural similarity) and in the eyes of the agent (divergence of its
policy, agreement of its most probable action, error of its value, cosine of its hidden state, R² in
the coordinates of --projection). Rewards and ends are judged by AUROC, Brier score and reliability.
Beside the simulator stand baselines (mean frame, last frame repeated, another episode, base rate),
predictions under another window's actions, and as an upper bound states that have seen the true
frames. Intervals come from resampling levels. Prints tables and writes
OUTPUT_DIR/simulator_fidelity.nc."""


@dataclass(frozen=True)
class FidelityCommand:
    """Flags of `simulator_fidelity_precompute.py`."""

    data_dir: Path = Path("heldout_data")
    """Rollouts on held-out levels, as record.py makes them with --start_level 1000000000."""
    train_data_dir: Path = Path("data")
    """Rollouts that the simulator was trained on; they give the mean frame."""
    model_file: Path | None = None
    """The simulator's folder; by default the newest of generative/results/GEN_MOD_EXP_NAME/."""
    gen_mod_exp_name: str = "test_tgm"
    """Name of the training whose newest simulator is taken when no --model_file is given."""
    agent_file: str | None = None
    """The agent that made the rollouts, as record.py's --model_file takes it; by default the one
    that DATA_DIR names."""
    projection: Path | None = None
    """Folder of a projection of hidden states, as hidden_analysis_precompute.py makes it; adds R²
    of its components."""
    output_dir: Path = Path("analysis/simulator_fidelity")
    """Folder for the result."""
    interpreting_params_name: str = "defaults"
    """Preset of hyperparams/simulator.yml: defaults (full size), demo, tiny."""
    fidelity: Annotated[FidelityConfig, tyro.conf.arg(name="")] = field(
        default_factory=FidelityConfig
    )
    device: str = "auto"
    """auto, cpu, cuda, cuda:N, or gpu for the GPU numbered --gpu_device."""
    gpu_device: int = 0
    """Number of the GPU that `--device gpu` means."""
    report: Path | None = None
    """File for a JSON report of seconds, outputs and metrics."""


def precompute(config: FidelityCommand, report: StageReport) -> Path:
    """Load what the flags name, measure, write the result; returns its path."""
    require_at_least(
        config.fidelity,
        *("num_windows", "horizon", "num_samples", "num_resamples"),
        *("num_calibration_windows", "fidelity_batch_size"),
    )
    device = resolve_device(config.device, config.gpu_device)
    heldout, train = RolloutDataset(config.data_dir), RolloutDataset(config.train_data_dir)
    metadata = heldout.metadata
    source = f"--data_dir {config.data_dir}"
    agent = load_chosen_agent(
        config.agent_file, metadata.agent_file, source, metadata.environment, device
    )
    model_file = config.model_file or newest_simulator(config.gen_mod_exp_name)
    loaded = load_simulator(model_file, agent, device)
    for flag, dataset in (("--data_dir", heldout), ("--train_data_dir", train)):
        _require_same_environment(flag, dataset, loaded)
    projection = None
    if config.projection is not None:
        projection = load_fitting_projection(config.projection, agent.policy.hidden_slice)
    require_writable_folder(config.output_dir, "--output_dir")
    fidelity = measure_fidelity(
        loaded.simulator, heldout, train, config.fidelity, device, projection
    )
    print(fidelity.table(), flush=True)
    hashes = {
        "agent": agent.hash,
        "simulator": loaded.hash,
        "dataset": heldout.hash,
        "train_dataset": train.hash,
    }
    if projection is not None:
        hashes["projection_data"] = projection.data_hash
    path = config.output_dir / "simulator_fidelity.nc"
    provenance = collect_provenance(config, config.fidelity.seed, hashes)
    write_results(path, to_dataset(fidelity), provenance)
    report.outputs.append(str(path))
    report.metrics.update(fidelity.summary())
    return path


def _require_same_environment(flag: str, dataset: RolloutDataset, loaded: LoadedSimulator) -> None:
    found, expected = dataset.metadata.environment, loaded.environment
    if (found.adapter, found.name) != (expected.adapter, expected.name):
        raise UserError(
            f"{flag} {dataset.folder}: rollouts of {found.name}, "
            f"the simulator {loaded.path} imitates {expected.name}"
        )


def main() -> None:
    """Parse the command line, measure, report."""
    config = parse_command_line(
        FidelityCommand, DESCRIPTION, "interpreting_params_name", "simulator.yml", "measurement"
    )
    with stage_report("simulator_fidelity", config.report) as report:
        precompute(config, report)


if __name__ == "__main__":
    run_entry_point(main)
