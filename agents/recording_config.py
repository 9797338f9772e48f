"""What a recording is: how many episodes, which levels, how the agent acts, and whose part."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agents.action_noise import noise_of_environment
from agents.player import BehaviourConfig
from environments.factory import DEFAULT_NUM_THREADS
from environments.protocol import TRAINING_LEVELS, EnvironmentSpec
from experiment.errors import UserError
from experiment.randomness import keyed_permutation


@dataclass(frozen=True)
class RecordingConfig:
    """How much to record, where, and how the agent acts."""

    max_episodes: int = 4000
    """Episodes that the dataset shall have in all; those already there are not played again."""
    num_envs: int = 96
    """Environments played side by side. What happens in an episode does not depend on their number,
    but the speed does, the memory (13 kB per row of CoinRun, of all episodes that run), the order
    of the episodes and, with --max_steps or --max_hours, which of them are cut."""
    start_level: int = 0
    """First level seed. Levels from 1000000000 on are held out: training never sees them."""
    num_levels: int = 0
    """Number of levels from the first on; 0 means 1000000000."""
    sequential_levels: bool = False
    """Play the levels in order, each exactly once, instead of in a drawn order, over and over."""
    greedy: bool = False
    """Take the most probable action instead of drawing one."""
    action_noise: bool = False
    """Explore, by a flatter policy; in CoinRun as the reference's recorder does. Logits are
    recorded without the noise, its parameters with the dataset."""
    max_steps: int | None = None
    """Stop when the dataset has about this many rows in all; running episodes are cut and kept.
    Of several shards each counts the rows of its own episodes, up to its equal part of the total.
    """
    max_hours: float | None = None
    """Stop after this time, but not before the first step; running episodes are cut and kept."""
    seed: int = 0
    """Decides levels and actions."""
    num_threads: int = DEFAULT_NUM_THREADS
    """Threads that step the environments; fewer where two players have fewer cores each."""
    shard_index: int | None = None
    """Which part of the dataset this process records, 0 to num_shards − 1: the episodes whose
    number leaves this remainder when divided by num_shards. Any number of processes may record
    their parts into one folder at the same time. Default: SLURM_ARRAY_TASK_ID where it is set,
    otherwise 0; with --branch_from 0."""
    num_shards: int | None = None
    """Number of parts. Default: SLURM_ARRAY_TASK_COUNT where it is set, otherwise 1; with
    --branch_from 1. Submit arrays that count from 0, and name this number when only some of the
    tasks are submitted again."""
    with_state: bool = True
    """Keep what the game itself knows at each step: where everything is and how it moves, and a
    table of named variables (docs/game_state.md). Procgen's games tell it, others do not."""
    save_state_every: int | None = None
    """Also keep the environment's whole state every so many rows of an episode, so that
    --branch_from begins there in place of the level's first frame; by default none is kept. In
    Procgen a state takes 3 to 9 kB."""
    shard_size: int = 268
    """Size of a shard file, in MB (10^6 bytes) before compression, which makes it 5 to 10 times
    smaller; bounds the memory. A shard is also finished after a minute, and at the end."""

    def __post_init__(self) -> None:
        for name in (
            *("max_episodes", "num_envs", "max_steps", "num_shards"),
            *("save_state_every", "shard_size"),
        ):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UserError(f"--{name} {count}: at least 1 is needed")
        if self.max_hours is not None and self.max_hours <= 0:
            raise UserError(f"--max_hours {self.max_hours}: a positive number is needed")
        if self.num_threads < 0:
            raise UserError(f"--num_threads {self.num_threads}: below 0")
        if self.shard_index is not None and self.shard_index < 0:
            raise UserError(f"--shard_index {self.shard_index}: below 0")
        # The noise clips logits, so that many share the highest: which is the best would be lost.
        if self.greedy and self.action_noise:
            raise UserError("--greedy: the most probable action is that without --action_noise")

    def behaviour_in(self, environment: EnvironmentSpec) -> BehaviourConfig:
        """How the agent acts there; raises `UserError` where it has no such noise."""
        noise = noise_of_environment(environment) if self.action_noise else None
        return BehaviourConfig(self.greedy, noise, self.seed)

    @property
    def shard_bytes(self) -> int:
        """Size of a shard before compression."""
        return self.shard_size * 10**6

    @property
    def share(self) -> "Share":
        """The part of the dataset to record; all of it where no flag says otherwise.

        Raises:
            UserError: there is no such part.
        """
        share = Share(self.shard_index or 0, self.num_shards or 1)
        if share.index >= share.count:
            raise UserError(
                f"--shard_index {share.index}: expected 0 to {share.count - 1}, since --num_shards "
                f"is {share.count} (an array of N tasks counts from 0 to N-1)"
            )
        return share

    def require_something_to_share(self) -> None:
        """Raise `UserError` for a part that is not there, or for more parts than episodes or rows.

        The totals are those of new episodes; branches have others.
        """
        count = self.share.count
        for name in ("max_episodes", "max_steps"):
            total = getattr(self, name)
            if total is not None and total < count:
                raise UserError(f"--num_shards {count}: more than --{name} {total}")


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
        UserError: a variable that is needed is not a number, or there is no such shard.
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
    try:
        config = replace(config, **{flag: int(text) for flag, text in found.items()})
        config.require_something_to_share()
    except UserError as error:
        if not found:
            raise
        # Nobody typed the flags that the complaint is about.
        named = ", ".join(f"--{flag} from {names[flag]}={text}" for flag, text in found.items())
        raise UserError(
            f"{error}; took {named}: give --shard_index 0 --num_shards 1 to record all of it here"
        ) from error
    return config


def level_seeds(config: RecordingConfig, episode_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) levels of (N,) episodes: every level once, in a drawn order, before any comes again.

    So the shards of a dataset share no level, unless it has more episodes than levels.
    """
    if config.sequential_levels:
        return config.start_level + episode_ids
    num_levels = config.num_levels or TRAINING_LEVELS
    turn, position = np.divmod(episode_ids, num_levels)
    return config.start_level + keyed_permutation(config.seed, "level", position, num_levels, turn)
