"""Makes one dataset of several, by copying their shards."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiment.errors import UserError
from experiment.files import atomic_folder, require_free_space, require_writable_folder
from rollouts.description import METADATA_FILE
from rollouts.schema import DatasetMetadata, find_difference
from rollouts.sealing import storage_error
from rollouts.store import RolloutDataset, verify_dataset


def merge_datasets(out: Path, folders: Sequence[Path]) -> RolloutDataset:
    """Copy the shards of datasets of the same identity into the new dataset `out`.

    The shards of dataset i get the writer's name `i`; episodes keep their ids. Everything is
    verified before `out` appears.

    Args:
        out: folder that does not exist yet, or is empty.
        folders: datasets with disjoint episode ids.

    Raises:
        UserError: the datasets do not belong together, one is damaged, `out` has content, or the
            disk has too little room; nothing is written.
    """
    require_new_folder(out)
    if not folders:
        raise UserError("merge: no dataset is given besides the folder to write")
    datasets = [RolloutDataset(folder) for folder in folders]
    for dataset in datasets[1:]:
        _require_same_identity(datasets[0], dataset)
    _require_disjoint_episodes(datasets)
    paths = [path for dataset in datasets for path in dataset.shard_paths]
    require_free_space(out, sum(path.stat().st_size for path in paths), "merge")
    try:
        with atomic_folder(out, replace=False) as temporary:
            _copy(datasets, temporary)
    except OSError as error:
        raise storage_error(error, out) from error
    return RolloutDataset(out)


def require_new_folder(out: Path) -> None:
    """Raise `UserError` where `out` holds something already or cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already, expected a folder that is new or empty")
    require_writable_folder(out.absolute().parent, str(out))


def _require_same_identity(first: RolloutDataset, other: RolloutDataset) -> None:
    key = find_difference(first.metadata.identity, other.metadata.identity)
    if key is not None:
        raise UserError(f"{other.folder}: differs from {first.folder} in `{key}`")


def _require_disjoint_episodes(datasets: Sequence[RolloutDataset]) -> None:
    owners: dict[int, Path] = {}
    for dataset in datasets:
        for episode_id in dataset.episodes["episode_id"].to_list():
            if episode_id in owners:
                raise UserError(
                    f"{dataset.folder}: episode_id {episode_id} occurs in {owners[episode_id]} too"
                )
            owners[episode_id] = dataset.folder


def _copy(datasets: Sequence[RolloutDataset], target: Path) -> None:
    origins: dict[str, Path] = {}
    for writer, dataset in enumerate(datasets):
        for number, path in enumerate(dataset.shard_paths):
            name = f"shard-{writer}-{number:05d}.h5"
            shutil.copyfile(path, target / name)
            origins[name] = path
    description = json.dumps(_merged_metadata(datasets).to_dict(), indent=2)
    (target / METADATA_FILE).write_text(description + "\n")
    for problem in verify_dataset(target):
        name, _, complaint = problem.partition(": ")
        raise UserError(f"{origins[name]}: {complaint}")


def _merged_metadata(datasets: Sequence[RolloutDataset]) -> DatasetMetadata:
    """The first one's, with the provenance that all share and that of each."""
    histories = [dataset.metadata.provenance for dataset in datasets]
    merged_from = [
        {"folder": str(dataset.folder), "hash": dataset.hash, "provenance": history}
        for dataset, history in zip(datasets, histories, strict=True)
    ]
    provenance = {**_common(histories), "merged_from": merged_from}
    return replace(datasets[0].metadata, provenance=provenance)


def _common(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The items that are equal in all nested dictionaries."""
    common: dict[str, Any] = {}
    for name in values[0]:
        found = [value[name] for value in values if name in value]
        if len(found) < len(values):
            continue
        if all(isinstance(value, dict) for value in found):
            common[name] = _common(found)
        elif all(value == found[0] for value in found):
            common[name] = found[0]
    return common
