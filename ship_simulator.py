"""Make an asset of a trained simulator: weights, card, curve, figures of its fidelity."""

import json
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.fidelity_figures import FidelityPlottingConfig, plot_fidelity
from analysis.results import input_hashes, read_results
from experiment.command_line import parse_flags
from experiment.errors import UserError, run_entry_point
from experiment.files import (
    atomic_folder,
    read_json,
    require_small,
    require_writable_folder,
    write_json,
)
from experiment.report import StageReport, stage_report
from experiment.runs import LOG_FILE, PROVENANCE_FILE, export_folder
from generative.card import SimulatorCard, read_advantages, read_scores, render_card
from generative.checkpoint import (
    DESCRIPTION_NAME,
    read_description,
    read_environment,
    read_num_parameters,
    simulator_hash,
)
from plot_training_csv import read_log, write_curve
from rollouts.store import RolloutDataset

DESCRIPTION = """Make an asset of a trained simulator: a folder with its weights, its description,
its training curve (CSV and PNG), the figures of its fidelity, and a card (README.md, card.json),
which tells how it was trained and how it predicts held-out levels beside the baselines."""

MAX_BYTES = 17_000_000
"""An asset is part of every clone: 16 MB of weights, and figures."""
FIDELITY_FILE = "simulator_fidelity.nc"
FIGURES = ("fidelity_summary.png", "fidelity_differences.png")


@dataclass(frozen=True)
class ShipConfig:
    """What to ship, and where to."""

    run_dir: Path
    """Run folder of train_gen_model.py."""
    fidelity_dir: Path
    """Folder of simulator_fidelity.nc, measured on that run's simulator."""
    out: Path
    """Folder of the asset, e.g. assets/simulators/NAME; replaced as a whole if it is there."""
    machine: str = ""
    """What the training ran on, in words, for the card."""
    report: Path | None = None
    """File for a JSON report of seconds, outputs and metrics."""


def ship(config: ShipConfig) -> dict[str, Any]:
    """Write the asset; returns the figures of the card.

    Raises:
        UserError: no training there, or a fidelity that was measured on another simulator.
    """
    require_writable_folder(config.out.absolute().parent, "--out")
    fidelity_file = config.fidelity_dir / FIDELITY_FILE
    measured = input_hashes(read_results(fidelity_file))["simulator"]
    folder = _simulator_of_run(config.run_dir, measured, fidelity_file)
    card = make_card(config, folder)
    with atomic_folder(config.out) as temporary:
        export_folder(folder, temporary / "simulator")
        for file in (temporary / "simulator").iterdir():
            file.rename(temporary / file.name)
        (temporary / "simulator").rmdir()
        log = read_log(config.run_dir)
        write_curve(temporary, log.loc[log["step"] <= read_description(folder)["step"], :])
        _draw_fidelity(config.fidelity_dir, temporary)
        write_json(temporary / "card.json", card.to_dict())
        (temporary / "README.md").write_text(render_card(config.out.absolute().name, card))
        require_small(temporary, MAX_BYTES, "--run_dir")
    return card.to_dict()


def make_card(config: ShipConfig, folder: Path) -> SimulatorCard:
    """Gather what the card of the simulator `folder` tells."""
    description, environment = read_description(folder), read_environment(folder)
    fidelity = read_results(config.fidelity_dir / FIDELITY_FILE)
    measured = json.loads(fidelity.attrs["provenance"])
    trainings = _trainings(folder)
    training = description["provenance"]["config"]
    folders = (training["data_dir"], training["heldout_data_dir"], measured["config"]["data_dir"])
    datasets = {folder: RolloutDataset(folder) for folder in folders}
    recorded = [dataset.metadata.provenance["command"] for dataset in datasets.values()]
    options = ", ".join(f"{key} {value}" for key, value in environment.options.items())
    begun = [read_json(training.parent / PROVENANCE_FILE)[0]["command"] for training in trainings]
    return SimulatorCard(
        commands=tuple(
            shlex.join(["python", *command]) for command in (*recorded, *begun, measured["command"])
        ),
        num_episodes={folder: dataset.num_episodes for folder, dataset in datasets.items()},
        training_steps=sum(read_description(training)["step"] for training in trainings),
        seed=description["provenance"]["seed"],
        wall_hours=round(sum(map(_seconds, trainings)) / 3600, 2),
        machine=config.machine,
        environment=f"{environment.name} ({options})",
        num_parameters=read_num_parameters(folder),
        agent_hash=description["agent_hash"],
        simulator_hash=simulator_hash(folder),
        dataset_hashes=description["provenance"]["inputs"]
        | {"fidelity_dataset": measured["inputs"]["dataset"]},
        num_windows=fidelity.sizes["window"],
        num_levels=len(set(fidelity["level"].to_numpy().tolist())),
        advantages=read_advantages(fidelity),
        scores=read_scores(fidelity),
    )


def _trainings(folder: Path) -> list[Path]:
    """A simulator and, before it, those whose weights its trainings began with."""
    began_with = read_description(folder)["provenance"]["config"]["model_file"]
    return [*([] if began_with is None else _trainings(Path(began_with))), folder]


def _seconds(folder: Path) -> float:
    """Of the training that a simulator comes from, up to it."""
    log = read_log(folder.parent)
    return float(log.loc[log["step"] <= read_description(folder)["step"], "seconds"].iloc[-1])


def _simulator_of_run(run: Path, measured_hash: str, fidelity_file: Path) -> Path:
    saved = [file.parent for file in run.glob(f"model_*/{DESCRIPTION_NAME}")]
    if not saved or not (run / LOG_FILE).is_file():
        raise UserError(f"--run_dir {run}: no run of train_gen_model.py that has saved a simulator")
    for folder in saved:
        if simulator_hash(folder) == measured_hash:
            return folder
    raise UserError(f"--fidelity_dir: {fidelity_file} was measured on no simulator of {run}")


def _draw_fidelity(results: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as figures:
        config = FidelityPlottingConfig(input_dir=results, output_dir=Path(figures), dpi=90)
        plot_fidelity(config, StageReport("fidelity_figures"))
        for name in FIGURES:
            shutil.copy(Path(figures) / name, folder / name)


def main() -> None:
    """Parse the command line, gather, write."""
    config = parse_flags(ShipConfig, DESCRIPTION)
    with stage_report("ship_simulator", config.report) as report:
        card = ship(config)
        report.outputs.append(str(config.out))
        report.metrics["advantages"] = card["advantages"]
        print((config.out / "README.md").read_text())


if __name__ == "__main__":
    run_entry_point(main)
