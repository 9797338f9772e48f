"""Measure how far saliency can be believed, in the simulator and in the real environment."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from agents.player import full_float32
from analysis.results import SALIENCY_TRUST_NAME, write_results
from analysis.saliency_config import SaliencyConfig, TargetSettings
from analysis.saliency_interventions import intervention_key
from analysis.saliency_plan import SaliencyPlan, make_plan
from analysis.saliency_recording import batches_of_plan
from analysis.saliency_trust import (
    FRACTIONS,
    MAPS,
    MODES,
    STEP_SIZES,
    FiniteChanges,
    StabilityOfMaps,
    TrustSettings,
    finite_changes,
    map_stability,
    perturbation_curves,
    real_row,
)
from analysis.saliency_trust_file import TrustMeasurement, to_dataset
from analysis.sample_source import SampleBatch
from experiment.command_line import parse_flags
from experiment.errors import UserError, require_at_least, run_entry_point
from experiment.files import require_writable_folder
from experiment.progress import Progress
from experiment.provenance import collect_provenance
from experiment.report import StageReport, stage_report
from generative.reality import has_reality
from generative.recording_identity import recording_identity
from rollouts.description import METADATA_FILE
from rollouts.independent_units import units_of_episodes
from rollouts.store import RolloutDataset

DESCRIPTION = """Measure how far saliency can be believed.

For the agent's value at one step of simulated samples: how well gradients predict what finite steps
of the latent change, by size of the step; how stable the maps are under noise; and, for samples
that began in real episodes, whether changing the real frame where the map is strongest changes the
real agent's value more than elsewhere (deletion and insertion curves, beside edges and noise).
Needs the replays that analysis/sample_trust_precompute.py makes. Writes
OUTPUT_DIR/saliency_trust.nc."""

FEWEST_COPIES = 3
"""One clean, and two to compare with each other."""


@dataclass(frozen=True)
class SaliencyTrustCommand:
    """Flags of `saliency_trust_precompute.py`."""

    gen_mod_exp_name: str = "test_tgm"
    """Name of the training whose newest simulator is taken when no --model_file is given."""
    model_file: Path | None = None
    """The simulator's folder; by default the newest of generative/results/GEN_MOD_EXP_NAME/."""
    agent_file: str | None = None
    """The agent of the samples; by default the one that they name."""
    generated_data_dir: Path = Path("generative/rec_gen_mod_data/informed_init")
    """Simulated rollouts, made by record_gen_samples.py."""
    replay_dir: Path | None = None
    """Their replays; by default GENERATED_DATA_DIR/replays."""
    output_dir: Path = Path("analysis/saliency_trust")
    """Folder for saliency_trust.nc."""
    sample_ids: tuple[str, ...] = ("0", "to", "100")
    """Samples: a list, or FIRST to END without END."""
    target_step: int = 4
    """Step at which the agent's value is read."""
    saliency_batch_size: int = 9
    """Copies of each sample whose gradients are averaged, at least 3."""
    perturbation_scale: float = 1.25e-4
    """Standard deviation of the noise on the copies of the maps that are taken to reality."""
    num_directions: int = 16
    """Random directions of each step size."""
    num_random_maps: int = 4
    """Maps of noise that the random baseline averages over."""
    batch_size: int | None = None
    """Samples computed together; changes the speed only. Default: 8; on a GPU up to 64, as its free
    memory allows."""
    num_resamples: int = 2000
    """Bootstrap resamples of the episodes, for the 95% intervals."""
    seed: int = 0
    """Seed of directions, noise and bootstrap."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N, or gpu for the GPU numbered --gpu_device."""
    gpu_device: int = 0
    """Number of the GPU that `--device gpu` means."""
    report: Path | None = None
    """File for a JSON report of seconds, outputs and metrics."""

    @property
    def saliency(self) -> SaliencyConfig:
        """The saliency that is judged."""
        return SaliencyConfig(
            gen_mod_exp_name=self.gen_mod_exp_name,
            model_file=self.model_file,
            agent_file=self.agent_file,
            generated_data_dir=self.generated_data_dir,
            projection=None,
            sample_ids=self.sample_ids,
            targets=TargetSettings(
                saliency_func_type=("value",),
                target_steps=(self.target_step,),
                num_sim_steps=self.target_step + 1,
            ),
            saliency_batch_size=self.saliency_batch_size,
            perturbation_scale=self.perturbation_scale,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
            gpu_device=self.gpu_device,
        )

    @property
    def settings(self) -> TrustSettings:
        """What the measurement itself needs."""
        return TrustSettings(self.target_step, self.num_directions, self.num_random_maps, self.seed)


@dataclass(frozen=True, eq=False)
class BatchMeasurement:
    """What is measured of one batch of samples."""

    changes: FiniteChanges
    stability: StabilityOfMaps
    curves: NDArray[np.float64]
    """(S, num_maps, num_modes, num_fractions)"""


