"""Training an agent: the run folder, the loop, the log, evaluation on held-out levels."""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from agents.checkpoint import load_agent, require_recurrent_policy, save_agent
from agents.collection import Collector
from agents.evaluation import Evaluation, evaluate, held_out_levels
from agents.networks import NetworkConfig, RecurrentPolicy, make_policy
from agents.ppo import PPOConfig, PPOLearner, require_usable
from environments.factory import EnvironmentConfig, environment_spec, make_environment
from environments.protocol import TRAINING_LEVELS, EnvironmentSpec, VectorEnvironment
from experiment.command_line import apply_values
from experiment.devices import resolve_device
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.progress import Progress
from experiment.provenance import collect_provenance
from experiment.randomness import keyed_uniform, seed_everything
from experiment.report import StageReport
from experiment.runs import (
    MetricLog,
    RunFolder,
    SaveClock,
    StopRequest,
    choose_seed,
    exit_stopped,
    export_folder,
    load_training_state,
    new_run_path,
    open_run,
    read_run_config,
    save_training_state,
    share_done,
    stop_on_signals,
)

EVALUATION_SLOTS = 32

EPISODE_COLUMNS = tuple(
    f"{statistic}_episode_{quantity}"
    for quantity in ("rewards", "len")
    for statistic in ("max", "mean", "min", "std")
)
LOG_COLUMNS = (
    "timesteps",
    "wall_time",
    "num_episodes",
    "num_episodes_val",
    *EPISODE_COLUMNS,
    "mean_episode_value",
    "mean_policy_loss",
    "mean_value_loss",
    "mean_entropy_loss",
    *(f"val_{name}" for name in EPISODE_COLUMNS),
)
"""Columns of `log.csv`: the reference's, plus standard deviations over episodes. The columns
`val_*` are filled in the rows after whose update the agent was evaluated on held-out levels."""

OPERATIONAL = (
    "device",
    "gpu_device",
    "log_level",
    "run_dir",
    "resume",
    "export_dir",
    "report",
    "save_every_seconds",
    "environment.num_threads",
)
"""Settings that may differ between the processes of one run: they do not change its result."""


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
    """Agents to keep, evenly spaced; the last is the trained one."""
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
    device: str = "auto"
    """auto, cpu, cuda, cuda:N, or gpu for the GPU numbered --gpu_device."""
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


def train(config: TrainingConfig, report: StageReport) -> Path:
    """Train, or go on training, until the steps are done; returns the final agent's folder.

    Asked to stop by a signal, it saves its state and leaves with `STOPPED_EXIT_CODE`.

    Raises:
        UserError: settings, files or devices with which no training is possible.
    """
    config = _resolve(config)
    device = resolve_device(config.device, config.gpu_device)
    spec = environment_spec(config.environment)
    policy, inputs = _initial_policy(config, spec)
    environments = make_groups(config)
    if config.export_dir is not None:
        require_writable_folder(config.export_dir.absolute().parent, "--export_dir")
    run = open_run(_run_path(config), config, OPERATIONAL, inputs)
    print(f"run folder: {run.path}", flush=True)
    trainer = Trainer(config, run, policy.to(device), environments, inputs)
    try:
        with stop_on_signals() as stop:
            agent = trainer.run(stop)
    finally:
        trainer.close()
    report.earlier_seconds = trainer.earlier_seconds
    report.metrics.update(trainer.metrics())
    if config.export_dir is not None:
        report.outputs.append(str(export_folder(agent, config.export_dir)))
    report.outputs.append(str(agent))
    return agent


