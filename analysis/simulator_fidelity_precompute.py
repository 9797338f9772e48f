"""Measure the simulator's predictions on held-out levels beside baselines."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
import xarray as xr

from agents.checkpoint import load_chosen_agent
from analysis.results import write_results
from experiment.command_line import parse_command_line
from experiment.devices import resolve_device
from experiment.errors import UserError, require_at_least, run_entry_point
from experiment.files import require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport, stage_report
from generative.checkpoint import LoadedSimulator, load_simulator, newest_simulator
from generative.fidelity import BASELINES, METHODS, Fidelity, FidelityConfig, measure_fidelity
from generative.scores import SCORES
from rollouts.store import RolloutDataset

DESCRIPTION = """Measure how well a simulator predicts levels that it was not trained on.

Given the initial frames of a window and the actions recorded after them, the simulator predicts
the next frames. At each horizon they are compared with the true ones, in pixels (squared error,
structural similarity) and in the eyes of the agent (divergence of its policy, agreement of its most
probable action, error of its value, cosine of its hidden state). Beside the simulator stand
baselines (mean frame, last frame repeated, another episode), predictions under another window's
actions, and as an upper bound states that have seen the true frames. Intervals come from
resampling levels. Prints a table and writes OUTPUT_DIR/simulator_fidelity.nc."""


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
    counts = ("num_windows", "horizon", "num_samples", "num_resamples", "fidelity_batch_size")
    require_at_least(config.fidelity, *counts)
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
    require_writable_folder(config.output_dir, "--output_dir")
    fidelity = measure_fidelity(loaded.simulator, heldout, train, config.fidelity, device)
    print(fidelity.table(), flush=True)
    hashes = {
        "agent": agent.hash,
        "simulator": loaded.hash,
        "dataset": heldout.hash,
        "train_dataset": train.hash,
    }
    path = config.output_dir / "simulator_fidelity.nc"
    provenance = collect_provenance(config, config.fidelity.seed, hashes)
    write_results(path, to_dataset(fidelity), provenance)
    report.outputs.append(str(path))
    report.metrics.update(fidelity.summary())
    return path


def to_dataset(fidelity: Fidelity) -> xr.Dataset:
    """Label the figures."""
    by_method, by_pair = ("prediction", "horizon"), ("prediction", "baseline", "horizon")
    windows = fidelity.windows
    what, versus = "mean over windows", "mean over windows, minus the baseline's on the same rows"
    return xr.Dataset(
        {
            "score": (("measure", *by_method), fidelity.mean, {"long_name": what}),
            "score_interval": (
                ("bound", "measure", *by_method),
                fidelity.interval,
                _interval(what),
            ),
            "difference": (("measure", *by_pair), fidelity.difference, {"long_name": versus}),
            "difference_interval": (
                ("bound", "measure", *by_pair),
                fidelity.difference_interval,
                _interval(versus),
            ),
            "window_score": (
                ("measure", "prediction", "window", "horizon"),
                windows.scores,
                {"long_name": "score of one window; NaN past the end of its episode"},
            ),
            "level": ("window", windows.level, {"long_name": "level seed"}),
            "episode_id": ("window", windows.episode_id, {"long_name": "episode"}),
            "start_row": ("window", windows.start_row, {"long_name": "first row of the window"}),
            "measure_meaning": ("measure", list(SCORES.values())),
            "prediction_meaning": ("prediction", list(METHODS.values())),
        },
        coords={
            "measure": list(SCORES),
            "prediction": list(METHODS),
            "baseline": list(BASELINES),
            "horizon": np.arange(fidelity.horizon + 1),
            "bound": ["lower", "upper"],
        },
    )


def _interval(what: str) -> dict[str, str]:
    return {"long_name": f"95% interval of the {what}, bootstrap over levels"}


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
