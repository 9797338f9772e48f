"""Real counterfactuals: recorded episodes gone on with otherwise.

A branch begins at row T of a recorded episode E, the *branch point*: the environment is brought
there and the agent's recurrent state is the recorded one. Then something differs: the agent's
draws, its first action, or an intervention in its state. So the branches of one point, and the
recorded episode itself, are continuations of the same situation.

Of P branch points and N branches, branch b of point p has episode id `b · P + p`: more branches
leave the ids of the earlier ones as they are. Its draws are keyed by (seed, E, T, b) and the row
of the source episode. So neither the number of branches and points nor the batch changes a branch,
and an intervened branch shares its draws with its unmodified twin.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from agents.checkpoint import LoadedAgent
from agents.intervening import UNTOUCHED, Intervening
from agents.open_episode import Branch, BranchPoint, EpisodeStart
from agents.player import Player
from agents.recorder import (
    RecordingSummary,
    dataset_metadata,
    play_starts,
    recorded_episodes,
    require_same_settings,
    summarise,
    write_rollouts,
)
from agents.recording_config import RecordingConfig
from agents.recording_plan import RowEstimate, require_space
from agents.replay import SourceRow, restore_points
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError, require_at_least
from experiment.files import hash_bytes
from experiment.provenance import to_plain
from rollouts.schema import DatasetMetadata
from rollouts.store import RolloutDataset, RolloutWriter

_POINTS_PER_REPLAY = 64
"""Bounds the memory: each may need an environment of its own, and holds a saved state."""

_SETTINGS_OF_BRANCHES = (
    *("episode", "step", "branch_steps", "branch_actions", "force_action"),
    *("seed", "greedy", "action_noise", "interventions"),
)
"""Settings that decide what branch b of a point is."""
_CHOICE_OF_LEVELS = ("start_level", "num_levels", "sequential_levels")


@dataclass(frozen=True)
class BranchConfig:
    """From where recorded episodes are gone on with, and what differs."""

    branch_from: Path | None = None
    """Dataset of real rollouts, made by record.py. Instead of new episodes, record other
    continuations of its episodes. The agent, environment and levels are those of the dataset;
    --branches, --branch_steps and --max_hours say how much, in place of --max_episodes and
    --max_steps."""
    episode: tuple[int, ...] = ()
    """Episodes to branch, by id, e.g. `3 7`."""
    step: tuple[int, ...] = ()
    """Rows to branch them at, e.g. `10 20` for row 10 of episode 3 and row 20 of episode 7. One
    episode may go with many rows, and one row with many episodes."""
    branches: int | None = None
    """Continuations of each branch point; by default 1, or with --force_action each as many as
    there are actions. A dataset of branches may be given more of them later."""
    branch_steps: int | None = None
    """Cut branches after so many decisions; by default they go on to the episode's end."""
    branch_actions: Literal["agent", "recorded"] = "agent"
    """Let the agent act with random draws of each branch's own (agent), or replay the recorded
    actions, as far as there are any (recorded)."""
    force_action: str | None = None
    """First action of every branch, by name or number; or `each`: branch i begins with action i."""

    def __post_init__(self) -> None:
        if self.branch_from is None:
            named = [name for name, value in vars(self).items() if value != _default(name)]
            if named:
                raise UserError(f"--{named[0]}: branches need --branch_from, which is not given")
            return
        for name in ("branches", "branch_steps"):
            if getattr(self, name) is not None:
                require_at_least(self, name)
        if not self.episode or not self.step:
            raise UserError("--branch_from: needs --episode and --step, which name where to branch")
        if len(self.episode) != len(self.step) and 1 not in (len(self.episode), len(self.step)):
            raise UserError(
                f"--step has {len(self.step)} rows, --episode {len(self.episode)} episodes: "
                "expected as many, or one of either"
            )

    @property
    def points(self) -> list[SourceRow]:
        """The branch points.

        Raises:
            UserError: one is named twice.
        """
        count = max(len(self.episode), len(self.step))
        episodes, steps = (
            values * (count if len(values) == 1 else 1) for values in (self.episode, self.step)
        )
        points = [SourceRow(*pair) for pair in zip(episodes, steps, strict=True)]
        for index, point in enumerate(points):
            if point in points[:index]:
                raise UserError(f"--step {point.row}: named twice for --episode {point.episode_id}")
        return points


def _default(name: str) -> Any:
    return BranchConfig.__dataclass_fields__[name].default


@dataclass(frozen=True, eq=False)
class BranchPlan:
    """Everything that decides what branches are recorded."""

    agent: LoadedAgent
    dataset: RolloutDataset
    """Where the episodes to branch are."""
    config: BranchConfig
    recording: RecordingConfig
    """Of it: how the agent acts, how many environments, which shard, and `max_hours`."""
    intervening: Intervening = UNTOUCHED

    @property
    def environment(self) -> EnvironmentSpec:
        """That of the recorded episodes."""
        return self.dataset.metadata.environment

    @property
    def num_branches(self) -> int:
        """Branches of each point."""
        each = self.environment.num_actions if self.config.force_action == "each" else 1
        return self.config.branches or each


