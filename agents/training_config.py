"""What can be chosen of a training, and which settings hold when a run goes on."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from agents.execution import Precision
from agents.networks import NetworkConfig
from agents.ppo import PPOConfig, require_usable
from environments.factory import EnvironmentConfig
from environments.protocol import TRAINING_LEVELS, EnvironmentSpec
from experiment.command_line import apply_values
from experiment.errors import UserError, require_at_least
from experiment.runs import choose_seed, new_run_path, read_run_config

OPERATIONAL = (
    "device",
    "gpu_device",
    "log_level",
    "run_dir",
    "resume",
    "export_dir",
    "report",
    "save_every_seconds",
    "keep_last",
    "cuda_graphs",
    "environment.num_threads",
)
"""Settings that may differ between the processes of one run: they do not change what it does.
`device` changes the rounding, and from a CPU to CUDA `--precision auto` becomes bf16: a run that
goes on under another is not the same to the bit."""


@dataclass(frozen=True)
class NetworkOptions:
    """What can be chosen of the network; the rest follows from the environment."""

    width: float = 1.0
    """Multiplier of the convolutions' 16, 32 and 32 channels."""
    num_features: int = 64
    """Size of the feature vector, and of the recurrent state."""
    recurrent: bool = True
    """Whether a GRU follows the features; without it the agent sees one frame at a time."""


@dataclass(frozen=True)
class TrainingConfig:
    """Train an agent with PPO."""

    exp_name: str = "test"
    """Name of the experiment: part of the default run folder."""
    param_name: str = "easy-200"
    """Preset in hyperparams/agents.yml; flags override its values."""
    environment: Annotated[EnvironmentConfig, tyro.conf.arg(name="")] = field(
        default_factory=EnvironmentConfig
    )
    network: Annotated[NetworkOptions, tyro.conf.arg(name="")] = field(
        default_factory=NetworkOptions
    )
    ppo: Annotated[PPOConfig, tyro.conf.arg(name="")] = field(default_factory=PPOConfig)
    num_timesteps: int = 25_000_000
    """Environment steps to train for, rounded up to whole updates."""
    max_minutes: float | None = None
    """Also stop after this wall time. The schedules then follow whichever is further, steps or
    time, so that they always end as planned; how many steps fit depends on the machine, so that
    only runs without a limit are reproducible."""
    num_checkpoints: int = 1
    """Agents to keep, evenly spaced, by steps or by --max_minutes; the last is the trained one."""
    model_file: str | None = None
    """Agent whose weights to begin with: an agent folder or a reference `.pth`."""
    seed: int | None = None
    """Seed of everything random; by default drawn from 0 to 9999."""
    eval_every: int = 50
    """Updates between two evaluations on held-out levels; 0 evaluates at the end only."""
    eval_episodes: int = 128
    """Held-out levels played in an evaluation, each exactly once; 0 switches evaluation off."""
    save_every_seconds: float = 120.0
    """How often the state is saved from which a killed training goes on."""
    keep_last: int = 2
    """Such states to keep; where the newest is damaged, the training goes on from an older one."""
    precision: Precision = "auto"
    """float32, or bf16 for the convolutions with everything else in float32; auto is bf16 on CUDA
    and float32 on a CPU."""
    cuda_graphs: bool = True
    """On CUDA, launch steps of playing and of learning as CUDA graphs. Several processes learn
    together by plain launches where the agent is feed-forward."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N, or gpu for the GPU numbered --gpu_device. Under torchrun every
    process takes a GPU of its own."""
    gpu_device: int = 0
    """Number of the GPU that `--device gpu` means."""
    log_level: int = 40
    """Accepted for compatibility; it has no effect."""
    run_dir: Path | None = None
    """Run folder; continued if it holds a run with the same settings. By default
    logs/procgen/ENV_NAME/EXP_NAME/seed_SEED_TIME."""
    resume: Path | None = None
    """Run folder to go on with, under the settings saved there."""
    export_dir: Path | None = None
    """Folder to which the trained agent is copied at the end."""
    report: Path | None = None
    """File for a JSON report of seconds, outputs and metrics."""


def resolve_settings(config: TrainingConfig) -> TrainingConfig:
    """Settings of the run to go on with, or the given ones with a seed."""
    if config.resume is not None:
        config = settings_of_run(config, config.resume)
    require_usable(config.ppo)
    require_at_least(config, "num_timesteps", "num_checkpoints", "keep_last")
    require_at_least(config, "eval_every", "eval_episodes", "save_every_seconds", least=0)
    _require_training_levels(config.environment)
    if config.max_minutes is not None and config.max_minutes <= 0:
        raise UserError(f"--max_minutes {config.max_minutes}: must be positive")
    return dataclasses.replace(config, seed=choose_seed(config.seed, config.run_dir))


def _require_training_levels(environment: EnvironmentConfig) -> None:
    start_level, num_levels = environment.start_level, environment.num_levels
    if start_level + (num_levels or TRAINING_LEVELS) > TRAINING_LEVELS:
        raise UserError(
            f"--start_level {start_level} --num_levels {num_levels}: levels from "
            f"{TRAINING_LEVELS} on are held out; with --start_level, give a --num_levels that "
            "ends before them"
        )


def settings_of_run(config: TrainingConfig, folder: Path) -> TrainingConfig:
    """The settings of the run in `folder`, with what may differ from process to process as given.

    Raises:
        UserError: no run there, or one with a setting that is unknown.
    """
    saved = read_run_config(folder, "--resume")
    settings = {name: value for name, value in saved.items() if name not in OPERATIONAL}
    restored = apply_values(TrainingConfig, settings, str(folder))
    given = {name: getattr(config, name) for name in OPERATIONAL if "." not in name}
    environment = dataclasses.replace(
        restored.environment, num_threads=config.environment.num_threads
    )
    return dataclasses.replace(restored, **{**given, "run_dir": folder, "environment": environment})


def run_path(config: TrainingConfig) -> Path:
    """The run folder asked for, or a new one where the reference system has it."""
    assert config.seed is not None
    if config.run_dir is not None:
        return config.run_dir
    parent = Path("logs") / "procgen" / config.environment.env_name / config.exp_name
    return new_run_path(parent, config.seed)


def network_config(config: TrainingConfig, spec: EnvironmentSpec) -> NetworkConfig:
    """The network for an environment: what was chosen, and what follows from the frames."""
    spec.require_images("training an agent")
    height, width, channels = spec.obs_shape
    return NetworkConfig(
        **dataclasses.asdict(config.network),
        obs_shape=(height, width, channels),
        num_actions=spec.num_actions,
    )
