"""Look at a dataset: `python -m rollouts info DIR`, `python -m rollouts verify DIR`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from experiment.command_line import parse_flags
from experiment.errors import UserError, run_entry_point
from rollouts.store import RolloutDataset, verify_dataset


@dataclass(frozen=True)
class Config:
    """What to do with which dataset."""

    command: Positional[Literal["info", "verify"]]
    """`info` prints what the dataset holds; `verify` reads all of it and compares it with the
    hashes taken when it was written."""
    folder: Positional[Path]
    """Folder of the dataset."""


def main() -> None:
    """Entry point."""
    config = parse_flags(Config, "Look at a dataset of rollouts.")
    if config.command == "info":
        print(describe(RolloutDataset(config.folder)))
    else:
        verify(config.folder)


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
