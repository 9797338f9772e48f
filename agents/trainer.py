"""Training an agent: the run folder, the loop, the log, evaluation on held-out levels."""

import math
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.checkpoint import LoadedAgent, load_agent, require_recurrent_policy, save_agent
from agents.collection import Collector
from agents.evaluation import Evaluation, evaluate, held_out_levels
from agents.execution import Execution
from agents.networks import RecurrentPolicy, make_policy
from agents.ppo import PPOLearner
from agents.training_config import (
    OPERATIONAL,
    TrainingConfig,
    network_config,
    resolve_settings,
    run_path,
)
from environments.factory import environment_spec, make_environment
from environments.protocol import EnvironmentSpec, VectorEnvironment
from experiment.devices import resolve_device
from experiment.distributed import ALONE, Ranks, joined, launched_ranks
from experiment.errors import UserError
from experiment.files import require_writable_folder
from experiment.progress import Progress
from experiment.provenance import collect_provenance
from experiment.randomness import keyed_uniform, seed_everything
from experiment.report import StageReport
from experiment.runs import (
    STATE_FILE,
    MetricLog,
    RunFolder,
    SaveClock,
    StopRequest,
    exit_stopped,
    export_folder,
    has_training_state,
    hold_run,
    load_training_state,
    open_run,
    read_history,
    require_finite,
    save_training_state,
    seconds_left,
    share_done,
    share_request,
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


def train(config: TrainingConfig, report: StageReport) -> Path:
    """Train, or go on training, until the steps are done; returns the final agent's folder.

    Asked to stop by a signal, it saves its state and leaves with `STOPPED_EXIT_CODE`. Processes
    that torchrun started train one agent together; the first of them writes.

    Raises:
        UserError: settings, files or devices with which no training is possible.
    """
    ranks = launched_ranks()
    device = ranks.own_device(resolve_device(config.device, config.gpu_device))
    # From the first moment: what loads for minutes is asked to stop, too.
    with stop_on_signals() as stop, joined(ranks, device):
        return _train(config, report, ranks, device, stop)


def _train(
    config: TrainingConfig,
    report: StageReport,
    ranks: Ranks,
    device: torch.device,
    stop: StopRequest,
) -> Path:
    config = ranks.from_main(lambda: resolve_settings(config))
    ranks.from_main(lambda: ranks.share(config.ppo.num_envs, "--num_envs"))
    path = ranks.from_main(lambda: run_path(config))
    spec = environment_spec(config.environment)
    policy, inputs = _initial_policy(config, spec, path)
    execution = Execution(policy.to(device), config.precision, config.cuda_graphs)
    environments = make_groups(config, ranks)
    if config.export_dir is not None:
        require_writable_folder(config.export_dir.absolute().parent, "--export_dir")
    with hold_run(path, ranks):
        run = ranks.from_main(lambda: open_run(path, config, OPERATIONAL, inputs))
        print(f"run folder: {run.path}", flush=True)
        with closing(Trainer(config, run, execution, environments, inputs, ranks)) as trainer:
            agent = trainer.run(stop)
    report.earlier_seconds = trainer.earlier_seconds
    report.metrics.update(trainer.metrics())
    if config.export_dir is not None and ranks.is_main:
        report.outputs.append(str(export_folder(agent, config.export_dir)))
    report.outputs.append(str(agent))
    return agent


class Trainer:
    """The loop: play, learn, log, now and then evaluate and save."""

    def __init__(
        self,
        config: TrainingConfig,
        run: RunFolder,
        execution: Execution,
        environments: list[VectorEnvironment],
        inputs: Mapping[str, str],
        ranks: Ranks = ALONE,
    ) -> None:
        assert config.seed is not None
        self.config = config
        self.inputs = inputs
        self.seed = config.seed
        self.folder = run
        self.policy = policy = execution.policy
        self.ranks = ranks
        self._environments = environments
        self._held_out: VectorEnvironment | None = None
        self.learner = PPOLearner(policy, config.ppo, self.seed, execution, ranks)
        self.collector = Collector(
            policy, self._environments, config.ppo, self.seed, execution, ranks
        )
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
        self._share_done = share_done(
            self.iteration, self.num_updates, self.earlier_seconds, config.max_minutes
        )
        self._steps_before = self.env_steps
        self._start = time.perf_counter()
        last_step = self.env_steps if run.continued else None
        self.log = MetricLog(run.path, LOG_COLUMNS, last_step) if ranks.is_main else None

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
        """Share of the training that is done, by steps or by time, whichever is further.

        Processes ask together; the clock of the main one counts.
        """
        seconds = self.ranks.from_main(lambda: self.seconds) if self.config.max_minutes else 0.0
        return share_done(self.iteration, self.num_updates, seconds, self.config.max_minutes)

    def run(self, stop: StopRequest) -> Path:
        """Train to the end; returns the final agent's folder."""
        clock = SaveClock(self.config.save_every_seconds)
        if self.random_return is None and self.config.eval_episodes > 0:
            self.random_return = float(self._evaluate(None).returns.mean())
        time_left = seconds_left(self.seconds, self.config.max_minutes)
        with Progress(self.num_updates, "update", self.iteration, time_left) as progress:
            while not self.is_finished:
                row = self._update()
                progress.advance(self._describe(row))
                share_request(stop, self.ranks)
                is_due = self.ranks.from_main(clock.is_due)
                if stop.requested or is_due or self.is_finished:
                    self.save()
                if stop.requested and not self.is_finished:
                    exit_stopped(stop, self.folder.path)
        return self._agent_folder()

    def save(self) -> None:
        """Save everything that later processes, however many, need to go on from here."""
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
        if self.ranks.is_main:
            save_training_state(self.folder.state_file, state, self.config.keep_last)

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
        if self.log is not None:
            self.log.close()
        for environment in self._environments:
            environment.close()
        if self._held_out is not None:
            self._held_out.close()

    def _update(self) -> dict[str, float | None]:
        """One rollout and what is learnt from it; returns the row logged."""
        collected = self.collector.collect(self.iteration)
        losses = self.learner.update(collected.batch, self.iteration, 1.0 - self.progress)
        watched = {**losses, "the gradient's norm": float(self.learner.gradient_norm)}
        require_finite(watched, f"update {self.iteration + 1}", "--learning_rate")
        self.iteration += 1
        earlier, self._share_done = self._share_done, self.progress
        self.is_finished = self._share_done >= 1.0
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
        count = self.config.num_checkpoints
        if num_agents_due(self._share_done, count) > num_agents_due(earlier, count):
            self._save_agent()
        if self.log is not None:
            self.log.append(row)
        return row

    def _describe(self, row: Mapping[str, float | None]) -> str:
        mean_return = row.get("mean_episode_rewards")
        shown = "no episode yet" if mean_return is None else f"return {mean_return:.2f}"
        seconds = time.perf_counter() - self._start
        rate = (self.env_steps - self._steps_before) / seconds
        return f"{self.env_steps} environment steps, {rate:.0f} per second, {shown}"

    def _evaluation_is_due(self) -> bool:
        every = self.config.eval_every
        regular = every > 0 and self.iteration % every == 0
        return self.config.eval_episodes > 0 and (self.is_finished or regular)

    def _evaluate(self, policy: RecurrentPolicy | None) -> Evaluation:
        """Play the held-out levels, each process its share of them."""
        levels = held_out_levels(self.config.eval_episodes)
        own = levels[self.ranks.rank :: self.ranks.size]
        if self._held_out is None:
            num_slots = max(1, min(EVALUATION_SLOTS, len(own)))
            self._held_out = make_environment(self.config.environment, num_slots, self.seed)
        played = evaluate(policy, self._held_out, own, self.seed)
        whole = Evaluation(np.zeros(len(levels)), np.zeros(len(levels), np.int64))
        for rank, part in enumerate(self.ranks.gather(played)):
            whole.returns[rank :: self.ranks.size] = part.returns
            whole.lengths[rank :: self.ranks.size] = part.lengths
        return whole

    def _agent_folder(self) -> Path:
        return self.folder.path / f"model_{self.env_steps}"

    def _save_agent(self) -> None:
        if not self.ranks.is_main:
            return
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


def num_agents_due(share: float, count: int) -> int:
    """How many of `count` agents there are when that share of a training is done."""
    # The hair's breadth makes up for the rounding of shares such as 29/100.
    return math.floor(share * count + 1e-9)


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


def _initial_policy(
    config: TrainingConfig, spec: EnvironmentSpec, run: Path
) -> tuple[RecurrentPolicy, dict[str, str]]:
    """The policy to begin with, and the hashes of what it was made from.

    A run with a saved state has the weights there: the agent it began with may be gone.
    """
    assert config.seed is not None
    network = network_config(config, spec)
    seed_everything(config.seed)
    policy = make_policy(network)
    if config.model_file is None:
        return policy, {}
    if has_training_state(run / STATE_FILE):
        return policy, read_history(run)[0]["inputs"]
    loaded = _load_initial_agent(config.model_file, spec)
    initial = require_recurrent_policy(loaded, "--model_file")
    if initial.config != network:
        raise UserError(
            f"--model_file {config.model_file}: its network is {initial.config}, "
            f"the settings ask for {network}"
        )
    policy.load_state_dict(initial.state_dict())
    return policy, {"initial_agent": loaded.hash}


def _load_initial_agent(reference: str, spec: EnvironmentSpec) -> LoadedAgent:
    try:
        return load_agent(reference, environment=spec)
    except UserError as error:
        raise UserError(f"--model_file: {error}") from None


def make_groups(config: TrainingConfig, ranks: Ranks = ALONE) -> list[VectorEnvironment]:
    """Two halves, so that one can step while the policy decides for the other.

    Among several processes each takes its environments in the state in which a single process
    would begin: so they meet the same levels, however many processes there are.
    """
    own = ranks.share(config.ppo.num_envs, "--num_envs")
    if ranks.size == 1:
        return _make_halves(config, len(own))
    everything = _make_halves(config, config.ppo.num_envs)
    states = [state for group in everything for state in group.get_state()][own.start : own.stop]
    for group in everything:
        group.close()
    groups = _make_halves(config, len(own))
    for group in groups:
        group.set_state(states[: group.num_envs])
        del states[: group.num_envs]
    return groups


def _make_halves(config: TrainingConfig, num_envs: int) -> list[VectorEnvironment]:
    assert config.seed is not None
    sizes = [num_envs - num_envs // 2, num_envs // 2]
    seeds = (keyed_uniform(config.seed, "environment", np.arange(2))[:, 0] * 2**31).astype(int)
    return [
        make_environment(config.environment, size, int(group_seed))
        for size, group_seed in zip(sizes, seeds, strict=True)
        if size > 0
    ]