def check_branches(plan: BranchPlan, folder: Path) -> None:
    """Raise `UserError` for what cannot be done, or not be written to `folder`."""
    config, metadata = plan.config, plan.dataset.metadata
    if folder.resolve() == plan.dataset.folder.resolve():
        raise UserError(f"--data_dir {folder}: is the dataset to branch from; choose another")
    if metadata.simulated is not None:
        raise UserError(
            f"--branch_from {config.branch_from}: holds simulated rollouts; only episodes of the "
            "real environment can be branched"
        )
    if plan.recording.save_state_every is not None:
        raise UserError(
            f"--save_state_every {plan.recording.save_state_every}: states are kept to branch "
            "episodes, and branches cannot be branched; leave it out"
        )
    for name in _CHOICE_OF_LEVELS:
        if (asked := getattr(plan.recording, name)) != getattr(RecordingConfig, name):
            raise UserError(
                f"--{name} {asked}: branches are of the levels of the episodes that they branch; "
                "leave it out"
            )
    if plan.agent.hash != metadata.agent_hash:
        raise UserError(
            f"--model_file {plan.agent.path}: this agent (hash {plan.agent.hash[:12]}) is not the "
            f"one ({metadata.agent_hash[:12]}) that recorded --branch_from {config.branch_from}"
        )
    for point in config.points:
        _check_point(plan.dataset, point)
    _forced_action(plan, 0)
    num_episodes, num_shards = len(config.points) * plan.num_branches, plan.recording.share.count
    if num_shards > num_episodes:
        raise UserError(f"--num_shards {num_shards}: more than the {num_episodes} branches")
    require_same_settings(folder, _metadata(plan), _SETTINGS_OF_BRANCHES, inputs=("dataset",))


def _check_point(dataset: RolloutDataset, point: SourceRow) -> None:
    episodes = dataset.episodes
    at = np.flatnonzero(episodes["episode_id"].to_numpy() == point.episode_id)
    if len(at) == 0:
        raise UserError(
            f"--episode {point.episode_id}: --branch_from {dataset.folder} has no such episode"
        )
    source = episodes.iloc[int(at[0])]
    if source["initialisation"] != "real":
        raise UserError(
            f"--episode {point.episode_id}: is itself a branch, of episode "
            f"{source['source_episode_id']}; branch that one, in the dataset that holds it"
        )
    if not 0 <= point.row < source["length"]:
        raise UserError(
            f"--step {point.row}: episode {point.episode_id} has rows 0 to {source['length'] - 1}"
        )


def _tell_of_interventions(plan: BranchPlan) -> None:
    changed = plan.dataset.episodes.set_index("episode_id")["interventions"] != "[]"
    episodes = sorted({p.episode_id for p in plan.config.points if changed[p.episode_id]})
    if episodes:
        print(
            f"recorded under an intervention: {', '.join(map(str, episodes))}. Branches have only "
            "the one that is asked for now, counted from their first row"
        )


def record_branches(
    plan: BranchPlan, folder: Path | str, device: torch.device | str = "cpu"
) -> RecordingSummary:
    """Record the branches that the dataset `folder` lacks.

    Raises:
        UserError: see `check_branches`; or an episode does not happen again, before anything is
            written if its branch point is among the first 64.
    """
    folder, recording = Path(folder), plan.recording
    check_branches(plan, folder)
    _tell_of_interventions(plan)
    metadata = _metadata(plan)
    missing = _missing_episodes(plan, folder)
    require_space(folder, metadata, _estimate_rows(plan, missing))
    begin = time.perf_counter()
    starts = _episode_starts(plan, missing)
    # An episode that does not happen again is to be found before anything is written.
    starts = chain([next(starts)], starts) if missing else starts
    behaviour = recording.behaviour_in(plan.environment)
    player = Player(plan.agent.policy, behaviour, device, plan.intervening.intervention)
    # A step budget is of whole episodes.
    free = replace(recording, max_steps=None)
    writer_name = str(recording.share.index)
    with RolloutWriter(folder, metadata, writer_name, recording.shard_bytes) as writer:
        rollouts = play_starts(
            player, plan.agent.hash, plan.environment, free, starts, len(missing)
        )
        new_rows = write_rollouts(writer, rollouts)
    return summarise(folder, new_rows, time.perf_counter() - begin)


def _metadata(plan: BranchPlan) -> DatasetMetadata:
    recording = plan.recording
    settings = {
        **asdict(plan.config),
        **{name: getattr(recording, name) for name in ("seed", "greedy", "action_noise")},
        "behaviour": to_plain(recording.behaviour_in(plan.environment)),
        "num_envs": recording.num_envs,
        **plan.intervening.settings,
    }
    inputs = {"dataset": plan.dataset.hash}
    return dataset_metadata(
        plan.agent,
        plan.environment,
        settings,
        recording.seed,
        inputs,
        with_state=recording.with_state,
    )


