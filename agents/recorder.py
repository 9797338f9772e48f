"""Lets an agent play and keeps what happened.

Episode e of a dataset has number e, its level is a function of e, and every action is drawn by a
key made of e and the row. So the number of environments changes nothing but the speed. Every
episode that is begun is kept, also one that a budget cuts short: otherwise short episodes would be
overrepresented.

Many processes may record one dataset: process I of N plays the episodes e ≡ I (mod N) and seals
shards under a name of its own. Their union is the dataset that one process would have made.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from agents.checkpoint import LoadedAgent
from agents.player import BehaviourConfig, Decision, Player
from environments.factory import DEFAULT_NUM_THREADS, make_environment_from_spec, require_levels
from environments.protocol import (
    TRAINING_LEVELS,
    EnvironmentSpec,
    VectorEnvironment,
)
from experiment.errors import UserError
from experiment.files import require_free_space
from experiment.progress import Progress
from experiment.provenance import collect_provenance, to_plain
from experiment.randomness import keyed_uniform
from rollouts.schema import DatasetMetadata
from rollouts.shards import list_shards
from rollouts.store import METADATA_FILE, RolloutDataset, RolloutWriter, read_metadata
from rollouts.types import EpisodeInfo, Rollout

SECONDS_BETWEEN_SEALS = 60.0
"""A killed recorder loses at most the work of this time."""

EXPECTED_COMPRESSION = 5.0
"""How many times smaller than its arrays a dataset is on disk, to estimate its size: CoinRun is
stored 6 (with backgrounds or in short recordings) to 10 times smaller, StarPilot 11 times."""

_EPISODES_THAT_TELL_THE_LENGTH = 10


@dataclass(frozen=True)
class RecordingConfig:
    """How much to record, where, and how the agent acts."""

    max_episodes: int = 4000
    """Episodes that the dataset shall have in all; those already there are not played again."""
    num_envs: int = 64
    """Environments stepped together; changes the speed only."""
    start_level: int = 0
    """First level seed. Levels from 1000000000 on are held out: training never sees them."""
    num_levels: int = 0
    """Number of levels from the first on; 0 means 1000000000."""
    sequential_levels: bool = False
    """Play the levels in order, each exactly once, instead of drawing one per episode."""
    greedy: bool = False
    """Take the most probable action instead of drawing one."""
    action_noise: bool = False
    """Explore as the reference's recorder does; logits are recorded without the noise."""
    max_steps: int | None = None
    """Stop when the dataset has about this many rows in all; running episodes are cut and kept.
    Of several shards each counts the rows of its own episodes, up to its equal part of the total.
    """
    max_hours: float | None = None
    """Stop after this time; running episodes are cut and kept."""
    seed: int = 0
    """Decides levels and actions."""
    num_threads: int = DEFAULT_NUM_THREADS
    """Threads that step the environments."""
    shard_index: int | None = None
    """Which part of the dataset this process records, 0 to num_shards − 1: the episodes whose
    number leaves this remainder when divided by num_shards. Any number of processes may record
    their parts into one folder at the same time. Default: SLURM_ARRAY_TASK_ID where it is set,
    otherwise 0."""
    num_shards: int | None = None
    """Number of parts. Default: SLURM_ARRAY_TASK_COUNT where it is set, otherwise 1. Submit arrays
    that count from 0, and name this number when only some of the tasks are submitted again."""
    shard_megabytes: int = 268
    """Size of a shard file, in MB (10^6 bytes) before compression, which makes it 5 to 10 times
    smaller; bounds the memory. A shard is also finished after a minute, and at the end."""

    def __post_init__(self) -> None:
        for name in ("max_episodes", "num_envs", "max_steps", "num_shards", "shard_megabytes"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UserError(f"--{name} {count}: at least 1 is needed")
        if self.max_hours is not None and self.max_hours <= 0:
            raise UserError(f"--max_hours {self.max_hours}: a positive number is needed")
        if self.num_threads < 0:
            raise UserError(f"--num_threads {self.num_threads}: below 0")
        if self.shard_index is not None and self.shard_index < 0:
            raise UserError(f"--shard_index {self.shard_index}: below 0")

    @property
    def share(self) -> "Share":
        """The part of the dataset to record; all of it where no flag says otherwise.

        Raises:
            UserError: there is no such part, or nothing would be left for it to record.
        """
        share = Share(self.shard_index or 0, self.num_shards or 1)
        if share.index >= share.count:
            raise UserError(
                f"--shard_index {share.index}: expected 0 to {share.count - 1}, since --num_shards "
                f"is {share.count} (an array of N tasks counts from 0 to N-1)"
            )
        for name in ("max_episodes", "max_steps"):
            total = getattr(self, name)
            if total is not None and total < share.count:
                raise UserError(f"--num_shards {share.count}: more than --{name} {total}")
        return share


@dataclass(frozen=True)
class Share:
    """The episodes e ≡ index (mod count) of a dataset."""

    index: int
    count: int

    def episode_ids(self, num_episodes: int) -> range:
        """Those of the dataset's first `num_episodes` episodes that belong to it."""
        return range(self.index, num_episodes, self.count)

    def part_of(self, total: int) -> int:
        """Its part of a total; the parts of all shares add up to the total."""
        return len(self.episode_ids(total))


def apply_slurm_defaults(config: RecordingConfig, environ: Mapping[str, str]) -> RecordingConfig:
    """Take the shard from a SLURM job array where the flags do not name it.

    Args:
        config: as the command line gave it.
        environ: environment variables.

    Raises:
        UserError: a variable that is needed is not a number.
    """
    names = {"shard_index": "SLURM_ARRAY_TASK_ID", "num_shards": "SLURM_ARRAY_TASK_COUNT"}
    found = {
        flag: environ[variable]
        for flag, variable in names.items()
        if getattr(config, flag) is None and environ.get(variable)
    }
    for flag, text in found.items():
        if not text.isdecimal():
            raise UserError(f"{names[flag]}={text}: expected a number; give --{flag} instead")
    return replace(config, **{flag: int(text) for flag, text in found.items()})


@dataclass(frozen=True)
class RecordingSummary:
    """What the dataset holds after a call, the shards of other processes included."""

    episodes: int
    rows: int
    cut_episodes: int
    mean_return: float
    level_complete_fraction: float
    frames_per_second: float
    """Of this call alone; 0 when nothing was left to record."""


def level_seeds(config: RecordingConfig, episode_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) levels of (N,) episodes."""
    if config.sequential_levels:
        return config.start_level + episode_ids
    uniform = keyed_uniform(config.seed, "level", episode_ids)[:, 0]
    offset = np.floor(uniform * (config.num_levels or TRAINING_LEVELS))
    return config.start_level + offset.astype(np.int64)


def record_episodes(
    agent: LoadedAgent,
    environment: EnvironmentSpec,
    folder: Path | str,
    config: RecordingConfig,
    device: torch.device | str = "cpu",
) -> RecordingSummary:
    """Play until the dataset `folder` has `config.max_episodes` episodes, or a budget is spent.

    A dataset that is there already is continued, with the episodes it lacks. Where `config` names
    a shard, only the episodes of that shard are played.

    Args:
        agent: who plays.
        environment: in what; `environment_of_agent` checks that the two fit.
        folder: dataset folder.
        config: how much and how.
        device: where the network runs.

    Raises:
        UserError: the folder holds a dataset of another agent, environment or recording, the
            shard does not exist, or the disk surely has too little room.
    """
    folder, share = Path(folder), config.share
    require_levels(environment, config.start_level, config.num_levels)
    metadata = _dataset_metadata(agent, environment, config)
    _require_same_settings(folder, metadata)
    behaviour = BehaviourConfig(config.greedy, config.action_noise, config.seed)
    player = Player(agent.policy, behaviour, device)
    start, new_rows = time.perf_counter(), 0
    recorded = _recorded_episodes(folder)
    remaining, missing = _what_remains(config, recorded)
    _require_space(folder, metadata, estimate_rows(remaining, len(missing), recorded, environment))
    shard_bytes = config.shard_megabytes * 10**6
    with RolloutWriter(folder, metadata, str(share.index), shard_bytes) as writer:
        # Again, since another shard may have created the dataset in the meantime.
        _require_same_settings(folder, metadata)
        last_sealed = time.monotonic()
        for rollout in play_episodes(player, agent.hash, environment, remaining, missing):
            writer.write(rollout)
            new_rows += len(rollout)
            if time.monotonic() - last_sealed > SECONDS_BETWEEN_SEALS:
                writer.seal()
                last_sealed = time.monotonic()
    return _summarise(folder, new_rows, time.perf_counter() - start)


def play_episodes(
    player: Player,
    agent_hash: str,
    environment: EnvironmentSpec,
    config: RecordingConfig,
    episode_ids: Iterable[int],
) -> Iterator[Rollout]:
    """Play the given episodes and yield each when it ends, in the order of their ends.

    Two halves of the environments take turns, so that stepping one overlaps inference for the
    other.
    """
    queue = deque(int(episode_id) for episode_id in episode_ids)
    if not queue:
        return
    num_envs = min(config.num_envs, len(queue))
    sizes = [size for size in (num_envs - num_envs // 2, num_envs // 2) if size]
    halves = [
        _Slots(
            make_environment_from_spec(
                environment,
                size,
                num_levels=config.num_levels,
                start_level=config.start_level,
                num_threads=config.num_threads,
            ),
            player,
            agent_hash,
        )
        for size in sizes
    ]
    num_rows = 0
    try:
        with Progress(len(queue), "episode") as progress:
            for rollout in _take_turns(halves, queue, config):
                num_rows += len(rollout)
                progress.advance(f"{num_rows} rows")
                yield rollout
    finally:
        for half in halves:
            half.environment.close()


def _take_turns(
    halves: list["_Slots"], queue: deque[int], config: RecordingConfig
) -> Iterator[Rollout]:
    budget = _Budget(config)
    while queue or any(half.is_playing for half in halves):
        for half in halves:
            yield from half.collect()
            if budget.is_spent(halves):
                for unfinished in halves:
                    yield from unfinished.cut()
                return
            half.begin_episodes(queue, config)
            half.act()


class _Budget:
    def __init__(self, config: RecordingConfig) -> None:
        self._max_steps = config.max_steps
        self._end = time.monotonic() + 3600 * (
            np.inf if config.max_hours is None else config.max_hours
        )

    def is_spent(self, halves: list["_Slots"]) -> bool:
        if time.monotonic() >= self._end:
            return True
        return self._max_steps is not None and sum(h.num_steps for h in halves) >= self._max_steps


@dataclass
class _OpenEpisode:
    """Rows of an episode so far; the last one may lack its reward and done."""

    episode_id: int
    level_seed: int
    decided: dict[str, list[Any]] = field(
        default_factory=lambda: {
            "obs": [],
            "agent_hidden": [],
            "action_logits": [],
            "value": [],
            "action": [],
            "behaviour_log_prob": [],
        }
    )
    rewards: list[float] = field(default_factory=list)
    dones: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.decided["action"])

    def append(self, frame: NDArray[np.uint8], decision: Decision, index: int) -> None:
        # Copies: a view would keep the whole batch in memory until the episode ends.
        self.decided["obs"].append(frame.copy())
        self.decided["agent_hidden"].append(decision.agent_hidden[index].copy())
        self.decided["action_logits"].append(decision.action_logits[index].copy())
        for name in ("value", "action", "behaviour_log_prob"):
            self.decided[name].append(getattr(decision, name)[index])

    def finish(self, info: EpisodeInfo) -> Rollout:
        return Rollout(
            **{name: np.stack(rows) for name, rows in self.decided.items()},
            reward=np.array(self.rewards, np.float32),
            done=np.array(self.dones, bool),
            info=info,
        )


class _Slots:
    """Environments stepped together, and the episode that runs in each."""

    def __init__(self, environment: VectorEnvironment, player: Player, agent_hash: str) -> None:
        self.environment = environment
        self.num_steps = 0
        self._player = player
        self._agent_hash = agent_hash
        self._state = player.initial_state(environment.num_envs)
        self._initial_state = player.initial_state(1)[0].float().cpu().numpy()
        self._episodes: list[_OpenEpisode | None] = [None] * environment.num_envs
        self._awaits_step = False

    @property
    def is_playing(self) -> bool:
        return any(episode is not None for episode in self._episodes)

    def collect(self) -> Iterator[Rollout]:
        """Complete the rows that await their outcome; yield the episodes that ended."""
        if not self._awaits_step:
            return
        self._awaits_step = False
        outcome = self.environment.observe()
        for index, episode in enumerate(self._episodes):
            if episode is None:
                continue
            episode.rewards.append(float(outcome.reward[index]))
            episode.dones.append(bool(outcome.first[index]))
            if outcome.first[index]:
                self._episodes[index] = None
                info = replace(
                    self._info(episode),
                    level_complete=bool(outcome.level_complete[index]),
                    truncated=bool(outcome.truncated[index]),
                )
                yield episode.finish(info)

    def cut(self) -> Iterator[Rollout]:
        """Complete the rows that await their outcome, then yield every episode begun."""
        yield from self.collect()
        for index, episode in enumerate(self._episodes):
            self._episodes[index] = None
            if episode is not None and len(episode) > 0:
                yield episode.finish(replace(self._info(episode), cut=True))

    def begin_episodes(self, queue: deque[int], config: RecordingConfig) -> None:
        """Put the next episodes of the queue into the free slots."""
        free = [index for index, episode in enumerate(self._episodes) if episode is None]
        episode_ids = [queue.popleft() for _ in free[: len(queue)]]
        if not episode_ids:
            return
        levels = level_seeds(config, np.array(episode_ids, np.int64)).tolist()
        slots = free[: len(episode_ids)]
        self.environment.start_level(slots, levels)
        for index, episode_id, level in zip(slots, episode_ids, levels, strict=True):
            self._episodes[index] = _OpenEpisode(episode_id, level)

    def act(self) -> None:
        """Decide in every slot that plays, and start the step."""
        playing = [(i, e) for i, e in enumerate(self._episodes) if e is not None]
        if not playing:
            return
        indices = np.array([index for index, _ in playing])
        frames = self.environment.observe().obs[indices]
        decision = self._player.decide(
            frames,
            self._state[indices],
            np.array([episode.episode_id for _, episode in playing], np.int64),
            np.array([len(episode) for _, episode in playing], np.int64),
        )
        self._state[indices] = decision.state
        actions = np.full(self.environment.num_envs, self.environment.spec.null_action, np.int32)
        actions[indices] = decision.action
        self.environment.send(actions)
        self._awaits_step = True
        self.num_steps += len(playing)
        for position, (_, episode) in enumerate(playing):
            episode.append(frames[position], decision, position)

    def _info(self, episode: _OpenEpisode) -> EpisodeInfo:
        return EpisodeInfo(
            episode_id=episode.episode_id,
            agent_hash=self._agent_hash,
            agent_initial_state=self._initial_state,
            level_seed=episode.level_seed,
        )


def _summarise(folder: Path, new_rows: int, seconds: float) -> RecordingSummary:
    episodes = RolloutDataset(folder).episodes
    return RecordingSummary(
        episodes=len(episodes),
        rows=int(episodes["length"].to_numpy().sum()),
        cut_episodes=int(episodes["cut"].to_numpy().sum()),
        mean_return=float(episodes["return"].to_numpy().mean()),
        level_complete_fraction=float(episodes["level_complete"].to_numpy().mean()),
        frames_per_second=new_rows / seconds,
    )


def _recorded_episodes(folder: Path) -> pd.DataFrame:
    """The table of the episodes that are there already."""
    if (folder / METADATA_FILE).exists() and list_shards(folder):
        return RolloutDataset(folder).episodes
    none = np.zeros(0, np.int64)
    return pd.DataFrame({"episode_id": none, "length": none, "cut": none.astype(bool)})


def _what_remains(
    config: RecordingConfig, recorded: pd.DataFrame
) -> tuple[RecordingConfig, list[int]]:
    """The settings with what is left of the budget, and the share's episodes that are missing."""
    share, episode_ids = config.share, recorded["episode_id"].to_numpy()
    present = set(episode_ids.tolist())
    missing = [e for e in share.episode_ids(_available_episodes(config)) if e not in present]
    if config.max_steps is None:
        return config, missing
    mine = episode_ids % share.count == share.index
    steps_left = share.part_of(config.max_steps) - int(recorded["length"].to_numpy()[mine].sum())
    if steps_left <= 0:
        return config, []
    # It is the budget of this process alone now, no longer one to be divided.
    return replace(config, max_steps=steps_left, shard_index=None, num_shards=None), missing


@dataclass(frozen=True)
class RowEstimate:
    """How many rows a call will record."""

    rows: int
    is_loose: bool
    """A bound that episodes rarely come near: every one as long as the time limit lets it be."""


def estimate_rows(
    config: RecordingConfig, num_episodes: int, recorded: pd.DataFrame, environment: EnvironmentSpec
) -> RowEstimate | None:
    """Rows of the episodes to come; None where nothing bounds them.

    Args:
        config: with what is left of the budget.
        num_episodes: number of episodes to play.
        recorded: table of the episodes that are there already; enough of them tell the length.
        environment: its time limit bounds the length.
    """
    estimates = []
    whole = recorded["length"].to_numpy()[~recorded["cut"].to_numpy()]
    if len(whole) >= _EPISODES_THAT_TELL_THE_LENGTH:
        estimates.append(RowEstimate(math.ceil(num_episodes * whole.mean()), is_loose=False))
    elif environment.time_limit is not None:
        estimates.append(RowEstimate(num_episodes * environment.time_limit, is_loose=True))
    if config.max_steps is not None and num_episodes > 0:
        estimates.append(RowEstimate(config.max_steps + config.num_envs, is_loose=False))
    return min(estimates, key=lambda estimate: estimate.rows, default=None)


def _require_space(folder: Path, metadata: DatasetMetadata, estimate: RowEstimate | None) -> None:
    """Print what the recording will take; raise `UserError` where the disk has not got it.

    A loose bound is no reason to refuse: a disk that fills up leaves the sealed shards intact.
    """
    if estimate is None:
        print("size of the recording unknown: nothing bounds its episodes (--max_steps would)")
        return
    if estimate.rows == 0:
        return
    size = math.ceil(estimate.rows * metadata.row_bytes / EXPECTED_COMPRESSION)
    kind = "at most" if estimate.is_loose else "about"
    print(f"recording {kind} {estimate.rows} rows, {kind} {size / 1e9:.2f} GB in {folder}")
    if not estimate.is_loose:
        require_free_space(folder, size, "--data_dir")


def _available_episodes(config: RecordingConfig) -> int:
    num_levels = config.num_levels or TRAINING_LEVELS
    if not config.sequential_levels or config.max_episodes <= num_levels:
        return config.max_episodes
    share = config.share
    if num_levels < share.count:
        raise UserError(f"--num_shards {share.count}: more than the {num_levels} levels to play")
    print(
        f"--max_episodes {config.max_episodes}: only {num_levels} levels to play once each, "
        f"recording {num_levels} episodes"
    )
    return num_levels


SETTINGS_OF_A_DATASET = (
    "seed",
    "start_level",
    "num_levels",
    "sequential_levels",
    "greedy",
    "action_noise",
)
"""Settings that decide what episode e is: the same for all episodes of a dataset."""


def _dataset_metadata(
    agent: LoadedAgent, environment: EnvironmentSpec, config: RecordingConfig
) -> DatasetMetadata:
    policy = agent.policy
    provenance = collect_provenance(asdict(config), config.seed, {"agent": agent.hash})
    return DatasetMetadata(
        environment=environment,
        agent_hash=agent.hash,
        agent_file=str(agent.path.resolve()),
        state_dim=policy.state_dim,
        hidden_slice=(policy.hidden_slice.start, policy.hidden_slice.stop),
        num_actions=policy.num_actions,
        simulated=None,
        provenance=to_plain(provenance),
    )


def _require_same_settings(folder: Path, metadata: DatasetMetadata) -> None:
    """Raise `UserError` when `folder` holds a dataset whose episode e would be another one."""
    if not (folder / METADATA_FILE).exists():
        return
    earlier = read_metadata(folder).provenance.get("config", {})
    for name in SETTINGS_OF_A_DATASET:
        found, expected = metadata.provenance["config"][name], earlier.get(name)
        if found != expected:
            raise UserError(
                f"--{name} {found}: the dataset {folder} was recorded with {expected}; "
                "choose another --data_dir or the same setting"
            )
