"""Training the simulator: settings, checks, the run folder, the loop, held-out loss."""

import dataclasses
import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import ArrayLike
from torch import Tensor

from agents.checkpoint import LoadedAgent, load_chosen_agent
from agents.probe import require_differentiable
from agents.protocol import has_bounded_state
from environments.factory import environment_name
from experiment.command_line import apply_values, flag_of
from experiment.devices import resolve_device
from experiment.distributed import ALONE, Ranks, joined, launched_ranks
from experiment.errors import UserError, require_at_least
from experiment.files import require_writable_folder
from experiment.progress import Progress, WaitingTime
from experiment.provenance import Provenance, collect_provenance
from experiment.randomness import seed_everything
from experiment.report import StageReport
from experiment.runs import (
    STATE_FILE,
    MetricLog,
    RunFolder,
    SaveClock,
    StopRequest,
    choose_seed,
    exit_stopped,
    export_folder,
    has_training_state,
    hold_run,
    load_training_state,
    new_run_path,
    open_run,
    read_history,
    read_run_config,
    require_finite,
    save_training_state,
    seconds_left,
    share_done,
    share_request,
    stop_on_signals,
)
from generative.bottleneck import BottleneckKind
from generative.checkpoint import (
    load_weights,
    read_description,
    save_simulator,
    simulator_hash,
)
from generative.gradients import LossGradients, can_use_graphs
from generative.networks import VectorDecoder
from generative.objective import (
    ObjectiveConfig,
    TrainingNoise,
    WindowTensors,
    compute_losses,
    draw_training_noise,
    term_names,
    to_window_tensors,
)
from generative.reference_flags import CommonReferenceFlags
from generative.simulator import (
    Precision,
    Simulator,
    SimulatorConfig,
    require_simulable,
    simulator_parameters,
    trained_parameters,
)
from generative.training_videos import write_training_video
from rollouts.store import RolloutDataset
from rollouts.windows import WindowSampler

HELDOUT_SEED = 0
INITIAL_SIMULATOR = "initial_simulator"
"""Role among the inputs of the simulator that a run begins with."""
OPERATION_COLUMNS = ("step", "seconds", "lr", "data_wait_share")
"""Columns of `log.csv` that are no losses. The last one is the share of the time since the row
before that the first process spent waiting for windows to be read."""
OPERATIONAL = (
    "agent_file",
    "compile",
    "cuda_graphs",
    "data_dir",
    "heldout_data_dir",
    "model_file",
    "device",
    "gpu_device",
    "run_dir",
    "resume",
    "export_dir",
    "report",
    "save_every_seconds",
    "num_video_windows",
    "unused",
)
"""Settings that may differ between the processes of one run: they do not change what it does.
`device` and `compile` change the rounding: a run that goes on under others of these is not the same
to the bit. Of rollouts and agent the content must stay the same, which their hashes tell, not the
path. So it is with the simulator that `model_file` names, which is read only until a state has been
saved: another than the one that the run began with is refused."""


@dataclass(frozen=True)
class OptimiserConfig:
    """How the weights are learnt."""

    epochs: int = 20
    """Passes over all windows of the dataset."""
    num_training_steps: int | None = None
    """Optimiser steps to make, in place of --epochs."""
    max_minutes: float | None = None
    """Also stop after this wall time. The schedule of the learning rate then follows whichever is
    further, steps or time, so that it always ends as planned; how many steps fit depends on the
    machine, so that only runs without a limit are reproducible."""
    batch_size: int = 32
    """Windows per optimiser step, all processes together."""
    num_sim_steps: int = 32
    """Simulated steps per window; step 0 reconstructs the last initial frame."""
    lr: float = 5e-4
    """Learning rate of Adam."""
    lr_schedule: str = "constant"
    """`constant`, or `cosine`: falls to zero along half a cosine."""
    warmup_steps: int = 0
    """Optimiser steps over which the learning rate rises linearly from zero."""
    max_grad_norm: float = 100.0
    """Norm to which the gradient is clipped."""


@dataclass(frozen=True)
class TrainingReferenceFlags(CommonReferenceFlags):
    """Flags of the reference system's simulator training without effect here."""

    param_name: str = "hard-rec"
    """Without effect: an agent file says what network it holds."""
    num_timesteps: int = 0
    """Without effect: --epochs, --num_training_steps and --max_minutes say how long to train."""
    num_checkpoints: int = 1
    """Without effect: --save_interval says how often a simulator is kept."""
    recording_rand_init: bool = False
    """Without effect: nothing is recorded."""
    generated_data_dir: Path | None = None
    """Without effect: nothing is recorded."""


