"""Datasets at the command line: `python -m rollouts info|verify|merge|export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, subcommand

from experiment.command_line import parse_flags
from experiment.errors import UserError, run_entry_point
from rollouts.export import export_npz
from rollouts.merge import merge_datasets
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
    """Write every episode of a dataset to a file of its own, losslessly."""

    folder: Positional[Path]
    """Folder of the dataset."""
    out: Path
    """Folder for the files; it must be absent or empty."""
    format: Literal["npz"] = "npz"
    """npz: numpy's archive, named episode-<id>.npz; docs/data_format.md lists the arrays."""


@dataclass(frozen=True)
class Config:
    """What to do with which dataset."""

    task: OmitSubcommandPrefixes[
        OmitArgPrefixes[
            Annotated[Info, subcommand("info")]
            | Annotated[Verify, subcommand("verify")]
            | Annotated[Merge, subcommand("merge")]
            | Annotated[Export, subcommand("export")]
        ]
    ]


def main() -> None:
    """Entry point."""
    task = parse_flags(Config, "Look at datasets of rollouts, merge and export them.").task
    if isinstance(task, Info):
        print(describe(RolloutDataset(task.folder)))
    elif isinstance(task, Verify):
        verify(task.folder)
    elif isinstance(task, Merge):
        print(describe(merge_datasets(task.out, task.folders)))
    else:
        dataset = RolloutDataset(task.folder)
        export_npz(dataset, task.out)
        print(f"{task.out}: {dataset.num_episodes} episodes")


def describe(dataset: RolloutDataset) -> str:
    """A dataset in a dozen lines."""
    metadata, episodes = dataset.metadata, dataset.episodes
    kind = "real" if metadata.simulated is None else "simulated"
    size = sum(path.stat().st_size for path in dataset.shard_paths)
    raw_size = dataset.num_rows * metadata.row_bytes
    lines = {
        "dataset": str(dataset.folder),
        "kind": f"{kind} rollouts of {metadata.environment.name}",
        "options": ", ".join(f"{k}={v}" for k, v in metadata.environment.options.items()),
        "agent": f"{metadata.agent_hash[:16]} ({metadata.agent_file})",
        "shards": f"{len(dataset.shard_paths)}, {size / 1e6:.1f} MB, "
        f"{raw_size / size:.1f} times smaller than uncompressed",
        "episodes": f"{dataset.num_episodes}, {dataset.num_rows} rows",
        "length": f"{episodes['length'].min()} to {episodes['length'].max()}, "
        f"mean {episodes['length'].mean():.1f}",
        "return": f"mean {episodes['return'].mean():.3f}",
        "complete": f"{episodes['level_complete'].sum()}",
        "truncated": f"{episodes['truncated'].sum()}",
        "cut": f"{episodes['cut'].sum()}",
        "hash": dataset.hash,
    }
    return "\n".join(f"{name:<10} {value}" for name, value in lines.items())


def verify(folder: Path) -> None:
    """Print that the dataset is whole; raises `UserError` when it is damaged."""
    dataset = RolloutDataset(folder)
    problems = verify_dataset(folder)
    if problems:
        raise UserError(f"{folder}: {'; '.join(problems)}")
    print(f"{folder}: {len(dataset.shard_paths)} shards, all as they were sealed")


if __name__ == "__main__":
    run_entry_point(main)
