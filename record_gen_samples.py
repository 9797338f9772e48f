"""Let agent and simulator dream together, and keep their rollouts."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from agents.checkpoint import LoadedAgent, load_agent, load_chosen_agent
from agents.intervention_choice import load_intervention
from agents.intervention_strength import write_strength
from environments.factory import environment_name
from experiment.command_line import parse_command_line
from experiment.devices import resolve_device
from experiment.errors import UserError, require_at_least, run_entry_point
from experiment.files import require_writable_folder
from experiment.report import stage_report
from generative.checkpoint import (
    LoadedSimulator,
    load_simulator,
    newest_simulator,
    read_environment,
)
from generative.reference_flags import ReferenceFlags
from generative.sample_actions import ActionSource, RecordedActions, manual_actions
from generative.sample_starts import (
    GivenStarts,
    InformedStarts,
    InterpolatedStarts,
    RandomStarts,
    StartSource,
)
from generative.sample_videos import write_sample_videos
from generative.sampling import SamplingConfig, SamplingPlan, missing_samples, record_samples
from projections.intervention_flags import (
    InterventionConfig,
    require_steps_within,
    twin_folder,
)
from rollouts.description import METADATA_FILE, read_metadata
from rollouts.store import RolloutDataset


@dataclass(frozen=True)
class RecordSamplesConfig:
    """Flags of `record_gen_samples.py`."""

    gen_mod_exp_name: str = "test_tgm"
    """Name of the training whose newest simulator is taken when no --model_file is given."""
    model_file: Path | None = None
    """The simulator's folder; by default the newest of generative/results/GEN_MOD_EXP_NAME/."""
    agent_file: str | None = None
    """The agent the simulator was trained with, as record.py's --model_file takes it; by default
    the one that recorded DATA_DIR."""
    data_dir: Path = Path("data")
    """Real rollouts, whose windows set up the simulator; otherwise they only name the agent, where
    no --agent_file does."""
    generated_data_dir: Path | None = None
    """Where the dataset goes; by default generative/rec_gen_mod_data/informed_init, rand_init,
    interpolated_init or given_init, as --initialisation says. A dataset of the same settings is
    continued."""
    data_save_dir: Path | None = None
    """The same as --generated_data_dir, and stronger."""
    interpreting_params_name: str = "defaults"
    """Preset of hyperparams/sampling.yml: defaults (full size), demo, tiny."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(
        default_factory=SamplingConfig
    )
    """How many samples, from where, and how they are drawn."""
    intervention: Annotated[InterventionConfig, tyro.conf.arg(name="")] = field(
        default_factory=InterventionConfig
    )
    """Interventions on the agent's hidden state."""
    num_videos: int = 0
    """Also write this many samples as MP4, to DATA_SAVE_DIR/videos, and each way between two
    windows that they are on, its points side by side."""
    env_name: str | None = None
    """Refuse a simulator of another game; by default the simulator's own is taken."""
    device: str = "auto"
    """Where the networks run: auto, cpu, gpu, cuda, cuda:N."""
    gpu_device: int = 0
    """Which CUDA device `--device gpu` means."""
    report: Path | None = None
    """Write seconds, outputs and metrics to this JSON file."""
    unused: Annotated[ReferenceFlags, tyro.conf.arg(name="")] = field(
        default_factory=ReferenceFlags
    )
    """Flags of the reference system without effect here."""

    @property
    def output_folder(self) -> Path:
        """Where the dataset goes."""
        start = {"random": "rand_init"}.get(
            self.sampling.start_kind, f"{self.sampling.start_kind}_init"
        )
        default = Path("generative/rec_gen_mod_data") / start
        return self.data_save_dir or self.generated_data_dir or default