@dataclass(frozen=True)
class SimulatorTrainingConfig:
    """Train a simulator of an agent's environment, the agent inside."""

    gen_mod_exp_name: str = "test_tgm"
    """Name of the experiment: part of the default run folder."""
    interpreting_params_name: str = "swift"
    """Preset of hyperparams/simulator.yml: swift, compact, demo, tiny, or defaults, which has the
    sizes and weights of the reference system."""
    data_dir: Path = Path("data")
    """Rollouts to learn from, as record.py makes them."""
    heldout_data_dir: Path | None = None
    """Rollouts on other levels, on which the loss is measured but not minimised."""
    agent_file: str | None = None
    """The agent that made the rollouts, as record.py's --model_file takes it; by default the one
    that DATA_DIR names."""
    model_file: Path | None = None
    """Simulator whose weights to begin with; of the same sizes and the same agent."""
    env_name: str | None = None
    """Refuse rollouts of another game; by default that of DATA_DIR is taken."""
    simulator: Annotated[SimulatorConfig, tyro.conf.arg(name="")] = field(
        default_factory=SimulatorConfig
    )
    objective: Annotated[ObjectiveConfig, tyro.conf.arg(name="")] = field(
        default_factory=ObjectiveConfig
    )
    optimiser: Annotated[OptimiserConfig, tyro.conf.arg(name="")] = field(
        default_factory=OptimiserConfig
    )
    log_interval: int = 100
    """Optimiser steps that one row of log.csv averages over."""
    save_interval: int = 10_000
    """Optimiser steps between two simulators kept; the last one always is."""
    num_video_windows: int = 4
    """Windows shown in the video that is made whenever a simulator is kept: the truth beside what
    the simulator makes of it. 0 makes none; there is none where observations are vectors."""
    num_heldout_windows: int = 128
    """Windows on which the held-out loss is measured, whenever a simulator is kept."""
    seed: int | None = None
    """Seed of everything random; by default drawn from 0 to 9999."""
    save_every_seconds: float = 120.0
    """How often the state is saved from which a killed training goes on."""
    precision: Precision = "float32"
    """float32, or bfloat16 for the convolutions with everything else in float32: for GPUs."""
    cuda_graphs: bool = True
    """On CUDA, launch the losses and gradients of a step as a CUDA graph; in one process, with an
    agent of this project's own network."""
    compile: bool = False
    """Compile the step of the environment's recurrence; needs a GPU."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N, or gpu for the GPU numbered --gpu_device. Under torchrun every
    process takes a GPU of its own."""
    gpu_device: int = 0
    """Number of the GPU that `--device gpu` means."""
    run_dir: Path | None = None
    """Run folder; continued if it holds a run with the same settings. By default
    generative/results/GEN_MOD_EXP_NAME/seed_SEED_TIME."""
    resume: Path | None = None
    """Run folder to go on with, under the settings saved there."""
    export_dir: Path | None = None
    """Folder to which the trained simulator is copied at the end."""
    report: Path | None = None
    """File for a JSON report of seconds, outputs and metrics."""
    unused: Annotated[TrainingReferenceFlags, tyro.conf.arg(name="")] = field(
        default_factory=TrainingReferenceFlags
    )
    """Flags of the reference system without effect here."""


@dataclass(frozen=True)
class TrainingInputs:
    """What a training reads, checked to belong together."""

    agent: LoadedAgent
    dataset: RolloutDataset
    heldout: RolloutDataset | None
    initial_simulator: str | None = None
    """Hash of the simulator whose weights the run begins with, or began with."""

    @property
    def hashes(self) -> dict[str, str]:
        """Hash of what is read in every process of a run, by role."""
        hashes = {"agent": self.agent.hash, "dataset": self.dataset.hash}
        return hashes | ({"heldout_dataset": self.heldout.hash} if self.heldout else {})

    @property
    def all_hashes(self) -> dict[str, str]:
        """Hash of each input, by role."""
        return self.hashes | (
            {INITIAL_SIMULATOR: self.initial_simulator} if self.initial_simulator else {}
        )


