"""What the agent's hidden state, its components and the simulator's states encode of the game."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from agents.checkpoint import load_chosen_agent
from agents.execution import Execution
from agents.networks import RecurrentPolicy
from analysis.imitation_rows import Imitations, read_imitations
from analysis.partial_correlations import CorrelationTable, correlate
from analysis.probe_names import SIMULATOR_BASELINES
from analysis.probe_results import FoundByProbes, to_dataset
from analysis.probe_rows import (
    BASELINES,
    ProbeRows,
    Readers,
    read_probe_rows,
    require_fitting_block,
    require_game_variables,
    untrained_agent,
)
from analysis.probe_tables import (
    LabelledRows,
    ProbeSettings,
    ProbeTable,
    fit_probes,
    judge_probes,
    leave_out_rare,
    read_simulated,
)
from analysis.probe_targets import ProbeTargets
from analysis.results import PROBE_ANALYSIS_NAME, write_results
from analysis.ridge import MIN_FOLDS
from analysis.simulated_truth import FollowedRows, follow
from environments.coinrun_variables import SIGHT
from experiment.counts import at_most_available
from experiment.devices import resolve_device
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport
from projections.hidden import HiddenProjection
from rollouts.store import RolloutDataset


@dataclass(frozen=True)
class RowSettings:
    """Which decisions are looked at, and as what."""

    num_episodes: int = 1000
    """Real episodes, drawn at random."""
    max_rows: int = 50_000
    """At most about so many of their decisions, drawn at random."""
    max_distance: float = SIGHT
    """Cells along x or y from which on a thing counts as out of sight."""
    pixel_block: int = 8
    """Side, in pixels, of the blocks that the pixel baseline averages; 1 for every pixel."""
    untrained: bool = True
    """Whether to compare with an agent of random weights, which has to see every frame."""


@dataclass(frozen=True)
class ProbeAnalysisConfig:
    """Flags of `probe_analysis_precompute.py`."""

    interpreting_params_name: str = "defaults"
    """Preset in hyperparams/probe_analysis.yml that the other values are taken from."""
    data_dir: Path = Path("data")
    """Real rollouts with game variables, made by record.py; better of held-out levels."""
    generated_data_dir: Path = Path("generative/rec_gen_mod_data/recorded_actions")
    """Samples that windows of DATA_DIR set up, made by record_gen_samples.py --recorded_actions;
    where the default folder is absent, the analysis goes without."""
    generated: bool = True
    """Whether to include simulated rollouts."""
    projection: Path = Path("analysis/hx_analysis_precomp/projection")
    """The fitted projection whose components are tested."""
    agent_file: str | None = None
    """The agent, whose shape the untrained one has, as record.py's --model_file takes it; by
    default the one that DATA_DIR names."""
    output_dir: Path = Path("analysis/probe_analysis_precomp")
    """Folder for probe_analysis.nc."""
    rows: Annotated[RowSettings, tyro.conf.arg(name="")] = field(default_factory=RowSettings)
    probes: Annotated[ProbeSettings, tyro.conf.arg(name="")] = field(default_factory=ProbeSettings)
    seed: int = 0
    """Seed of every random choice."""
    device: str = "auto"
    """Where the untrained agent runs: auto, cpu, gpu, cuda, cuda:N."""
    gpu_device: int = 0
    """Which CUDA device `--device gpu` means."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


@dataclass(frozen=True, eq=False)
class _Inputs:
    real: RolloutDataset
    simulated: RolloutDataset | None
    followed: FollowedRows | None
    readers: Readers

    @property
    def hashes(self) -> dict[str, str]:
        found = {
            "agent": self.real.metadata.agent_hash,
            "dataset": self.real.hash,
            "projection": self.readers.projection.data_hash,
        }
        if self.simulated is not None:
            found["generated_dataset"] = self.simulated.hash
        return found


def analyse_by_probes(config: ProbeAnalysisConfig, report: StageReport) -> Path:
    """Fit probes, test components, write the result file; returns its path.

    Raises:
        UserError: a dataset, the projection or the agent is missing or does not fit the others,
            senseless numbers, or an output folder that cannot be written.
    """
    inputs = _open_inputs(config)
    provenance = collect_provenance(config, config.seed, inputs.hashes)
    rows = read_probe_rows(
        inputs.real,
        inputs.readers,
        config.rows.max_distance,
        config.rows.num_episodes,
        config.rows.max_rows,
        config.seed,
    )
    _require_levels(rows, config)
    found = _find(rows, inputs, config)
    path = config.output_dir / PROBE_ANALYSIS_NAME
    write_results(path, to_dataset(found), provenance)
    print(found.summary(), flush=True)
    report.outputs.append(str(path))
    report.metrics |= found.metrics()
    return path


