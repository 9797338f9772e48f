"""Measure how far simulated samples can be trusted, against the real environment."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.checkpoint import load_chosen_agent
from analysis.results import SAMPLE_TRUST_NAME, write_results
from analysis.saliency_interventions import load_interventions
from analysis.sample_source import open_simulated_rollouts
from analysis.sample_trust import to_dataset
from environments.factory import DEFAULT_NUM_THREADS
from experiment.command_line import parse_flags
from experiment.devices import resolve_device
from experiment.errors import UserError, require_at_least, run_entry_point
from experiment.files import require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport, stage_report
from generative.level_bootstrap import LevelBootstrap, ResampledMeans, average_windows
from generative.reality import ReplayPlan, has_reality, record_replays, require_source_of
from generative.recording_identity import recording_identity
from generative.scores import SCORES
from generative.trust import (
    COMPARED,
    AverageErrors,
    RealityScores,
    average_errors,
    compare_with_reality,
    no_reality,
    trust,
)
from rollouts.store import RolloutDataset

DESCRIPTION = """Measure how far simulated samples can be trusted.

Each sample that began in a window of real rollouts is let happen in reality: the environment is
brought back to the window's last frame and given the sample's very actions, and the agent watches.
What the simulator showed is compared with what the environment showed, in pixels and in the eyes
of the agent, beside baselines, with intervals from resampling levels. Every sample gets a trust
score from 0 to 1, NaN where there is no reality to compare with. Writes
GENERATED_DATA_DIR/sample_trust.nc; the replays are a dataset of rollouts of their own."""


@dataclass(frozen=True)
class SampleTrustCommand:
    """Flags of `sample_trust_precompute.py`."""

    generated_data_dir: Path = Path("generative/rec_gen_mod_data/informed_init")
    """Simulated samples, made by record_gen_samples.py."""
    data_dir: Path = Path("data")
    """The real rollouts whose windows set them up; not read where no sample began in a window."""
    agent_file: str | None = None
    """The agent of the samples, as record.py's --model_file takes it; by default the one that they
    name."""
    replay_dir: Path | None = None
    """Where the replays go; by default GENERATED_DATA_DIR/replays. Those that are there already are
    not played again."""
    num_envs: int = 64
    """Environments stepped together; changes the speed only."""
    num_threads: int = DEFAULT_NUM_THREADS
    """Threads that step the environments."""
    batch_size: int = 64
    """Samples compared at a time; changes the speed only."""
    num_resamples: int = 2000
    """Bootstrap resamples of the levels, for the 95% intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N, or gpu for the GPU numbered --gpu_device."""
    gpu_device: int = 0
    """Number of the GPU that `--device gpu` means."""
    report: Path | None = None
    """File for a JSON report of seconds, outputs and metrics."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """What reality says of the samples."""

    scores: RealityScores
    trust: NDArray[np.float64]
    """(num_samples,)"""
    means: ResampledMeans | None = None
    """None where no sample has a counterpart, as `averages`."""
    averages: AverageErrors | None = None


def precompute(config: SampleTrustCommand, report: StageReport) -> Path:
    """Load what the flags name, replay, compare, write; returns the result's path."""
    require_at_least(config, "num_envs", "batch_size", "num_resamples")
    require_at_least(config, "num_threads", least=0)
    device = resolve_device(config.device, config.gpu_device)
    samples = open_simulated_rollouts(config.generated_data_dir)
    require_writable_folder(samples.folder, "--generated_data_dir")
    hashes = {"samples": recording_identity(samples.metadata)}
    if has_reality(samples).any():
        plan = _make_plan(config, samples, device)
        folder = config.replay_dir or samples.folder / "replays"
        averages = average_errors(plan.source)
        record_replays(plan, folder, device)
        replays = RolloutDataset(folder)
        measurement = _measure(config, plan, replays, averages, device)
        report.outputs.append(str(folder))
        hashes |= {
            "agent": plan.agent.hash,
            "dataset": plan.source.hash,
            "replays": replays.hash,
        }
    else:
        scores = no_reality(samples)
        measurement = Measurement(scores, np.full(len(scores.sample_id), np.nan))
    path = samples.folder / SAMPLE_TRUST_NAME
    results = to_dataset(
        measurement.scores, measurement.trust, measurement.means, measurement.averages
    )
    write_results(path, results, collect_provenance(config, config.seed, hashes))
    report.outputs.append(str(path))
    report.metrics.update(_summary(measurement))
    print(_describe(measurement), flush=True)
    return path