@dataclass(frozen=True, order=True)
class _MissingEpisode:
    """Ordered by branch point, so that the branches of a point run side by side."""

    point_index: int
    branch: int
    episode_id: int


def _missing_episodes(plan: BranchPlan, folder: Path) -> list[_MissingEpisode]:
    """Those of the process's share that `folder` lacks."""
    num_points = len(plan.config.points)
    present = set(recorded_episodes(folder)["episode_id"].to_list())
    wanted = plan.recording.share.episode_ids(num_points * plan.num_branches)
    return sorted(
        _MissingEpisode(episode_id % num_points, episode_id // num_points, episode_id)
        for episode_id in wanted
        if episode_id not in present
    )


def _estimate_rows(plan: BranchPlan, missing: Sequence[_MissingEpisode]) -> RowEstimate | None:
    """Rows of the branches to come: exact where they replay, else a bound where there is one."""
    rows, points = 0, plan.config.points
    for point_index, times in Counter(episode.point_index for episode in missing).items():
        limit = _max_rows(plan, points[point_index])
        if limit is None and plan.environment.time_limit is not None:
            limit = plan.environment.time_limit - points[point_index].row
        if limit is None:
            return None
        rows += times * limit
    return RowEstimate(rows, is_loose=plan.config.branch_actions != "recorded")


def _episode_starts(plan: BranchPlan, missing: Sequence[_MissingEpisode]) -> Iterator[EpisodeStart]:
    """Where the missing branches start; points are restored as they are come to, many at a time."""
    points = plan.config.points
    by_point = [list(group) for _, group in groupby(missing, key=lambda m: m.point_index)]
    for begin in range(0, len(by_point), _POINTS_PER_REPLAY):
        groups = by_point[begin : begin + _POINTS_PER_REPLAY]
        sources = [points[group[0].point_index] for group in groups]
        restored = restore_points(plan.dataset, sources, plan.recording.num_threads)
        for source, group in zip(sources, groups, strict=True):
            for episode in group:
                yield _episode_start(plan, restored[source], episode)


def _episode_start(plan: BranchPlan, point: BranchPoint, missing: _MissingEpisode) -> EpisodeStart:
    dataset = plan.dataset
    source = SourceRow(point.source_episode_id, point.source_row)
    forced = _forced_action(plan, missing.branch)
    settled = _settled_actions(plan, source, forced)
    level = dataset.episodes["level_seed"].to_numpy()[dataset.index_of(source.episode_id)]
    interventions = plan.intervening.descriptions
    if forced is not None:
        interventions += ({"kind": "forced_action", "row": source.row, "action": forced},)
    return EpisodeStart(
        episode_id=missing.episode_id,
        level_seed=int(level),
        branch=Branch(
            point,
            noise_id(source, missing.branch),
            settled.action,
            settled.log_prob,
            _max_rows(plan, source),
        ),
        interventions=interventions,
        twin_of=plan.intervening.twin_of(missing.episode_id),
    )


def noise_id(source: SourceRow, branch: int) -> int:
    """What keys the draws of a branch, with seed and row: 60 bits that depend on nothing else."""
    return int(hash_bytes(f"{source.episode_id} {source.row} {branch}".encode())[:15], 16)


def _forced_action(plan: BranchPlan, branch: int) -> int | None:
    """Number of the first action that a branch is forced to, None where it is not."""
    name, spec = plan.config.force_action, plan.environment
    if name is None:
        return None
    if name == "each":
        return branch % spec.num_actions
    return spec.action_number(name, "force_action", "each")


@dataclass(frozen=True, eq=False)
class _SettledActions:
    action: NDArray[np.int32]
    log_prob: NDArray[np.float32]


def _settled_actions(plan: BranchPlan, source: SourceRow, forced: int | None) -> _SettledActions:
    """What a branch does at its first rows whatever the agent would do."""
    action, log_prob = np.zeros(0, np.int32), np.zeros(0, np.float32)
    if plan.config.branch_actions == "recorded":
        rows = _recorded_rows(plan.dataset, source)
        action = plan.dataset.read_field("action", rows.start, rows.stop)
        log_prob = plan.dataset.read_field("behaviour_log_prob", rows.start, rows.stop)
    if forced is None:
        return _SettledActions(action, log_prob)
    # Whoever is forced acts so with certainty: log 1.
    return _SettledActions(
        np.append(np.int32(forced), action[1:]), np.append(np.float32(0), log_prob[1:])
    )


def _recorded_rows(dataset: RolloutDataset, source: SourceRow) -> range:
    """The dataset's rows from the branch point to the episode's end."""
    index = dataset.index_of(source.episode_id)
    start = int(dataset.episodes["offset"].to_numpy()[index])
    length = int(dataset.episodes["length"].to_numpy()[index])
    return range(start + source.row, start + length)


def _max_rows(plan: BranchPlan, source: SourceRow) -> int | None:
    limits = [] if plan.config.branch_steps is None else [plan.config.branch_steps]
    if plan.config.branch_actions == "recorded":
        limits.append(len(_recorded_rows(plan.dataset, source)))
    return min(limits, default=None)
