"""Lets an agent play and keeps what happened.

Episode e of a dataset has number e, its level is a function of e, and every action is drawn by a
key made of e and the row. So it is the same however many environments are played side by side;
their number decides in which order episodes end, and which ones a budget cuts short. Every episode
that is begun is kept, also one that is cut: otherwise short episodes would be overrepresented.

Many processes may record one dataset: process I of N plays the episodes e ≡ I (mod N) and seals
shards under a name of its own. Their union is the dataset that one process would have made.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from agents.checkpoint import LoadedAgent
from agents.episode_slots import EpisodeSlots
from agents.intervening import UNTOUCHED, Intervening
from agents.networks import RecurrentPolicy
from agents.open_episode import EndedEpisode, EpisodeStart
from agents.player import Player, full_float32
from agents.recording_config import RecordingConfig, level_seeds
from agents.recording_plan import estimate_rows, require_space, what_remains
from agents.turns import alternate, deal, played_ahead
from environments.factory import make_environment_from_spec, require_levels
from environments.game_trace import game_tables
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from experiment.progress import Progress
from experiment.provenance import collect_provenance, to_plain
from projections.intervention_flags import NAMES_OF_FLAGS
from rollouts.background import write_in_background
from rollouts.description import METADATA_FILE, read_metadata
from rollouts.schema import DatasetMetadata
from rollouts.sealing import list_shards
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import Rollout

_MAX_PLAYERS = 2
_LARGE_GROUP = 32
"""Environments from which on the network gains little by more of them, on a CPU."""

SECONDS_BETWEEN_SEALS = 60.0
"""A killed recorder loses at most the work of this time."""


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


def record_episodes(
    agent: LoadedAgent,
    environment: EnvironmentSpec,
    folder: Path | str,
    config: RecordingConfig,
    device: torch.device | str = "cpu",
    intervening: Intervening = UNTOUCHED,
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
        intervening: what is done to the agent's state.

    Raises:
        UserError: the folder holds a dataset of another agent, environment or recording, the
            shard does not exist, or the disk surely has too little room.
    """
    folder = Path(folder)
    check_recording(agent, environment, folder, config, intervening)
    metadata = _metadata_of_recording(agent, environment, config, intervening)
    if config.with_state and metadata.game is None:
        print(f"only Procgen's games tell their state: recording {environment.name} without it")
    player = Player(
        agent.policy, config.behaviour_in(environment), device, intervening.intervention
    )
    start = time.perf_counter()
    recorded = recorded_episodes(folder)
    remaining, missing = what_remains(config, recorded)
    require_space(folder, metadata, estimate_rows(remaining, len(missing), recorded, environment))
    writer_name = str(config.share.index)
    with RolloutWriter(folder, metadata, writer_name, config.shard_bytes) as writer:
        # Again, since another shard may have created the dataset in the meantime.
        require_same_settings(folder, metadata, SETTINGS_OF_A_DATASET)
        starts = _level_starts(remaining, missing, intervening)
        rollouts = play_starts(player, agent.hash, environment, remaining, starts, len(missing))
        new_rows = write_rollouts(writer, rollouts)
    return summarise(folder, new_rows, time.perf_counter() - start)


def check_recording(
    agent: LoadedAgent,
    environment: EnvironmentSpec,
    folder: Path,
    config: RecordingConfig,
    intervening: Intervening = UNTOUCHED,
) -> None:
    """Raise `UserError` where `record_episodes` would refuse these arguments."""
    config.require_something_to_share()
    require_levels(environment, config.start_level, config.num_levels)
    metadata = _metadata_of_recording(agent, environment, config, intervening)
    require_same_settings(folder, metadata, SETTINGS_OF_A_DATASET)


def _metadata_of_recording(
    agent: LoadedAgent,
    environment: EnvironmentSpec,
    config: RecordingConfig,
    intervening: Intervening,
) -> DatasetMetadata:
    settings = {
        **asdict(config),
        **intervening.settings,
        "behaviour": to_plain(config.behaviour_in(environment)),
    }
    metadata = dataset_metadata(
        agent, environment, settings, config.seed, inputs={}, with_state=config.with_state
    )
    return replace(metadata, save_state_every=config.save_state_every)


def write_rollouts(writer: RolloutWriter, rollouts: Generator[Rollout, None, None]) -> int:
    """Write rollouts as they come, sealing a shard now and then; returns the number of rows."""
    # Where writing fails, the error would else hold on to those who play, who would go on.
    with closing(rollouts):
        return write_in_background(writer, rollouts, SECONDS_BETWEEN_SEALS)


def play_episodes(
    player: Player,
    agent_hash: str,
    environment: EnvironmentSpec,
    config: RecordingConfig,
    episode_ids: Iterable[int],
) -> Generator[Rollout, None, None]:
    """Play the given episodes and yield each when it ends, in the order of their ends."""
    ids = list(episode_ids)
    starts = _level_starts(config, ids, UNTOUCHED)
    return play_starts(player, agent_hash, environment, config, starts, len(ids))