def train_simulator(config: SimulatorTrainingConfig, report: StageReport) -> Path:
    """Train, or go on training, until steps or time are spent; returns the simulator's folder.

    Asked to stop by a signal, it saves its state and leaves with `STOPPED_EXIT_CODE`. Processes
    that torchrun started train one simulator together; the first of them writes.

    Raises:
        UserError: settings, files or devices with which no training is possible.
    """
    ranks = launched_ranks()
    device = ranks.own_device(resolve_device(config.device, config.gpu_device))
    # From the first moment: what loads for minutes is asked to stop, too.
    with stop_on_signals() as stop, joined(ranks, device):
        return _train(config, report, ranks, device, stop)


def _train(
    config: SimulatorTrainingConfig,
    report: StageReport,
    ranks: Ranks,
    device: torch.device,
    stop: StopRequest,
) -> Path:
    config = ranks.from_main(lambda: _resolve(config))
    ranks.from_main(lambda: _require_executable(config, ranks, device))
    inputs = ranks.each(lambda: load_inputs(config, device))
    if config.export_dir is not None:
        require_writable_folder(config.export_dir.absolute().parent, "--export_dir")
    path = ranks.from_main(lambda: _run_path(config))
    initial = ranks.from_main(lambda: _initial_simulator(config, path))
    inputs = dataclasses.replace(inputs, initial_simulator=initial)
    simulator = ranks.each(lambda: _make_simulator(config, inputs, path)).to(device)
    with hold_run(path, ranks):
        run = ranks.from_main(lambda: open_run(path, config, OPERATIONAL, inputs.all_hashes))
        print(f"run folder: {path}; {simulator.num_parameters} parameters", flush=True)
        with closing(SimulatorTrainer(config, run, simulator, inputs, device, ranks)) as trainer:
            folder = trainer.run(stop)
            report.earlier_seconds = trainer.earlier_seconds
            report.metrics.update(trainer.metrics())
    if config.export_dir is not None and ranks.is_main:
        report.outputs.append(str(export_folder(folder, config.export_dir)))
    report.outputs.append(str(folder))
    return folder


def load_inputs(config: SimulatorTrainingConfig, device: torch.device) -> TrainingInputs:
    """Load agent and datasets.

    Raises:
        UserError: one of them is missing, or they do not belong together.
    """
    dataset = RolloutDataset(config.data_dir)
    metadata = dataset.metadata
    environment = metadata.environment
    agent = load_chosen_agent(
        config.agent_file, metadata.agent_file, f"--data_dir {config.data_dir}", environment, device
    )
    require_differentiable(agent.policy, environment.obs_shape, agent.reference, device)
    require_usable_rollouts(dataset, agent, config.simulator, "--data_dir")
    name = environment_name(environment)
    if config.env_name not in (None, name):
        raise UserError(f"--env_name {config.env_name}: {config.data_dir} holds rollouts of {name}")
    heldout = None
    if config.heldout_data_dir is not None:
        heldout = RolloutDataset(config.heldout_data_dir)
        require_usable_rollouts(heldout, agent, config.simulator, "--heldout_data_dir")
    return TrainingInputs(agent, dataset, heldout)


def require_usable_rollouts(
    dataset: RolloutDataset, agent: LoadedAgent, config: SimulatorConfig, flag: str
) -> None:
    """Raise `UserError` naming `flag` unless windows of this agent's play can be cut from it."""
    metadata, folder = dataset.metadata, f"{flag} {dataset.folder}"
    if metadata.agent_hash != agent.hash:
        raise UserError(
            f"{folder}: recorded by agent {metadata.agent_hash[:12]}, "
            f"but {agent.path} is agent {agent.hash[:12]}"
        )
    require_simulable(config, metadata.environment.obs_shape, folder)
    if dataset.num_episodes == 0:
        raise UserError(f"{folder}: holds no episode")
    longest = int(dataset.episodes["length"].to_numpy().max())
    if longest <= config.num_init_steps:
        raise UserError(
            f"{folder}: the longest episode has {longest} rows; more than the "
            f"{config.num_init_steps} initial frames are needed"
        )