def precompute(config: SaliencyTrustCommand, report: StageReport) -> Path:
    """Load what the flags name, measure, write; returns the result's path."""
    _check(config)
    plan = make_plan(config.saliency, "--target_step")
    replays = _open_replays(config, plan)
    folder = require_writable_folder(config.output_dir, "--output_dir")
    found, ids = [], []
    with Progress(len(plan.sample_ids), "sample") as progress, full_float32():
        for batch in batches_of_plan(plan):
            found.append(_measure(plan, batch, replays, config.settings))
            ids.append(batch.ids)
            for _ in batch.ids:
                progress.advance("saliency judged")
    measurement = _join(plan, np.concatenate(ids), found)
    results = to_dataset(measurement, config.num_resamples, config.seed)
    hashes = {
        "agent": plan.source.agent.hash,
        "simulator": plan.source.simulator.hash,
        "generated_dataset": plan.source.dataset.hash,
        **({"replays": replays.hash} if replays is not None else {}),
    }
    path = folder / SALIENCY_TRUST_NAME
    write_results(path, results, collect_provenance(config, config.seed, hashes))
    report.outputs.append(str(path))
    report.metrics.update(_summary(results))
    for name, value in report.metrics.items():
        print(f"{name:<44s} {value}")
    return path


def _check(config: SaliencyTrustCommand) -> None:
    require_at_least(config, "target_step", least=0)
    require_at_least(config, "num_directions", least=2)
    require_at_least(config, "num_random_maps", "num_resamples")
    require_at_least(config, "saliency_batch_size", least=FEWEST_COPIES)


def _open_replays(config: SaliencyTrustCommand, plan: SaliencyPlan) -> RolloutDataset | None:
    """None where no sample began in a real episode, so that there is nothing to replay."""
    folder = config.replay_dir or plan.source.dataset.folder / "replays"
    ids = plan.source.dataset.episodes["episode_id"].to_numpy()
    if not np.isin(ids[has_reality(plan.source.dataset)], plan.sample_ids).any():
        return None
    if not (folder / METADATA_FILE).exists():
        raise UserError(
            f"--replay_dir {folder}: no replays of the samples; make them with: "
            "python analysis/sample_trust_precompute.py"
        )
    replays = RolloutDataset(folder)
    of_samples = replays.metadata.provenance.get("inputs", {}).get("samples")
    if of_samples != recording_identity(plan.source.dataset.metadata):
        raise UserError(f"--replay_dir {folder}: holds replays of other samples")
    return replays


def _measure(
    plan: SaliencyPlan,
    batch: SampleBatch,
    replays: RolloutDataset | None,
    settings: TrustSettings,
) -> BatchMeasurement:
    stability = map_stability(plan, batch, plan.config.copies, settings)
    curves = np.full((len(batch.ids), len(MAPS), len(MODES), len(FRACTIONS)), np.nan)
    replayed = set() if replays is None else set(replays.episodes["episode_id"].tolist())
    for index, sample_id in enumerate(batch.ids.tolist()):
        if replays is None or sample_id not in replayed:
            continue
        replay = replays.read_episode(replays.index_of(sample_id))
        if len(replay) <= settings.target_step:
            continue
        intervention = plan.interventions[intervention_key(replay.info)]
        row = real_row(replay, settings.target_step, intervention, plan.source.device)
        curves[index] = perturbation_curves(
            plan.source.agent.policy, row, stability.averaged[index], sample_id, settings
        )
    return BatchMeasurement(finite_changes(plan, batch, settings), stability, curves)


def _join(
    plan: SaliencyPlan, ids: NDArray[np.int64], found: list[BatchMeasurement]
) -> TrustMeasurement:
    def joined(arrays: Iterable[NDArray]) -> NDArray:
        return np.concatenate(list(arrays))

    return TrustMeasurement(
        sample_id=ids,
        unit=units_of_episodes(plan.source.dataset, ids),
        trust=plan.trust_of(ids, combined=False),
        changes=FiniteChanges(
            predicted=joined(one.changes.predicted for one in found),
            discrete=joined(one.changes.discrete for one in found),
            frozen=joined(one.changes.frozen for one in found),
        ),
        clean_maps=joined(one.stability.clean for one in found),
        to_clean=joined(one.stability.to_clean for one in found),
        halves=joined(one.stability.halves for one in found),
        curves=joined(one.curves for one in found),
    )


def _summary(results: xr.Dataset) -> dict[str, float]:
    """Plain numbers for a report."""
    agreement = results["agreement"].sel(measure="correlation")
    difference = results["area_difference"].sel(group="all", map="simulator", mode="deletion")
    numbers: dict[str, float] = {
        "samples": results.sizes["sample"],
        "samples_with_a_real_row": int(results["group_size"].sel(group="all")),
        "samples_of_poor_trust": int(results["group_size"].sel(group="poor")),
    }
    for size in (STEP_SIZES[0], STEP_SIZES[-1]):
        for simulator in ("frozen", "discrete"):
            value = float(agreement.sel(simulator=simulator, step_size=size))
            numbers[f"correlation_{simulator}_step_{size:g}"] = round(value, 4)
    for baseline in results["baseline"].values:
        value = float(difference.sel(baseline=baseline))
        numbers[f"deletion_area_above_{baseline}"] = round(value, 5)
    return numbers


def main() -> None:
    """Parse the command line, measure, report."""
    config = parse_flags(SaliencyTrustCommand, DESCRIPTION)
    with stage_report("saliency_trust", config.report) as report:
        precompute(config, report)


if __name__ == "__main__":
    run_entry_point(main)
