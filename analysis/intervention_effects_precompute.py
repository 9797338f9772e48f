"""Measure what an intervention does, in simulation and in reality, against controls."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from agents.checkpoint import load_chosen_agent
from analysis.clustering import Clustering
from analysis.effect_names import TWIN, World
from analysis.effect_recording import (
    EffectInputs,
    EffectRecordingConfig,
    check_variants,
    levels_of_pairs,
    record_variants,
    sampling_plan,
)
from analysis.effect_verdict import describe
from analysis.intervention_effects import (
    BehaviourClusters,
    Measuring,
    WorldEffects,
    measure_world,
    to_dataset,
)
from analysis.paired_rows import ActionGroups, MeasureNames
from analysis.results import (
    HIDDEN_ANALYSIS_NAME,
    INTERVENTION_EFFECTS_NAME,
    SOURCES,
    read_results,
    write_results,
)
from experiment.command_line import parse_command_line
from experiment.devices import resolve_device
from experiment.errors import UserError, require_at_least, run_entry_point
from experiment.files import require_writable_folder
from experiment.provenance import collect_provenance
from experiment.report import StageReport, stage_report
from generative.checkpoint import load_simulator, newest_simulator, read_environment
from generative.level_bootstrap import LevelBootstrap
from projections.hidden import HiddenProjection, load_fitting_projection
from projections.intervention_flags import (
    NAMES_OF_FLAGS,
    InterventionConfig,
    direction_choice,
    require_steps_within,
)
from rollouts.store import RolloutDataset

FEW_LEVELS = 10
MAX_CLUSTER_ROWS = 20_000
"""Real rows that a row's cluster is looked up among."""
DESCRIPTION = """Measure what an intervention on the agent's hidden state does.

The intervention that the flags describe, its unmodified twin and its controls (the changes with the
sign reversed, and as large along random directions) are recorded from the same starts, in the
simulator and in the real environment. Then: what the heads' weights and the simulator's gradients
predict, what is observed in either world, and how much of it random directions do as well, with
95% intervals from resampling levels. Writes OUTPUT_DIR/intervention_effects.nc and prints a
verdict; recordings are kept in OUTPUT_DIR, and what is there already is not recorded again."""


@dataclass(frozen=True)
class InterventionEffectsCommand:
    """Flags of `intervention_effects_precompute.py`."""

    interpreting_params_name: str = "defaults"
    """Preset of hyperparams/intervention_effects.yml: defaults, demo, tiny."""
    data_dir: Path = Path("data")
    """Dataset of real rollouts, made by record.py, whose rows are the starts."""
    gen_mod_exp_name: str = "test_tgm"
    """Name of the training whose newest simulator is taken when no --model_file is given."""
    model_file: Path | None = None
    """The simulator's folder; by default the newest of generative/results/GEN_MOD_EXP_NAME/."""
    agent_file: str | None = None
    """The agent, as record.py's --model_file takes it; by default the one that recorded DATA_DIR.
    """
    output_dir: Path = Path("analysis/intervention_effects")
    """Folder for the result and the recordings; one for each intervention."""
    intervention: Annotated[InterventionConfig, tyro.conf.arg(name="")] = field(
        default_factory=InterventionConfig
    )
    """The intervention; its controls need no flag."""
    recording: Annotated[EffectRecordingConfig, tyro.conf.arg(name="")] = field(
        default_factory=EffectRecordingConfig
    )
    """How much is recorded, and which controls."""
    gradients: bool = True
    """Whether to predict by the simulator's gradients, which takes about as long as one recording
    in the simulator for each variant."""
    num_resamples: int = 1000
    """Bootstrap resamples of the levels, for the 95% intervals."""
    seed: int = 0
    """Decides starts and draws; random control r has the seed r."""
    device: str = "auto"
    """Where the networks run: auto, cpu, gpu, cuda, cuda:N."""
    gpu_device: int = 0
    """Which CUDA device `--device gpu` means."""
    report: Path | None = None
    """Write seconds, outputs and metrics to this JSON file."""


def precompute(config: InterventionEffectsCommand, report: StageReport) -> Path:
    """Measure what the flags ask for and print the verdict; returns the result's path.

    Raises:
        UserError: see `measure_effects`.
    """
    path = measure_effects(config)
    report.outputs.append(str(path))
    with read_results(path) as results:
        report.metrics["verdict"] = describe(results)
    print(report.metrics["verdict"], flush=True)
    return path