def _level_starts(
    config: RecordingConfig, episode_ids: Sequence[int], intervening: Intervening
) -> Iterator[EpisodeStart]:
    levels = level_seeds(config, np.array(episode_ids, np.int64)).tolist()
    for episode_id, level in zip(episode_ids, levels, strict=True):
        yield EpisodeStart(
            episode_id,
            level,
            interventions=intervening.descriptions,
            twin_of=intervening.twin_of(episode_id),
        )


def play_starts(
    player: Player,
    agent_hash: str,
    environment: EnvironmentSpec,
    config: RecordingConfig,
    starts: Iterable[EpisodeStart],
    count: int,
) -> Generator[Rollout, None, None]:
    """Play episodes from where they start and yield each when it ends, in the order of their ends.

    The environments are played in groups: by two threads where the processor has two to give, else
    in turns, so that stepping one group overlaps inference for another. A start's position decides
    its group, and each group has its part of a budget of rows, so that the episodes and their order
    are the same either way.

    Args:
        player: who plays.
        agent_hash: hash of the agent.
        environment: in what.
        config: how many environments, and what ends the recording before all is played.
        starts: `count` episodes; taken one by one as slots become free.
        count: their number.
    """
    if not count:
        return
    num_envs = min(config.num_envs, count)
    sizes = group_sizes(num_envs)
    num_players = _num_players(player, len(sizes))
    groups = [
        EpisodeSlots(
            make_environment_from_spec(
                environment,
                size,
                num_levels=config.num_levels,
                start_level=config.start_level,
                num_threads=_num_environment_threads(config, num_players),
            ),
            player,
            agent_hash,
            with_state=config.with_state and game_tables(environment) is not None,
            save_state_every=config.save_state_every,
        )
        for size in sizes
    ]
    hands = deal(starts, len(groups))
    budgets = _Budget.shared_by(len(groups), config)
    turns = list(map(_turns_of_group, groups, hands, budgets))
    try:
        # Closed before the environments are: no thread may step one that is gone.
        with closing(_play_all(turns, num_players)) as ended:
            # Put together here, beside those who play, and one by one: the memory of one serves
            # the next.
            rollouts = map(EndedEpisode.rollout, ended)
            yield from _shown(rollouts, count, config.max_steps)
    finally:
        for group in groups:
            group.environment.close()


def _shown(rollouts: Iterator[Rollout], count: int, max_steps: int | None) -> Iterator[Rollout]:
    """Show progress towards what ends the recording: as a rule the budget of rows, if any."""
    num_episodes = num_rows = 0
    total, unit = (count, "episode") if max_steps is None else (max_steps, "row")
    with Progress(total, unit) as progress:
        for rollout in rollouts:
            num_episodes += 1
            num_rows += len(rollout)
            if max_steps is None:
                progress.advance(f"{num_rows} rows")
            else:
                progress.advance(f"{num_episodes} episodes", len(rollout))
            yield rollout


def group_sizes(num_envs: int) -> list[int]:
    """Environments of each group, which two threads play.

    A third group lets them share the work as they come, where a group is large enough even so for
    the network to be fast: with two, the faster thread has to wait for the other.
    """
    num_groups = min(num_envs, 2 if num_envs < 3 * _LARGE_GROUP else 3)
    size, more = divmod(num_envs, num_groups)
    return [size + (index < more) for index in range(num_groups)]


def _num_players(player: Player, num_groups: int) -> int:
    """Threads that play; agents from elsewhere may not bear to be asked by two at a time."""
    if player.device.type != "cpu" or not isinstance(player.policy, RecurrentPolicy):
        return 1
    return min(_MAX_PLAYERS, num_groups, torch.get_num_threads())


def _num_environment_threads(config: RecordingConfig, num_players: int) -> int:
    """Threads that step one group's environments; 0 leaves it to whoever plays it.

    A player that shares the cores with another steps on its own ones: threads beside it would only
    take turns with it and with the other player.
    """
    if num_players == 1:
        return config.num_threads
    cores_per_player = torch.get_num_threads() // num_players
    return 0 if cores_per_player == 1 else min(config.num_threads, cores_per_player)