def make_plan(config: RecordSamplesConfig) -> SamplingPlan:
    """Load what the flags name; every mistake in them is found here, before any work."""
    device = resolve_device(config.device, config.gpu_device)
    dataset = RolloutDataset(config.data_dir) if config.sampling.needs_windows else None
    model_file = config.model_file or newest_simulator(config.gen_mod_exp_name)
    agent = _load_agent(config, model_file, device)
    simulator = load_simulator(model_file, agent, device)
    imitated = environment_name(simulator.environment)
    if config.env_name not in (None, imitated):
        raise UserError(
            f"--env_name {config.env_name}: the simulator {model_file} imitates {imitated}"
        )
    source = make_starts(config.sampling, dataset, simulator)
    actions = make_actions(config.sampling, source, simulator)
    return SamplingPlan(simulator, agent, source, config.sampling, actions)


def make_starts(
    sampling: SamplingConfig, dataset: RolloutDataset | None, simulator: LoadedSimulator
) -> StartSource:
    """Where the flags let samples begin; `dataset` is needed where they begin in windows."""
    if dataset is None:
        if sampling.start_kind == "random":
            return RandomStarts(sampling.seed)
        if sampling.latent_file is None:
            raise UserError("--initialisation given: needs --latent_file")
        return GivenStarts(sampling.latent_file, simulator)
    windows = InformedStarts(dataset, simulator, sampling.seed)
    if sampling.start_kind == "informed":
        return windows
    require_at_least(sampling, "interpolation_points", least=2)
    return InterpolatedStarts(windows, sampling.interpolation_points)


def make_actions(
    sampling: SamplingConfig, source: StartSource, simulator: LoadedSimulator
) -> ActionSource | None:
    """The actions that the flags put in place of the agent's own."""
    if sampling.recorded_actions and sampling.manual_actions:
        raise UserError("--recorded_actions: not together with --manual_actions")
    if sampling.manual_actions:
        return manual_actions(sampling.manual_actions, simulator.environment)
    if not sampling.recorded_actions:
        return None
    if not isinstance(source, InformedStarts):
        raise UserError("--recorded_actions: only samples that start in windows have any")
    return RecordedActions(source, simulator.environment)


def _load_agent(config: RecordSamplesConfig, model_file: Path, device: torch.device) -> LoadedAgent:
    """The agent of the flags, or that which DATA_DIR names."""
    environment = read_environment(model_file)
    if config.agent_file is not None:
        return load_agent(config.agent_file, device, environment)
    if not (config.data_dir / METADATA_FILE).is_file():
        raise UserError(
            f"--agent_file: none given, and --data_dir {config.data_dir} holds no rollouts that "
            "would name the agent; give either"
        )
    recorded = read_metadata(config.data_dir).agent_file
    return load_chosen_agent(None, recorded, f"--data_dir {config.data_dir}", environment, device)


def main() -> None:
    """Record the samples, and where an intervention is asked for, its unmodified twin."""
    config = parse_command_line(
        RecordSamplesConfig,
        "Roll the simulator forward with the agent inside, from windows of real rollouts or from "
        "random latents, and keep the simulated rollouts.",
        preset_flag="interpreting_params_name",
        preset_file="sampling.yml",
    )
    plan = make_plan(config)
    if config.num_videos > 0:
        plan.simulator.environment.require_images("--num_videos")
    intervention = load_intervention(config.intervention, plan.agent, plan.device)
    folder = config.output_folder
    recordings = {folder: plan}
    if intervention is not None:
        num_rows = plan.config.num_sim_steps
        require_steps_within(config.intervention, num_rows, f"--num_sim_steps {num_rows}")
        twin = twin_folder(folder)
        recordings[folder] = replace(plan, intervention=intervention, twin_dataset=twin.name)
        recordings[twin] = plan
    for destination, recording in recordings.items():
        missing_samples(recording, destination)
        require_writable_folder(destination, "--data_save_dir")
    with stage_report("record_gen_samples", config.report) as report:
        for destination, recording in recordings.items():
            summary = record_samples(recording, destination)
            write_sample_videos(destination, config.num_videos)
            report.outputs.append(str(destination))
            metrics = asdict(summary)
            report.metrics.update(metrics if destination == folder else {"twin": metrics})
        if intervention is not None:
            strength = write_strength(plan.agent.policy, folder, plan.device)
            report.metrics["intervention"] = asdict(strength)


if __name__ == "__main__":
    run_entry_point(main)
