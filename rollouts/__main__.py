"""Datasets at the command line: `python -m rollouts info|verify|merge|export|import|video`."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, subcommand

from experiment.command_line import parse_flags
from experiment.errors import UserError, run_entry_point
from rollouts.export import export_npz
from rollouts.game_video import write_game_video
from rollouts.merge import merge_datasets
from rollouts.minari_format import export_minari, import_minari
from rollouts.store import RolloutDataset, verify_dataset


@dataclass(frozen=True)
class Info:
    """Print what a dataset holds."""

    folder: Positional[Path]
    """Folder of the dataset."""


@dataclass(frozen=True)
class Verify:
    """Read all of a dataset and compare it with the hashes taken when it was written."""

    folder: Positional[Path]
    """Folder of the dataset."""


@dataclass(frozen=True)
class Merge:
    """Copy several datasets into a new one. They must be of the same agent and environment, and
    their episode ids must differ; each shard is verified before the new dataset appears."""

    out: Positional[Path]
    """Folder of the new dataset; it must be absent or empty."""
    folders: Positional[tuple[Path, ...]]
    """Folders of the datasets to merge; they stay as they are."""


@dataclass(frozen=True)
class Export:
    """Write a dataset losslessly in a format that other programs read."""

    folder: Positional[Path]
    """Folder of the dataset."""
    out: Path
    """Folder for the files; it must be absent or empty."""
    format: Literal["npz", "minari"] = "npz"
    """npz: numpy's archives, named episode-<id>.npz. minari: a Minari dataset of the folder's name
    (needs the extra `minari`). docs/data_format.md lists the arrays of both."""


@dataclass(frozen=True)
class Import:
    """Make a dataset again of what `export` wrote; every array is the same, bit by bit."""

    folder: Positional[Path]
    """Folder that `export --format minari` wrote."""
    out: Path
    """Folder of the new dataset; it must be absent or empty."""
    format: Literal["minari"] = "minari"
    """What the folder holds."""


@dataclass(frozen=True)
class Video:
    """Write a video of an episode with what the game itself knew drawn over the frames."""

    folder: Positional[Path]
    """Folder of the dataset; it needs game states (record.py --with_state)."""
    episode: int
    """Id of the episode."""
    out: Path
    """MP4 file to write."""


@dataclass(frozen=True)
class Config:
    """What to do with which dataset."""

    task: OmitSubcommandPrefixes[
        OmitArgPrefixes[
            Annotated[Info, subcommand("info")]
            | Annotated[Verify, subcommand("verify")]
            | Annotated[Merge, subcommand("merge")]
            | Annotated[Export, subcommand("export")]
            | Annotated[Video, subcommand("video")]
            | Annotated[Import, subcommand("import")]
        ]
    ]


def main() -> None:
    """Entry point."""
    task = parse_flags(Config, "Look at, merge, export, import and draw datasets of rollouts.").task
    if isinstance(task, Info):
        print(describe(RolloutDataset(task.folder)))
    elif isinstance(task, Verify):
        verify(task.folder)
    elif isinstance(task, Video):
        write_game_video(RolloutDataset(task.folder), task.episode, task.out)
        print(task.out)
    elif isinstance(task, Merge):
        print(describe(merge_datasets(task.out, task.folders)))
    elif isinstance(task, Import):
        print(describe(import_minari(task.folder, task.out)))
    else:
        dataset = RolloutDataset(task.folder)
        {"npz": export_npz, "minari": export_minari}[task.format](dataset, task.out)
        print(f"{task.out}: {dataset.num_episodes} episodes")


def describe(dataset: RolloutDataset) -> str:
    """A dataset in two dozen lines at most."""
    metadata, episodes = dataset.metadata, dataset.episodes
    size = sum(path.stat().st_size for path in dataset.shard_paths)
    lines = {
        "dataset": str(dataset.folder),
        "kind": _kind(dataset),
        "options": ", ".join(f"{k}={v}" for k, v in metadata.environment.options.items()),
        "agent": f"{metadata.agent_hash[:16]} ({metadata.agent_file})",
        "shards": f"{len(dataset.shard_paths)}, {size / 1e6:.1f} MB, "
        f"{dataset.raw_bytes / size:.1f} times smaller than uncompressed",
        "episodes": f"{dataset.num_episodes}, {dataset.num_rows} rows",
        "length": _distribution(episodes["length"].to_numpy(np.float64), digits=0),
        "return": _distribution(episodes["return"].to_numpy(), digits=2),
        "complete": _share(episodes["level_complete"].to_numpy()),
        "truncated": _share(episodes["truncated"].to_numpy()),
        "cut": _share(episodes["cut"].to_numpy()),
        "levels": _levels(episodes["level_seed"].to_numpy()),
        **_history(metadata.provenance),
        "hash": dataset.hash,
    }
    return "\n".join(f"{name:<10} {value}" for name, value in lines.items() if value)


def _kind(dataset: RolloutDataset) -> str:
    metadata = dataset.metadata
    kind = "real" if metadata.simulated is None else "simulated"
    initialisations = sorted(set(dataset.episodes["initialisation"]) - {"real"})
    details = [*initialisations, *(["with game states"] if metadata.game else [])]
    if metadata.save_state_every is not None:
        details.append(f"environment saved every {metadata.save_state_every} rows")
    return f"{kind} rollouts of {metadata.environment.name}" + "".join(f", {d}" for d in details)


def _distribution(values: NDArray[np.float64], digits: int) -> str:
    return (
        f"mean {values.mean():.2f}, standard deviation {values.std():.2f}, "
        f"{values.min():.{digits}f} to {values.max():.{digits}f}"
    )


def _share(flags: NDArray[np.bool_]) -> str:
    return f"{flags.sum()} episodes, {100 * flags.mean():.1f}%"


def _levels(level_seeds: NDArray[np.int64]) -> str:
    seeds = np.unique(level_seeds[level_seeds >= 0])
    return f"{len(seeds)} different, {seeds[0]} to {seeds[-1]}" if len(seeds) else ""


def _history(provenance: dict[str, Any]) -> dict[str, str]:
    """What the first writer says of itself; a merged dataset says what all its parts share."""
    lines = {
        "recorded": provenance.get("created_utc", ""),
        "command": shlex.join(provenance.get("command", [])),
        "seed": str(provenance.get("seed", "")),
        "code": provenance.get("code_version", ""),
    }
    lines["merged of"] = ", ".join(item["folder"] for item in provenance.get("merged_from", []))
    return lines


def verify(folder: Path) -> None:
    """Print that the dataset is whole; raises `UserError` when it is damaged."""
    problems = verify_dataset(folder)
    if problems:
        raise UserError(f"{folder}: {'; '.join(problems)}")
    dataset = RolloutDataset(folder)
    print(f"{folder}: {len(dataset.shard_paths)} shards, all as they were sealed")


if __name__ == "__main__":
    run_entry_point(main)