def measure_effects(config: InterventionEffectsCommand) -> Path:
    """Load what the flags name, record, measure, write; returns the result's path.

    Raises:
        UserError: flags that do not go together, or files that do not fit, before any recording.
    """
    require_at_least(config, "num_resamples", least=100)
    _check_intervention(config)
    inputs = _load(config)
    measuring = _measuring(inputs)
    check_variants(inputs)
    require_writable_folder(config.output_dir, "--output_dir")
    recordings = record_variants(inputs)
    levels = levels_of_pairs(recordings["simulated"].datasets[TWIN], inputs.source)
    bootstrap = LevelBootstrap(levels, config.num_resamples, config.seed)
    if bootstrap.num_levels < FEW_LEVELS:
        print(f"only {bootstrap.num_levels} levels: the intervals are too narrow to be believed")
    plan = sampling_plan(inputs, TWIN) if config.gradients else None
    effects: dict[World, WorldEffects] = {
        world: measure_world(
            found, measuring, bootstrap, world, plan if world == "simulated" else None
        )
        for world, found in recordings.items()
    }
    hashes = {
        "agent": inputs.agent.hash,
        "simulator": inputs.simulator.hash,
        "dataset": inputs.source.hash,
        "projection": measuring.projection.data_hash,
    }
    results = to_dataset(effects, recordings, measuring.names, levels)
    path = config.output_dir / INTERVENTION_EFFECTS_NAME
    write_results(path, results, collect_provenance(config, config.seed, hashes))
    return path


def _check_intervention(config: InterventionEffectsCommand) -> None:
    asked, recording = config.intervention, config.recording
    if not asked.is_asked_for:
        raise UserError(f"no intervention is asked for (--{NAMES_OF_FLAGS})")
    for name in ("intervention_control", "control_seed", "control_norm_of", "control_spares"):
        if getattr(asked, name) != InterventionConfig.__dataclass_fields__[name].default:
            raise UserError(
                f"--{name}: controls are recorded by themselves here; --num_random_controls, "
                "--random_control and --control_components say which"
            )
    if recording.control_components is not None and asked.direction_type not in ("ica", "nmf"):
        raise UserError(
            f"--control_components {recording.control_components}: goes with components of the "
            f"projection (--direction_type ica or nmf), found {asked.direction_type}"
        )
    if direction_choice(asked).projection is None:
        raise UserError(
            f"--projection: needed with --direction_type {asked.direction_type} too, for the "
            "components whose change is measured"
        )
    rows = recording.num_sim_steps
    require_steps_within(asked, rows, f"--num_sim_steps {rows}")


def _load(config: InterventionEffectsCommand) -> EffectInputs:
    device = resolve_device(config.device, config.gpu_device)
    source = RolloutDataset(config.data_dir)
    model_file = config.model_file or newest_simulator(config.gen_mod_exp_name)
    agent = load_chosen_agent(
        config.agent_file,
        source.metadata.agent_file,
        f"--data_dir {config.data_dir}",
        read_environment(model_file),
        device,
    )
    return EffectInputs(
        agent,
        load_simulator(model_file, agent, device),
        source,
        config.intervention,
        config.recording,
        config.output_dir,
        config.seed,
        device,
    )


def _measuring(inputs: EffectInputs) -> Measuring:
    policy = inputs.agent.policy
    folder = Path(str(direction_choice(inputs.intervention).projection))
    projection = load_fitting_projection(folder, policy.hidden_slice)
    clusters = load_clusters(folder.parent / HIDDEN_ANALYSIS_NAME, projection)
    names = MeasureNames(
        ActionGroups.of(inputs.source.metadata.environment),
        projection.n_components_,
        0 if clusters is None else clusters.clustering.num_clusters,
    )
    return Measuring(policy, projection, clusters, names, inputs.recording.num_sim_steps)


def load_clusters(path: Path, projection: HiddenProjection) -> BehaviourClusters | None:
    """The clusters that were found together with the projection; None where `path` is absent.

    Raises:
        UserError: the clusters were found with another projection.
    """
    if not path.is_file():
        print(f"no {path}: effects on behaviour clusters are left out")
        return None
    with read_results(path) as results:
        if results.attrs["projection_data_hash"] != projection.data_hash:
            raise UserError(
                f"{path}: of another projection than the one beside it; make both again with: "
                "python analysis/hidden_analysis_precompute.py"
            )
        # Clusters were found in so many components; the file keeps --num_pca of them.
        num_features = min(int(results.attrs["num_components_95"]), results.sizes["pca_component"])
        # A row's cluster is that of the nearest real row; evenly spaced ones are near enough.
        real = np.flatnonzero(results["source"].values == SOURCES.index("real"))
        rows = real[np.unique(np.linspace(0, len(real) - 1, MAX_CLUSTER_ROWS).astype(int))]
        features = results["pca"].values[rows, :num_features]
        labels = results["cluster"].values[rows]
    clustering = Clustering(np.asarray(features, np.float32), labels.astype(np.int32))
    return BehaviourClusters(clustering, projection, num_features)


def main() -> None:
    """Parse the command line, record, measure, report."""
    config = parse_command_line(
        InterventionEffectsCommand,
        DESCRIPTION,
        preset_flag="interpreting_params_name",
        preset_file="intervention_effects.yml",
    )
    with stage_report("intervention_effects", config.report) as report:
        precompute(config, report)


if __name__ == "__main__":
    run_entry_point(main)