def _play_all(
    turns: list[Iterator[list[EndedEpisode]]], num_players: int
) -> Generator[EndedEpisode, None, None]:
    if num_players == 1:
        yield from chain.from_iterable(alternate(turns))
        return
    threads_before = torch.get_num_threads()
    # Outside the threads: within, one could restore what the other had set.
    with full_float32(), ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads_before)
        ahead = played_ahead(turns, num_players, threads_before // num_players)
        yield from chain.from_iterable(alternate(stack.enter_context(ahead)))


def _turns_of_group(
    group: EpisodeSlots, starts: Iterator[EpisodeStart], budget: "_Budget"
) -> Iterator[list[EndedEpisode]]:
    """Play, and yield after each step which episodes ended with the step before."""
    while True:
        ended = list(group.collect())
        if budget.is_spent(group):
            yield ended
            # One by one: a list would hold the frames of all until the last is written.
            yield from ([episode] for episode in group.cut())
            return
        group.begin_episodes(list(islice(starts, group.num_free)))
        group.act()
        yield ended
        if not group.is_playing:
            return


@dataclass(frozen=True)
class _Budget:
    """What ends the playing of a group."""

    max_steps: int | None
    end: float
    """On the monotonic clock."""

    @classmethod
    def shared_by(cls, num_groups: int, config: RecordingConfig) -> list["_Budget"]:
        """Equal parts, up to a row."""
        end = time.monotonic() + 3600 * (np.inf if config.max_hours is None else config.max_hours)
        if config.max_steps is None:
            return [cls(None, end)] * num_groups
        steps, more = divmod(config.max_steps, num_groups)
        return [cls(steps + (index < more), end) for index in range(num_groups)]

    def is_spent(self, group: EpisodeSlots) -> bool:
        # Not before the first step, however short the time: a dataset has at least one episode.
        if group.num_steps > 0 and time.monotonic() >= self.end:
            return True
        return self.max_steps is not None and group.num_steps >= self.max_steps


def summarise(folder: Path, new_rows: int, seconds: float) -> RecordingSummary:
    """What the dataset `folder` holds after `new_rows` rows were recorded in `seconds`."""
    episodes = RolloutDataset(folder).episodes
    return RecordingSummary(
        episodes=len(episodes),
        rows=int(episodes["length"].to_numpy().sum()),
        cut_episodes=int(episodes["cut"].to_numpy().sum()),
        mean_return=float(episodes["return"].to_numpy().mean()),
        level_complete_fraction=float(episodes["level_complete"].to_numpy().mean()),
        frames_per_second=new_rows / seconds,
    )


def recorded_episodes(folder: Path) -> pd.DataFrame:
    """The table of the episodes that are there already."""
    if (folder / METADATA_FILE).exists() and list_shards(folder):
        return RolloutDataset(folder).episodes
    none = np.zeros(0, np.int64)
    return pd.DataFrame({"episode_id": none, "length": none, "cut": none.astype(bool)})


SETTINGS_OF_A_DATASET = (
    "seed",
    "start_level",
    "num_levels",
    "sequential_levels",
    "greedy",
    "action_noise",
    "interventions",
    "save_state_every",
)
"""Settings that decide what episode e is, and what is kept of it: the same for all episodes of a
dataset."""

_SETTINGS_BEFORE_THEY_WERE_STORED = {"interventions": [], "save_state_every": None}
_FLAGS = {"interventions": NAMES_OF_FLAGS, "dataset": "branch_from"}
"""Flags of what is not called as its flag."""


def dataset_metadata(
    agent: LoadedAgent,
    environment: EnvironmentSpec,
    settings: dict[str, Any],
    seed: int,
    inputs: dict[str, str],
    with_state: bool,
) -> DatasetMetadata:
    """Describe a dataset of rollouts of the real environment.

    Args:
        agent: who plays.
        environment: in what.
        settings: what decides which episodes there are, for the provenance.
        seed: keys every draw.
        inputs: hashes of what the episodes are made from, besides the agent.
        with_state: whether game states are kept, where the environment tells them.
    """
    policy = agent.policy
    provenance = collect_provenance(settings, seed, {"agent": agent.hash, **inputs})
    return DatasetMetadata(
        environment=environment,
        agent_hash=agent.hash,
        agent_file=agent.reference,
        state_dim=policy.state_dim,
        hidden_slice=(policy.hidden_slice.start, policy.hidden_slice.stop),
        num_actions=policy.num_actions,
        simulated=None,
        game=game_tables(environment) if with_state else None,
        provenance=to_plain(provenance),
    )


def require_same_settings(
    folder: Path, metadata: DatasetMetadata, names: Iterable[str], inputs: Iterable[str] = ()
) -> None:
    """Raise `UserError` when `folder` holds a dataset whose episode e would be another one.

    Args:
        folder: the dataset to continue; there may be none yet.
        metadata: what it is to be.
        names: settings that must be the same.
        inputs: inputs that must be the same.
    """
    if not (folder / METADATA_FILE).exists():
        return
    existing = read_metadata(folder)
    _require_same_states(folder, existing, metadata)
    earlier, now = existing.provenance, metadata.provenance
    found = {**_SETTINGS_BEFORE_THEY_WERE_STORED, **earlier.get("config", {})}
    pairs = {name: (found.get(name), now["config"][name]) for name in names}
    pairs |= {name: (earlier.get("inputs", {}).get(name), now["inputs"][name]) for name in inputs}
    for name, (then, asked) in pairs.items():
        if then != asked:
            raise UserError(
                f"--{_FLAGS.get(name, name)} {asked}: the dataset {folder} was recorded with "
                f"{then}; choose another --data_dir or the same setting"
            )


def _require_same_states(folder: Path, existing: DatasetMetadata, asked: DatasetMetadata) -> None:
    if existing.game is not None and asked.game is None:
        found, expected = "--no-with_state", "with"
    elif existing.game is None and asked.game is not None:
        found, expected = "--with_state", "without"
    else:
        return
    raise UserError(
        f"{found}: the dataset {folder} was recorded {expected} game states; choose another "
        "--data_dir or the same setting"
    )