def _open_inputs(config: ProbeAnalysisConfig) -> _Inputs:
    _check_numbers(config)
    device = resolve_device(config.device, config.gpu_device)
    real = RolloutDataset(config.data_dir)
    require_game_variables(real, "--data_dir")
    require_fitting_block(real.metadata.environment.obs_shape, config.rows.pixel_block)
    projection = HiddenProjection.load(config.projection)
    first, last = real.metadata.hidden_slice
    if len(projection.mean_) != last - first:
        raise UserError(
            f"--projection {config.projection}: of {len(projection.mean_)} hidden units, the agent "
            f"of {config.data_dir} has {last - first}"
        )
    simulated = _open_simulated(config)
    followed = None if simulated is None else follow(simulated, real, "--generated_data_dir")
    untrained = _untrained(config, real, device) if config.rows.untrained else None
    require_writable_folder(config.output_dir, "--output_dir")
    readers = Readers(projection, config.rows.pixel_block, untrained)
    return _Inputs(real, simulated, followed, readers)


def _check_numbers(config: ProbeAnalysisConfig) -> None:
    require_at_least(config.rows, "num_episodes", "max_rows")
    require_at_least(config.probes, "num_folds", least=MIN_FOLDS)
    require_at_least(config.probes, "num_shuffles", "max_features", "min_levels")
    require_at_least(config.probes, "num_resamples", least=10)
    require_at_least(config.probes.perceptron, "mlp_units", "mlp_epochs", "mlp_batch_size")


def _open_simulated(config: ProbeAnalysisConfig) -> RolloutDataset | None:
    folder = config.generated_data_dir
    if not config.generated:
        return None
    if folder == ProbeAnalysisConfig.generated_data_dir and not folder.exists():
        print(f"no simulated rollouts in {folder}: only real ones are analysed")
        return None
    return RolloutDataset(folder)


def _untrained(
    config: ProbeAnalysisConfig, real: RolloutDataset, device: torch.device
) -> Execution | None:
    metadata, source = real.metadata, f"--data_dir {config.data_dir}"
    agent = load_chosen_agent(
        config.agent_file, metadata.agent_file, source, metadata.environment, device
    )
    if agent.hash != metadata.agent_hash:
        raise UserError(
            f"--agent_file {agent.path}: agent {agent.hash[:12]}, but {config.data_dir} was "
            f"recorded with agent {metadata.agent_hash[:12]}"
        )
    if not isinstance(agent.policy, RecurrentPolicy):
        kind = type(agent.policy).__name__
        print(f"no untrained agent to compare with: a {kind} cannot be made anew")
        return None
    return untrained_agent(agent.policy.config, config.seed, device)


def _require_levels(rows: ProbeRows, config: ProbeAnalysisConfig) -> None:
    """Raise `UserError` for too few levels; with fewer than folds, say that each is a fold."""
    num_levels = len(np.unique(rows.level))
    if num_levels < MIN_FOLDS:
        raise UserError(
            f"--data_dir {config.data_dir}: {num_levels} levels are read, expected at least "
            f"{MIN_FOLDS}, each to be predicted from the others"
        )
    at_most_available(config.probes.num_folds, num_levels, "--num_folds")


def _find(rows: ProbeRows, inputs: _Inputs, config: ProbeAnalysisConfig) -> FoundByProbes:
    targets = _known_often(rows, config)
    labelled = LabelledRows(rows.representations, targets, rows.level)
    fitted = fit_probes(labelled, config.probes, config.seed)
    table = judge_probes(labelled, fitted, config.probes, config.seed, BASELINES)
    correlations = _correlate(labelled, rows.step, config)
    if inputs.simulated is None or inputs.followed is None:
        return FoundByProbes(targets, table, correlations, None, None)
    found = read_imitations(
        inputs.real, inputs.simulated, inputs.followed, inputs.readers, config.rows.max_distance
    )
    reading = read_simulated(
        fitted, rows.level, found.real, found.simulated, found.step, config.probes, config.seed
    )
    simulator = _judge_simulator(found, config)
    return FoundByProbes(targets, table, correlations, reading, simulator)


def _judge_simulator(found: Imitations, config: ProbeAnalysisConfig) -> ProbeTable:
    """New probes of the simulator's states and of their baselines, all on the same rows."""
    targets, level = found.real.targets, found.real.level
    rows = LabelledRows(
        found.states, leave_out_rare(targets, level, config.probes.min_levels), level
    )
    fitted = fit_probes(rows, config.probes, config.seed)
    return judge_probes(rows, fitted, config.probes, config.seed, SIMULATOR_BASELINES)


def _known_often(rows: ProbeRows, config: ProbeAnalysisConfig) -> ProbeTargets:
    targets = leave_out_rare(rows.targets, rows.level, config.probes.min_levels)
    if not np.isfinite(targets.values).any():
        raise UserError(
            f"--min_levels {config.probes.min_levels}: no variable is known in so many of the "
            f"{len(np.unique(rows.level))} levels of {config.data_dir} that are read"
        )
    return targets


def _correlate(
    rows: LabelledRows, step: NDArray[np.int64], config: ProbeAnalysisConfig
) -> CorrelationTable:
    return correlate(
        rows.representations["components"],
        rows.targets.values,
        step[:, None].astype(np.float64),
        rows.level,
        config.probes.min_levels,
        config.probes.num_resamples,
        config.seed,
    )
