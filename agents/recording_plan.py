"""What a recording still has to do, and what room it will take."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from agents.recording_config import RecordingConfig
from environments.game_trace import typical_num_entities
from environments.protocol import TRAINING_LEVELS, EnvironmentSpec
from experiment.errors import UserError
from experiment.files import free_bytes, require_free_space
from rollouts.schema import DatasetMetadata

EXPECTED_COMPRESSION = 5.0
"""How many times smaller than its arrays a dataset is on disk, to estimate its size: CoinRun is
stored 6 (with backgrounds or in short recordings) to 10 times smaller, StarPilot 11 times."""

_EPISODES_THAT_TELL_THE_LENGTH = 10
_STATE_BYTES = 38_000
"""Of a saved state of Procgen, uncompressed, at most."""


def what_remains(
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


def require_space(folder: Path, metadata: DatasetMetadata, estimate: RowEstimate | None) -> None:
    """Print what the recording will take; raise `UserError` where the disk has not got it.

    A loose bound is no reason to refuse: a disk that fills up leaves the sealed shards intact.
    """
    if estimate is None:
        print("size of the recording unknown: nothing bounds its episodes (--max_steps would)")
        return
    if estimate.rows == 0:
        return
    size = math.ceil(estimate.rows * _expected_row_bytes(metadata) / EXPECTED_COMPRESSION)
    kind = "at most" if estimate.is_loose else "about"
    print(f"recording {kind} {estimate.rows} rows, {kind} {size / 1e9:.2f} GB in {folder}")
    if not estimate.is_loose:
        require_free_space(folder, size, "--data_dir")
    elif free_bytes(folder) < size:
        print(f"only {free_bytes(folder) / 1e9:.2f} GB are free there: that may not suffice")


def _expected_row_bytes(metadata: DatasetMetadata) -> float:
    entities = [spec for spec in metadata.ragged_fields if spec.name == "game_entities"]
    num_entities = typical_num_entities(metadata.environment.name)
    saved = 0 if metadata.save_state_every is None else _STATE_BYTES / metadata.save_state_every
    return metadata.row_bytes + sum(num_entities * spec.row_bytes for spec in entities) + saved


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
