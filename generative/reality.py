"""The real environment under the very actions of simulated samples.

A sample that a window of real rollouts set up has a real counterpart: the environment is brought
back to the window's last frame and given the sample's actions, and the agent, in its recorded
state, watches. Row k of such a *replay* is what row k of the sample imitates, until the real
episode ends. A replay has the id of its sample; its rollout is of the same type.

Samples from random, interpolated or given latents have no counterpart.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from agents.checkpoint import LoadedAgent
from agents.episode_slots import Branch, EpisodeStart
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
    present = recorded_episodes(folder)["episode_id"].to_numpy()
    episodes = plan.samples.episodes[has_reality(plan.samples)]
    missing = episodes[~episodes["episode_id"].isin(present)]
    if missing.empty:
        return
    _require_whole_sources(plan.source, missing)
    rows = int(missing["length"].sum())
    require_space(folder, metadata, RowEstimate(rows, is_loose=False))
    with RolloutWriter(folder, metadata) as writer:
        for key, group in missing.groupby("interventions"):
            player = Player(
                plan.agent.policy,
                BehaviourConfig(greedy=True),
                device,
                plan.interventions[str(key)],
            )
            group = group.sort_values(["source_episode_id", "source_row"])
            write_rollouts(
                writer,
                play_starts(
                    player,
                    plan.agent.hash,
                    plan.source.metadata.environment,
                    RecordingConfig(
                        num_envs=plan.num_envs, num_threads=plan.num_threads, with_state=False
                    ),
                    _starts(plan, group),
                    len(group),
                ),
            )


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


def _require_whole_sources(source: RolloutDataset, samples: pd.DataFrame) -> None:
    """A branch begins within an episode, so its level and actions do not determine it."""
    table = source.episodes.set_index("episode_id")["initialisation"]
    kinds = table.loc[samples["source_episode_id"]].to_numpy()
    if (kinds != "real").any():
        wrong = samples["source_episode_id"].to_numpy()[kinds != "real"][0]
        raise UserError(
            f"--data_dir {source.folder}: episode {wrong} is itself a branch, so samples that "
            "begin in it cannot be replayed"
        )


def _starts(plan: ReplayPlan, samples: pd.DataFrame) -> Iterator[EpisodeStart]:
    """Where the replays begin; rows are restored as they are come to, many at a time."""
    for begin in range(0, len(samples), _STARTS_PER_REPLAY):
        group = samples.iloc[begin : begin + _STARTS_PER_REPLAY]
        rows = [
            SourceRow(int(episode), int(row))
            for episode, row in zip(group["source_episode_id"], group["source_row"], strict=True)
        ]
        yield from _starts_at(plan, group, rows)


def _starts_at(
    plan: ReplayPlan, samples: pd.DataFrame, rows: Sequence[SourceRow]
) -> Iterator[EpisodeStart]:
    points = restore_points(plan.source, list(dict.fromkeys(rows)), plan.num_threads)
    levels = plan.source.episodes.set_index("episode_id")["level_seed"]
    for (_, sample), row in zip(samples.iterrows(), rows, strict=True):
        first, last = int(sample["offset"]), int(sample["offset"] + sample["length"])
        branch = Branch(
            points[row],
            # Every action is given, so nothing is drawn.
            noise_id=int(sample["episode_id"]),
            action=plan.samples.read_field("action", first, last),
            log_prob=plan.samples.read_field("behaviour_log_prob", first, last),
            max_rows=last - first,
        )
        yield EpisodeStart(
            episode_id=int(sample["episode_id"]),
            level_seed=int(levels.loc[row.episode_id]),
            branch=branch,
            interventions=tuple(json.loads(sample["interventions"])),
        )