class Trainer:
    """The loop: play, learn, log, now and then evaluate and save."""

    def __init__(
        self,
        config: TrainingConfig,
        run: RunFolder,
        policy: RecurrentPolicy,
        environments: list[VectorEnvironment],
        inputs: Mapping[str, str],
    ) -> None:
        assert config.seed is not None
        self.config = config
        self.inputs = inputs
        self.seed = config.seed
        self.folder = run
        self.policy = policy
        self._environments = environments
        self._held_out: VectorEnvironment | None = None
        self.learner = PPOLearner(policy, config.ppo, self.seed)
        self.collector = Collector(policy, self._environments, config.ppo, self.seed)
        self.iteration = 0
        self.is_finished = False
        self.num_episodes_val = 0
        self.earlier_seconds = 0.0
        self.random_return: float | None = None
        self.evaluation: dict[str, float] = {}
        self._steps_per_update = config.ppo.num_envs * config.ppo.num_steps
        self.num_updates = max(1, math.ceil(config.num_timesteps / self._steps_per_update))
        if config.num_checkpoints > self.num_updates:
            print(
                f"--num_checkpoints {config.num_checkpoints}: only {self.num_updates} updates, "
                "keeping the agent after each",
                flush=True,
            )
        self._restore(load_training_state(run.state_file))
        self._steps_before = self.env_steps
        self._start = time.perf_counter()
        last_step = self.env_steps if run.continued else None
        self.log = MetricLog(run.path, LOG_COLUMNS, last_step)

    @property
    def env_steps(self) -> int:
        """Environment steps learnt from so far."""
        return self.iteration * self._steps_per_update

    @property
    def seconds(self) -> float:
        """Time spent by all processes of the run; of a killed one, up to its last save."""
        return self.earlier_seconds + time.perf_counter() - self._start

    @property
    def progress(self) -> float:
        """Share of the training that is done, by steps or by time, whichever is further."""
        return share_done(self.iteration, self.num_updates, self.seconds, self.config.max_minutes)

    def run(self, stop: StopRequest) -> Path:
        """Train to the end; returns the final agent's folder."""
        clock = SaveClock(self.config.save_every_seconds)
        if self.random_return is None and self.config.eval_episodes > 0:
            self.random_return = float(self._evaluate(None).returns.mean())
        with Progress(self.num_updates, "update", self.iteration) as progress:
            while not self.is_finished:
                row = self._update()
                progress.advance(_describe(self.env_steps, row))
                if stop.requested or clock.is_due() or self.is_finished:
                    self.save()
                if stop.requested and not self.is_finished:
                    exit_stopped(stop)
        return self._agent_folder()

    def save(self) -> None:
        """Save everything that a later process needs to go on from here."""
        state = {
            "iteration": self.iteration,
            "is_finished": self.is_finished,
            "seconds": self.seconds,
            "num_episodes_val": self.num_episodes_val,
            "random_return": self.random_return,
            "evaluation": self.evaluation,
            "policy": self.policy.state_dict(),
            "optimiser": self.learner.optimiser.state_dict(),
            "collector": self.collector.state_dict(),
        }
        save_training_state(self.folder.state_file, state)

    def metrics(self) -> dict[str, Any]:
        """What the report tells."""
        returns = self.collector.statistics.returns
        seconds = time.perf_counter() - self._start
        return {
            "env_steps": self.env_steps,
            "env_steps_per_second": round((self.env_steps - self._steps_before) / seconds, 1),
            "mean_return_train": float(np.mean(returns)) if returns else None,
            "mean_return_held_out": self.evaluation.get("val_mean_episode_rewards"),
            "random_policy_return_held_out": self.random_return,
            "held_out_levels": self.config.eval_episodes,
            "seed": self.seed,
        }

    def close(self) -> None:
        """Close environments and log."""
        self.log.close()
        for environment in self._environments:
            environment.close()
        if self._held_out is not None:
            self._held_out.close()

    def _update(self) -> dict[str, float | None]:
        """One rollout and what is learnt from it; returns the row logged."""
        collected = self.collector.collect(self.iteration)
        losses = self.learner.update(collected.batch, self.iteration, 1.0 - self.progress)
        self.iteration += 1
        self.is_finished = self.progress >= 1.0
        statistics = self.collector.statistics
        row: dict[str, float | None] = {
            "timesteps": self.env_steps,
            "wall_time": round(self.seconds, 3),
            "num_episodes": statistics.num_episodes,
            **summarise_episodes(statistics.returns, statistics.lengths),
            "mean_episode_value": collected.mean_value,
            **losses,
        }
        if self._evaluation_is_due():
            evaluation = self._evaluate(self.policy)
            self.num_episodes_val += len(evaluation.returns)
            summary = summarise_episodes(evaluation.returns, evaluation.lengths)
            self.evaluation = {f"val_{name}": value for name, value in summary.items()}
            row |= self.evaluation
        row["num_episodes_val"] = self.num_episodes_val
        if self._agent_is_due():
            self._save_agent()
        self.log.append(row)
        return row

    def _evaluation_is_due(self) -> bool:
        every = self.config.eval_every
        regular = every > 0 and self.iteration % every == 0
        return self.config.eval_episodes > 0 and (self.is_finished or regular)

    def _agent_is_due(self) -> bool:
        count, total = self.config.num_checkpoints, self.num_updates
        passed = self.iteration * count // total > (self.iteration - 1) * count // total
        return passed or self.is_finished

    def _evaluate(self, policy: RecurrentPolicy | None) -> Evaluation:
        levels = held_out_levels(self.config.eval_episodes)
        if self._held_out is None:
            num_slots = min(EVALUATION_SLOTS, len(levels))
            self._held_out = make_environment(self.config.environment, num_slots, self.seed)
        return evaluate(policy, self._held_out, levels, self.seed)

    def _agent_folder(self) -> Path:
        return self.folder.path / f"model_{self.env_steps}"

    def _save_agent(self) -> None:
        provenance = collect_provenance(self.config, self.seed, dict(self.inputs))
        spec = self._environments[0].spec
        save_agent(self._agent_folder(), self.policy, spec, provenance, self.env_steps)

    def _restore(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        self.iteration, self.is_finished = state["iteration"], state["is_finished"]
        self.earlier_seconds = state["seconds"]
        self.num_episodes_val = state["num_episodes_val"]
        self.random_return = state["random_return"]
        self.evaluation = state["evaluation"]
        self.policy.load_state_dict(state["policy"])
        self.learner.optimiser.load_state_dict(state["optimiser"])
        self.collector.load_state_dict(state["collector"])
        print(f"going on after {self.env_steps} environment steps", flush=True)


def summarise_episodes(returns: Any, lengths: Any) -> dict[str, float]:
    """Statistics of episodes under the log's column names; empty when there is no episode."""
    summary: dict[str, float] = {}
    if len(returns) == 0:
        return summary
    for name, values in (("rewards", np.asarray(returns)), ("len", np.asarray(lengths))):
        summary[f"max_episode_{name}"] = float(values.max())
        summary[f"mean_episode_{name}"] = float(values.mean())
        summary[f"min_episode_{name}"] = float(values.min())
        summary[f"std_episode_{name}"] = float(values.std())
    return summary


def _describe(env_steps: int, row: Mapping[str, float | None]) -> str:
    mean_return = row.get("mean_episode_rewards")
    shown = "no episode yet" if mean_return is None else f"return {mean_return:.2f}"
    return f"{env_steps} environment steps, {shown}"


def _resolve(config: TrainingConfig) -> TrainingConfig:
    """Settings of the run to go on with, or the given ones with a seed."""
    if config.resume is not None:
        config = _settings_of_run(config, config.resume)
    require_usable(config.ppo)
    require_at_least(config, "num_timesteps", "num_checkpoints")
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


def _settings_of_run(config: TrainingConfig, folder: Path) -> TrainingConfig:
    saved = read_run_config(folder, "--resume")
    settings = {name: value for name, value in saved.items() if name not in OPERATIONAL}
    restored = apply_values(TrainingConfig, settings, str(folder))
    given = {name: getattr(config, name) for name in OPERATIONAL if "." not in name}
    environment = dataclasses.replace(
        restored.environment, num_threads=config.environment.num_threads
    )
    return dataclasses.replace(restored, **{**given, "run_dir": folder, "environment": environment})


def _run_path(config: TrainingConfig) -> Path:
    assert config.seed is not None
    if config.run_dir is not None:
        return config.run_dir
    parent = Path("logs") / "procgen" / config.environment.env_name / config.exp_name
    return new_run_path(parent, config.seed)


def network_config(config: TrainingConfig, spec: EnvironmentSpec) -> NetworkConfig:
    """The network for an environment: what was chosen, and what follows from the frames."""
    height, width, channels = spec.obs_shape
    return NetworkConfig(
        **dataclasses.asdict(config.network),
        obs_shape=(height, width, channels),
        num_actions=spec.num_actions,
    )


def _initial_policy(
    config: TrainingConfig, spec: EnvironmentSpec
) -> tuple[RecurrentPolicy, dict[str, str]]:
    """The policy to begin with, and the hashes of what it was made from."""
    assert config.seed is not None
    network = network_config(config, spec)
    seed_everything(config.seed)
    policy = make_policy(network)
    if config.model_file is None:
        return policy, {}
    loaded = load_agent(config.model_file)
    initial = require_recurrent_policy(loaded, "--model_file")
    if initial.config != network:
        raise UserError(
            f"--model_file {config.model_file}: its network is {initial.config}, "
            f"the settings ask for {network}"
        )
    policy.load_state_dict(initial.state_dict())
    return policy, {"initial_agent": loaded.hash}


def make_groups(config: TrainingConfig) -> list[VectorEnvironment]:
    """Two halves, so that one can step while the policy decides for the other."""
    assert config.seed is not None
    num_envs = config.ppo.num_envs
    sizes = [num_envs - num_envs // 2, num_envs // 2]
    seeds = (keyed_uniform(config.seed, "environment", np.arange(2))[:, 0] * 2**31).astype(int)
    return [
        make_environment(config.environment, size, int(group_seed))
        for size, group_seed in zip(sizes, seeds, strict=True)
        if size > 0
    ]
