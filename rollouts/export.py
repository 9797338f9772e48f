"""Writes a dataset in a format that other programs read, one file per episode."""

import json
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from experiment.errors import UserError
from experiment.files import atomic_folder, require_free_space, write_json
from rollouts.merge import require_new_folder
from rollouts.schema import STRING, DatasetMetadata, check_rollout
from rollouts.sealing import storage_error
from rollouts.shards import episode_row
from rollouts.store import RolloutDataset
from rollouts.types import EpisodeInfo, Rollout, array_of, rollout_of_arrays

DESCRIPTION_FILE = "description.json"
"""What `dataset.json` says, beside the exported episodes."""


def export_npz(dataset: RolloutDataset, out: Path) -> None:
    """Write every episode to `out/episode-<id>.npz`, with all its fields, losslessly.

    Args:
        dataset: what to write.
        out: folder that does not exist yet, or is empty; it appears whole.

    Raises:
        UserError: `out` has content, or the disk has too little room; nothing is written.
    """
    require_new_folder(out)
    require_free_space(out, sum(path.stat().st_size for path in dataset.shard_paths), "--out")
    try:
        with atomic_folder(out, replace=False) as temporary:
            write_json(temporary / DESCRIPTION_FILE, dataset.metadata.to_dict())
            indices = range(dataset.num_episodes)
            for index in tqdm(indices, desc="export", unit="episode", disable=None):
                rollout = dataset.read_episode(index)
                path = temporary / f"episode-{rollout.info.episode_id:08d}.npz"
                np.savez_compressed(path, **_to_arrays(rollout, dataset.metadata))
    except OSError as error:
        raise storage_error(error, out) from error


def _to_arrays(rollout: Rollout, metadata: DatasetMetadata) -> dict[str, Any]:
    fields = (*metadata.step_fields, *metadata.ragged_fields)
    arrays: dict[str, Any] = {spec.name: array_of(rollout, spec.name) for spec in fields}
    row = episode_row(rollout, offset=0)
    for spec in metadata.episode_fields:
        # An episode that has a file of its own starts at its first row.
        if spec.name != "offset":
            dtype = np.str_ if spec.dtype == STRING else spec.dtype
            arrays[spec.name] = np.asarray(row[spec.name], dtype)
    return arrays


def read_npz(path: Path, metadata: DatasetMetadata) -> Rollout:
    """Inverse of `export_npz` for one file; `metadata` is that of the dataset.

    Raises:
        UserError: the file is not an exported episode of such a dataset.
    """
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        rollout = _from_arrays(arrays, metadata)
        check_rollout(rollout, metadata)
    except (OSError, EOFError, BadZipFile, zlib.error, ValueError, KeyError) as error:
        raise UserError(f"{path}: not an exported episode ({error})") from None
    return rollout


def _from_arrays(arrays: dict[str, NDArray[Any]], metadata: DatasetMetadata) -> Rollout:
    info: dict[str, Any] = {
        spec.name: arrays[spec.name] if spec.row_shape else spec.to_python(arrays[spec.name])
        for spec in metadata.episode_fields
        if spec.name in EpisodeInfo.__dataclass_fields__
    }
    info["interventions"] = tuple(json.loads(info["interventions"]))
    fields = (*metadata.step_fields, *metadata.ragged_fields)
    own = {spec.name: arrays[spec.name] for spec in fields}
    return rollout_of_arrays(own, EpisodeInfo(**info), arrays.get("game_grid_shape"))