def _make_plan(
    config: SampleTrustCommand, samples: RolloutDataset, device: torch.device
) -> ReplayPlan:
    metadata, flag = samples.metadata, f"--generated_data_dir {samples.folder}"
    source = RolloutDataset(config.data_dir)
    require_source_of(samples, source, "--data_dir")
    agent = load_chosen_agent(
        config.agent_file, metadata.agent_file, flag, metadata.environment, device
    )
    if agent.hash != metadata.agent_hash:
        raise UserError(
            f"{flag}: recorded with agent {metadata.agent_hash[:12]}, but {agent.path} is agent "
            f"{agent.hash[:12]}"
        )
    ids = samples.episodes["episode_id"].to_numpy(np.int64)
    interventions = load_interventions(samples, samples.folder, ids, device)
    return ReplayPlan(samples, source, agent, interventions, config.num_envs, config.num_threads)


def _measure(
    config: SampleTrustCommand,
    plan: ReplayPlan,
    replays: RolloutDataset,
    averages: AverageErrors,
    device: torch.device,
) -> Measurement:
    scores = compare_with_reality(
        plan.samples,
        replays,
        plan.agent.policy,
        averages.mean_image,
        plan.interventions,
        config.batch_size,
        device,
    )
    is_compared = scores.level >= 0
    bootstrap = LevelBootstrap(scores.level[is_compared], config.num_resamples, config.seed)
    means = average_windows(scores.scores[:, :, is_compared], bootstrap)
    return Measurement(scores, trust(scores, averages), means, averages)


def _summary(measurement: Measurement) -> dict[str, Any]:
    """Plain numbers for a report."""
    known = measurement.trust[np.isfinite(measurement.trust)]
    summary: dict[str, Any] = {
        "samples": len(measurement.trust),
        "samples_with_trust": len(known),
    }
    if measurement.means is None or not len(known):
        return summary
    mean, names = measurement.means.mean, list(SCORES)
    return {
        **summary,
        "median_trust": round(float(np.median(known)), 4),
        "share_below_one_half": round(float(np.mean(known < 0.5)), 4),
        **{
            f"{name}_by_horizon": {
                compared: np.round(mean[names.index(name), column], 6).tolist()
                for column, compared in enumerate(COMPARED)
            }
            for name in ("mse", "policy_kl")
        },
    }


def _describe(measurement: Measurement) -> str:
    """One line per thing compared, and one on trust."""
    known = measurement.trust[np.isfinite(measurement.trust)]
    lines = [f"trust: {len(known)} of {len(measurement.trust)} samples have a trust score"]
    if measurement.means is None or not len(known):
        return lines[0]
    low, middle, high = np.percentile(known, [25, 50, 75])
    lines[0] += f"; median {middle:.3f}, quartiles {low:.3f} and {high:.3f}"
    for row, (name, meaning) in enumerate(SCORES.items()):
        lines += ["", f"{name}: {meaning}"]
        for compared, values in zip(COMPARED, measurement.means.mean[row], strict=True):
            lines.append(f"{compared:<12s}" + "".join(f"{value:<9.4f}" for value in values))
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, report."""
    config = parse_flags(SampleTrustCommand, DESCRIPTION)
    with stage_report("sample_trust", config.report) as report:
        precompute(config, report)


if __name__ == "__main__":
    run_entry_point(main)