class SimulatorTrainer:
    """The loop: a batch of windows, a step, now and then a log row, a saved state, a simulator."""

    def __init__(
        self,
        config: SimulatorTrainingConfig,
        run: RunFolder,
        simulator: Simulator,
        inputs: TrainingInputs,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        assert config.seed is not None
        self.config, self.seed, self.run_folder = config, config.seed, run
        self.simulator, self.inputs, self.device, self.ranks = simulator, inputs, device, ranks
        self.parameters = trained_parameters(simulator)
        self.gradients = LossGradients(
            simulator,
            config.objective,
            ranks,
            uses_graphs=config.cuda_graphs and can_use_graphs(simulator, ranks),
        )
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.optimiser.lr, fused=True)
        batch_size = config.optimiser.batch_size
        self.sampler = make_sampler(config, inputs.dataset, batch_size, self.seed, ranks)
        self.waiting = WaitingTime()
        self.num_steps = config.optimiser.num_training_steps or (
            config.optimiser.epochs * self.sampler.batches_per_epoch
        )
        self.heldout = self._heldout_windows()
        self.step, self.earlier_seconds, self.is_finished = 0, 0.0, False
        self.last_row: dict[str, float] = {}
        self.heldout_terms: dict[str, float] = {}
        self._heldout_columns: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._gradient_norm = torch.zeros(())
        self._restore(load_training_state(run.state_file))
        self._steps_before, self._start = self.step, time.perf_counter()
        terms = ("total", *term_names(config.objective.weights, config.simulator.bottleneck))
        heldout = (f"heldout_{name}" for name in terms)
        columns = (*OPERATION_COLUMNS, *terms, *heldout)
        last_step = self.step if run.continued else None
        self.log = MetricLog(run.path, columns, last_step) if ranks.is_main else None

    @property
    def seconds(self) -> float:
        """Time spent by all processes of the run; of a killed one, up to its last save."""
        return self.earlier_seconds + time.perf_counter() - self._start

    @property
    def progress(self) -> float:
        """Share of the training that is done, by steps or by time, whichever is further.

        Processes ask together; the clock of the main one counts.
        """
        limit = self.config.optimiser.max_minutes
        seconds = self.ranks.from_main(lambda: self.seconds) if limit else 0.0
        return share_done(self.step, self.num_steps, seconds, limit)

    def run(self, stop: StopRequest) -> Path:
        """Train to the end; returns the folder of the final simulator."""
        if self.is_finished:
            return self._simulator_folder()
        clock = SaveClock(self.config.save_every_seconds)
        time_left = seconds_left(self.seconds, self.config.optimiser.max_minutes)
        with Progress(self.num_steps, "step", self.step, time_left) as progress:
            batches = self.sampler.prefetch(self.step, self.num_steps)
            for batch in self.waiting.over(batches):
                self._update(to_window_tensors(batch, self.device))
                progress.advance(_describe(self.last_row))
                if self.progress >= 1.0:
                    break
                if self.step % self.config.save_interval == 0:
                    self._save_simulator()
                if self.step % self.config.log_interval == 0:
                    self._log_row()
                share_request(stop, self.ranks)
                if stop.requested or clock.is_due():
                    self.save_state()
                if stop.requested:
                    exit_stopped(stop, self.run_folder.path)
        return self._finish()

    def save_state(self) -> None:
        """Save everything that later processes, however many, need to go on from here."""
        if not self.ranks.is_main:
            return
        self._require_finite()
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "is_finished": self.is_finished,
            "inputs": self.inputs.hashes,
            "last_row": self.last_row,
            "heldout_terms": self.heldout_terms,
            "heldout_columns": self._heldout_columns,
            "sums": self._sums,
            "weights": {n: p.detach() for n, p in simulator_parameters(self.simulator).items()},
            "optimiser": self.optimiser.state_dict(),
        }
        save_training_state(self.run_folder.state_file, state)

    def metrics(self) -> dict[str, Any]:
        """What the report tells."""
        seconds = time.perf_counter() - self._start
        steps = self.step - self._steps_before
        rows = self.config.optimiser.num_sim_steps + self.config.simulator.num_init_steps - 1
        frames = steps * self.config.optimiser.batch_size * rows
        return {
            "training_steps": self.step,
            "frames_per_second": round(frames / max(seconds, 1e-9), 1),
            "data_wait_share": round(self.waiting.share, 4),
            "num_parameters": self.simulator.num_parameters,
            "loss": {k: v for k, v in self.last_row.items() if k not in OPERATION_COLUMNS},
            "heldout_loss": self.heldout_terms,
            "seed": self.seed,
        }

    def close(self) -> None:
        """Close the log."""
        if self.log is not None:
            self.log.close()

    def _update(self, windows: WindowTensors) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.config.optimiser, self.step, self.progress)
        noise = self._noise(windows, self.sampler.window_numbers(self.step))
        self.gradients.clear(self.optimiser)
        values = self.gradients(windows, noise)
        self.ranks.sum_gradients(self.parameters)
        self._gradient_norm = torch.nn.utils.clip_grad_norm_(
            self.parameters, self.config.optimiser.max_grad_norm
        )
        self.optimiser.step()
        self.step += 1
        self._add_to_sums(values)

    def _add_to_sums(self, terms: Mapping[str, Tensor]) -> None:
        """Add what all processes have to the sums for the next row of the log."""
        values = self.ranks.sum(torch.stack(list(terms.values())))
        for name, value in zip(terms, values, strict=True):
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    def _require_finite(self) -> None:
        # The loss is that of the weights before the step, the gradient is what the step took in.
        watched = {**self._sums, "the gradient's norm": self._gradient_norm}
        numbers = {name: float(value) for name, value in watched.items()}
        require_finite(numbers, f"step {self.step}", "--lr")

    def _noise(self, windows: WindowTensors, window_numbers: ArrayLike) -> TrainingNoise:
        num_steps = len(windows.valid)
        config = self.config.simulator
        return draw_training_noise(num_steps, window_numbers, config, self.seed).to(self.device)

    def _log_row(self) -> None:
        """Log the mean of each term since the last row, and the held-out terms if just measured."""
        self._require_finite()
        count = self.step - int(self.last_row.get("step", 0))
        self.last_row = {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "lr": self.optimiser.param_groups[0]["lr"],
            "data_wait_share": round(self.waiting.share_since_last_asked(), 4),
            **{name: float(total) / count for name, total in self._sums.items()},
        }
        self._sums = {}
        if self.log is not None:
            self.log.append({**self.last_row, **self._heldout_columns})
        self._heldout_columns = {}

    def _finish(self) -> Path:
        self.is_finished = True
        self._save_simulator()
        if self._sums:
            self._log_row()
        self.save_state()
        print(f"waited for data {self.waiting.share:.1%} of the training time", flush=True)
        return self._simulator_folder()

    def _save_simulator(self) -> None:
        if not self.ranks.is_main:
            return
        self._require_finite()
        self.heldout_terms = self._heldout_losses()
        self._heldout_columns = {f"heldout_{n}": v for n, v in self.heldout_terms.items()}
        save_simulator(
            self._simulator_folder(),
            self.simulator,
            self.inputs.dataset.metadata.environment,
            self.inputs.agent.hash,
            self._provenance(),
            self.step,
        )
        if self.config.num_video_windows > 0 and self.simulator.sees_images:
            path = self.run_folder.path / "videos" / f"model_{self.step}.mp4"
            write_training_video(path, self.simulator, self._video_windows(), self.seed)

    def _video_windows(self) -> WindowTensors:
        """Always the same windows, held-out ones where there are any."""
        dataset = self.inputs.heldout or self.inputs.dataset
        count = self.config.num_video_windows
        sampler = make_sampler(self.config, dataset, count, HELDOUT_SEED)
        return to_window_tensors(sampler.batch(0), self.device)

    def _provenance(self) -> Provenance:
        return collect_provenance(self.config, self.seed, self.inputs.all_hashes)

    def _simulator_folder(self) -> Path:
        return self.run_folder.path / f"model_{self.step}"

    def _heldout_windows(self) -> WindowTensors | None:
        is_measured = self.ranks.is_main and self.config.num_heldout_windows >= 1
        if self.inputs.heldout is None or not is_measured:
            return None
        sampler = make_sampler(
            self.config, self.inputs.heldout, self.config.num_heldout_windows, HELDOUT_SEED
        )
        return to_window_tensors(sampler.batch(0), self.device)

    @torch.no_grad()
    def _heldout_losses(self) -> dict[str, float]:
        if self.heldout is None:
            return {}
        noise = self._noise(self.heldout, np.arange(self.heldout.num_windows))
        losses = compute_losses(self.simulator, self.heldout, self.config.objective, noise)
        return {"total": losses.total.item(), **{n: t.item() for n, t in losses.terms.items()}}

    def _restore(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        if state["inputs"] != self.inputs.hashes:
            changed = [n for n, h in self.inputs.hashes.items() if state["inputs"].get(n) != h]
            raise UserError(
                f"--run_dir {self.run_folder.path}: holds a run on another "
                f"{' and '.join(changed) or 'set of inputs'}; choose another folder"
            )
        self.step, self.earlier_seconds = state["step"], state["seconds"]
        self.is_finished, self.last_row = state["is_finished"], state["last_row"]
        self.heldout_terms = state["heldout_terms"]
        self._heldout_columns = state["heldout_columns"]
        self._sums = {name: total.to(self.device) for name, total in state["sums"].items()}
        with torch.no_grad():
            for name, parameter in simulator_parameters(self.simulator).items():
                parameter.copy_(state["weights"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        print(f"going on after {self.step} training steps", flush=True)


def learning_rate(config: OptimiserConfig, step: int, progress: float) -> float:
    """Learning rate of the update after `step` others, `progress` of the training being done."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay = 0.5 * (1 + math.cos(math.pi * progress)) if config.lr_schedule == "cosine" else 1.0
    return config.lr * warmup * decay


def make_sampler(
    config: SimulatorTrainingConfig,
    dataset: RolloutDataset,
    batch_size: int,
    seed: int,
    ranks: Ranks = ALONE,
) -> WindowSampler:
    """Windows of the length that the settings ask for; `batch_size` of them on all processes."""
    return WindowSampler(
        dataset,
        config.simulator.num_init_steps,
        config.optimiser.num_sim_steps,
        len(ranks.share(batch_size, "--batch_size")),
        seed,
        ranks.rank,
        ranks.size,
    )


def _describe(row: Mapping[str, float]) -> str:
    return f"loss {row['total']:.1f}" if "total" in row else "no loss yet"


def _resolve(config: SimulatorTrainingConfig) -> SimulatorTrainingConfig:
    """Settings of the run to go on with, or the given ones with a seed."""
    if config.resume is not None:
        config = settings_of_run(config, config.resume)
    _require_sensible(config)
    return dataclasses.replace(config, seed=choose_seed(config.seed, config.run_dir))


def _require_sensible(config: SimulatorTrainingConfig) -> None:
    optimiser, num_init_steps = config.optimiser, config.simulator.num_init_steps
    # Its flag is not called like the field.
    if num_init_steps < 2:
        raise UserError(f"--num_initializing_steps {num_init_steps}: must be at least 2")
    require_at_least(optimiser, "num_sim_steps", "batch_size", "epochs")
    if optimiser.num_training_steps:
        require_at_least(optimiser, "num_training_steps")
    require_at_least(config, "log_interval", "save_interval")
    require_at_least(config, "num_video_windows", "save_every_seconds", least=0)
    require_at_least(optimiser, "lr", "warmup_steps", least=0)
    if not optimiser.max_grad_norm > 0:
        raise UserError(f"--max_grad_norm {optimiser.max_grad_norm}: must be positive")
    if optimiser.lr_schedule not in ("constant", "cosine"):
        raise UserError(f"--lr_schedule {optimiser.lr_schedule}: constant or cosine is expected")
    if optimiser.max_minutes is not None and optimiser.max_minutes <= 0:
        raise UserError(f"--max_minutes {optimiser.max_minutes}: must be positive")
    _require_sensible_sizes(config.simulator)
    _require_sensible_objective(config.objective, config.simulator.bottleneck)


def _require_sensible_sizes(sizes: SimulatorConfig) -> None:
    for name, value in dataclasses.asdict(sizes).items():
        for size in value if isinstance(value, tuple) else (value,):
            if isinstance(size, int) and not isinstance(size, bool) and size < 1:
                raise UserError(f"{flag_of(sizes, name)} {size}: must be at least 1")


def _require_sensible_objective(objective: ObjectiveConfig, bottleneck: BottleneckKind) -> None:
    weights = objective.weights
    for name, weight in dataclasses.asdict(weights).items():
        if weight < 0:
            raise UserError(f"{flag_of(weights, name)} {weight}: must be at least 0")
    if not term_names(weights, bottleneck):
        raise UserError(
            f"--loss_scale_obs 0: all weights are 0 with --bottleneck {bottleneck}; at least one "
            "must be positive"
        )
    for name in ("kl_balance", "observed_share", "agent_share"):
        if not 0 <= getattr(objective, name) <= 1:
            raise UserError(f"--{name} {getattr(objective, name)}: must lie between 0 and 1")
    require_at_least(objective, "kl_free_nats", least=0)


def _require_executable(
    config: SimulatorTrainingConfig, ranks: Ranks, device: torch.device
) -> None:
    ranks.share(config.optimiser.batch_size, "--batch_size")
    if config.compile and device.type != "cuda":
        raise UserError(f"--compile: needs a CUDA device, not {device}")


def settings_of_run(config: SimulatorTrainingConfig, folder: Path) -> SimulatorTrainingConfig:
    """The settings of the run in `folder`, with what may differ from process to process as given.

    Raises:
        UserError: no run there, or one with a setting that is unknown.
    """
    saved = read_run_config(folder, "--resume")
    paths = ("data_dir", "heldout_data_dir", "model_file")
    artefacts = ("agent_file", *paths)
    settings = {
        name: None if value is None else Path(value) if name in paths else value
        for name, value in saved.items()
        if name not in OPERATIONAL or name in artefacts
    }
    restored = apply_values(SimulatorTrainingConfig, settings, str(folder))
    given = {name: getattr(config, name) for name in OPERATIONAL if name not in artefacts}
    return dataclasses.replace(restored, **{**given, "run_dir": folder})


def _run_path(config: SimulatorTrainingConfig) -> Path:
    assert config.seed is not None
    if config.run_dir is not None:
        return config.run_dir
    return new_run_path(Path("generative/results") / config.gen_mod_exp_name, config.seed)


def _initial_simulator(config: SimulatorTrainingConfig, run: Path) -> str | None:
    """Hash of the simulator that the run begins with; None where it begins with new weights.

    Of a run that is there already, what it began with: the simulator itself may be gone. Once there
    is a state, `--model_file` may be left out.

    Raises:
        UserError: the run began with something else than is asked for.
    """
    history, asked = read_history(run), config.model_file
    is_there = asked is not None and asked.exists()
    if not history:
        return None if asked is None else _hash_of_initial(asked)
    began = history[0]["inputs"].get(INITIAL_SIMULATOR)
    if asked is None and has_training_state(run / STATE_FILE):
        return began
    saved = history[0]["config"]["model_file"]
    if asked is not None and is_there and began is not None:
        is_same = _hash_of_initial(asked) == began
    else:
        is_same = saved == (None if asked is None else str(asked))
    if not is_same:
        first, now = (
            "new weights" if file is None else f"--model_file {file}" for file in (saved, asked)
        )
        raise UserError(
            f"--run_dir {run}: holds a run that began with {first}, not with {now}; give "
            "what it began with, or choose another folder"
        )
    return began


def _hash_of_initial(folder: Path) -> str:
    try:
        read_description(folder)
        return simulator_hash(folder)
    except (UserError, OSError) as error:
        raise UserError(f"--model_file: {error}") from None


def _make_simulator(
    config: SimulatorTrainingConfig, inputs: TrainingInputs, run: Path
) -> Simulator:
    """With the weights to begin with; those of a run with a saved state are there."""
    assert config.seed is not None
    # A feed-forward agent's features and an LSTM's c are not bounded by one.
    bounded = config.simulator.bounded_agent_state and has_bounded_state(inputs.agent.policy)
    sizes = dataclasses.replace(config.simulator, bounded_agent_state=bounded)
    seed_everything(config.seed)
    simulator = Simulator(sizes, inputs.agent.policy, inputs.dataset.metadata.environment.obs_shape)
    if isinstance(simulator.image_decoder, VectorDecoder):
        simulator.image_decoder.standardise.fit(inputs.dataset.iter_field("obs"))
    if config.model_file is not None and not has_training_state(run / STATE_FILE):
        description = read_description(config.model_file)
        if description["agent_hash"] != inputs.agent.hash:
            raise UserError(
                f"--model_file {config.model_file}: belongs to agent "
                f"{description['agent_hash'][:12]}, not to {inputs.agent.hash[:12]}"
            )
        load_weights(simulator, config.model_file)
    simulator.precision = config.precision
    if config.compile:
        simulator.compile_recurrence()
    return simulator
