"""The real environment under the very actions of simulated samples.

A sample that a window of real rollouts set up has a real counterpart: the environment is brought
back to the window's last frame and given the sample's actions, and the agent, in its recorded
state, watches. Row k of such a *replay* is what row k of the sample imitates, until the real
episode ends. A replay has the id of its sample; its rollout is of the same type.

Samples from random, interpolated or given latents have no counterpart.
"""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agents.checkpoint import LoadedAgent
from agents.open_episode import Branch, BranchPoint, EpisodeStart
from agents.player import BehaviourConfig, Player
from agents.recorder import (
    dataset_metadata,
    play_starts,
    recorded_episodes,
    write_rollouts,
)
from agents.recording_config import RecordingConfig
from agents.recording_plan import RowEstimate, require_space
from agents.replay import SourceRow, restore_points
from experiment.errors import UserError
from generative.recording_identity import recording_identity
from projections.intervention import Intervention
from rollouts.description import METADATA_FILE, read_metadata
from rollouts.schema import DatasetMetadata
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import Rollout

_STARTS_PER_REPLAY = 64
"""Bounds the memory: each may need an environment of its own, and holds a saved state."""


@dataclass(frozen=True, eq=False)
class ReplayPlan:
    """Samples, and all that is needed to let them happen in reality."""

    samples: RolloutDataset
    source: RolloutDataset
    """The real rollouts whose windows set them up."""
    agent: LoadedAgent
    interventions: Mapping[str, Intervention | None]
    """Those of the samples, by the text of their column `interventions`."""
    num_envs: int
    """Environments stepped together; changes the speed only."""
    num_threads: int
    """Threads that step them."""


def require_source_of(samples: RolloutDataset, source: RolloutDataset, flag: str) -> None:
    """Raise `UserError` naming `flag` unless windows of `source` set up the `samples`."""
    expected = samples.metadata.provenance.get("inputs", {}).get("dataset")
    if source.hash != expected:
        raise UserError(
            f"{flag} {source.folder}: rollouts {source.hash[:12]}, but the samples "
            f"{samples.folder} begin in windows of rollouts {str(expected)[:12]}"
        )


def has_reality(samples: RolloutDataset) -> NDArray[np.bool_]:
    """(num_episodes,) whether a sample begins in a real episode."""
    return samples.episodes["source_episode_id"].to_numpy() >= 0


@dataclass(frozen=True)
class _Sample:
    """A sample to be replayed; ordered lists of them hold those of one episode together."""

    interventions: str
    source: SourceRow
    episode_id: int
    rows: slice
    """Its rows in the dataset of samples."""


def record_replays(
    plan: ReplayPlan, folder: Path | str, device: torch.device | str = "cpu"
) -> None:
    """Record the replays that the dataset `folder` lacks.

    Raises:
        UserError: `folder` holds replays of other samples, the source's episodes do not happen
            again, or the disk has too little room.
    """
    folder = Path(folder)
    metadata = _metadata(plan)
    _require_same_samples(folder, metadata)
    missing = _missing_samples(plan, folder)
    if not missing:
        return
    _require_whole_sources(plan.source, missing)
    num_rows = sum(sample.rows.stop - sample.rows.start for sample in missing)
    require_space(folder, metadata, RowEstimate(num_rows, is_loose=False))
    with RolloutWriter(folder, metadata) as writer:
        for key, group in groupby(missing, lambda sample: sample.interventions):
            write_rollouts(writer, _play(plan, list(group), plan.interventions[key], device))


def _missing_samples(plan: ReplayPlan, folder: Path) -> list[_Sample]:
    """Samples that have a real counterpart and no replay yet, by intervention and source."""
    table = plan.samples.episodes
    names = ("interventions", "source_episode_id", "source_row", "episode_id", "offset", "length")
    columns = (table[name].tolist() for name in names)
    present = set(recorded_episodes(folder)["episode_id"].tolist())
    samples = [
        _Sample(key, SourceRow(episode, row), sample_id, slice(offset, offset + length))
        for key, episode, row, sample_id, offset, length in zip(*columns, strict=True)
        if episode >= 0 and sample_id not in present
    ]
    return sorted(samples, key=lambda sample: (sample.interventions, sample.source))


def _play(
    plan: ReplayPlan,
    samples: list[_Sample],
    intervention: Intervention | None,
    device: torch.device | str,
) -> Generator[Rollout, None, None]:
    # Every action is given, so none is drawn.
    behaviour = BehaviourConfig(greedy=True)
    player = Player(plan.agent.policy, behaviour, device, intervention)
    recording = RecordingConfig(
        num_envs=plan.num_envs, num_threads=plan.num_threads, with_state=False
    )
    environment, starts = plan.source.metadata.environment, _starts(plan, samples)
    return play_starts(player, plan.agent.hash, environment, recording, starts, len(samples))


def _metadata(plan: ReplayPlan) -> DatasetMetadata:
    inputs = {
        "dataset": plan.source.hash,
        "samples": recording_identity(plan.samples.metadata),
    }
    return dataset_metadata(
        plan.agent,
        plan.source.metadata.environment,
        settings={"replay_of": plan.samples.folder.name},
        seed=0,
        inputs=inputs,
        with_state=False,
    )


def _require_same_samples(folder: Path, metadata: DatasetMetadata) -> None:
    """Samples are named by what decides them: replays stay valid when more are recorded."""
    if not (folder / METADATA_FILE).exists():
        return
    found, expected = read_metadata(folder).provenance.get("inputs"), metadata.provenance["inputs"]
    if found != expected:
        raise UserError(
            f"--replay_dir {folder}: holds replays of other samples, of another agent or from "
            "other rollouts; choose another folder"
        )


def _require_whole_sources(source: RolloutDataset, samples: Sequence[_Sample]) -> None:
    """A branch begins within an episode, so its level and actions do not determine it."""
    kinds = source.episodes["initialisation"].to_numpy()
    for sample in samples:
        episode_id = sample.source.episode_id
        if kinds[source.index_of(episode_id)] != "real":
            raise UserError(
                f"--data_dir {source.folder}: episode {episode_id} is itself a branch, so samples "
                "that begin in it cannot be replayed"
            )


def _starts(plan: ReplayPlan, samples: Sequence[_Sample]) -> Iterator[EpisodeStart]:
    """Where the replays begin; rows are restored as they are come to, many at a time."""
    levels = plan.source.episodes["level_seed"].to_numpy()
    for begin in range(0, len(samples), _STARTS_PER_REPLAY):
        group = samples[begin : begin + _STARTS_PER_REPLAY]
        rows = list(dict.fromkeys(sample.source for sample in group))
        points = restore_points(plan.source, rows, plan.num_threads)
        for sample in group:
            level = levels[plan.source.index_of(sample.source.episode_id)]
            yield EpisodeStart(
                episode_id=sample.episode_id,
                level_seed=int(level),
                branch=_branch(plan, sample, points[sample.source]),
                interventions=tuple(json.loads(sample.interventions)),
            )


def _branch(plan: ReplayPlan, sample: _Sample, point: BranchPoint) -> Branch:
    first, last = sample.rows.start, sample.rows.stop
    return Branch(
        point,
        noise_id=sample.episode_id,
        action=plan.samples.read_field("action", first, last),
        log_prob=plan.samples.read_field("behaviour_log_prob", first, last),
        max_rows=last - first,
    )
