"""Datasets as Minari reads them (needs the extra `minari`), and back again.

Minari wants one observation more than there are actions, while a game that resets itself never
shows its last frame: the last frame is repeated and marked. It would store images as JPEG, which
alters them; here a frame is a stack of one frame, (1, H, W, C), which it stores as it is.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from experiment.errors import UserError
from experiment.files import atomic_folder, require_free_space
from rollouts.merge import require_new_folder
from rollouts.schema import DatasetMetadata, SchemaError
from rollouts.sealing import storage_error
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import EpisodeInfo, Rollout, array_of, rollout_of_arrays

DESCRIPTION_KEY = "dreamscope_dataset"
"""Of Minari's metadata: the content of `dataset.json`."""
REPEATED_FRAME = "is_repeated_frame"
"""Info of every observation: true for the last one, which repeats the one before."""
DATA_FOLDER = "data"

_OWN_ARRAYS = ("obs", "action", "reward")
"""Step fields that Minari has arrays for; all others are infos."""
_NOT_OF_AN_EPISODE_ALONE = ("offset",)


def export_minari(dataset: RolloutDataset, out: Path) -> None:
    """Write a Minari dataset to `out`, losslessly; `import_minari` is the inverse.

    Its name in Minari is that of the folder, with version 0 where it names none. Moved to
    `~/.minari/datasets`, `minari.load_dataset` finds it.

    Args:
        dataset: what to write.
        out: folder that does not exist yet, or is empty; it appears whole.

    Raises:
        UserError: Minari is not installed, `out` has content or no name that Minari takes, or the
            disk has too little room; nothing is written.
    """
    dataset.metadata.environment.require_images("--format minari")
    minari = require_minari()
    require_new_folder(out)
    dataset_id = _dataset_id(out)
    # Minari does not compress.
    num_bytes = dataset.raw_bytes + dataset.num_episodes * dataset.metadata.row_bytes
    require_free_space(out, num_bytes, "--out")
    try:
        with atomic_folder(out, replace=False) as temporary:
            # Minari joins the path of a relative folder with itself.
            _write_dataset(minari, dataset, dataset_id, temporary.absolute() / DATA_FOLDER)
    except OSError as error:
        raise storage_error(error, out) from error


def require_minari() -> ModuleType:
    """Import Minari; raises `UserError` where it is not installed."""
    try:
        import minari
    except ModuleNotFoundError as error:
        raise UserError(
            f"--format minari: {error.name} is not installed; "
            "in the project's folder, pip install -e '.[minari]'"
        ) from None
    return minari


def _dataset_id(out: Path) -> str:
    name = out.absolute().name
    if not re.fullmatch(r"[-_A-Za-z0-9]+", name):
        raise UserError(f"--out {out}: expected a name of letters, digits, - and _, as Minari does")
    return name if re.search(r"-v\d+$", name) else f"{name}-v0"


def _write_dataset(
    minari: ModuleType, dataset: RolloutDataset, dataset_id: str, folder: Path
) -> None:
    import gymnasium
    from minari.dataset.minari_storage import MinariStorage

    environment = dataset.metadata.environment
    storage = MinariStorage.new(
        folder,
        gymnasium.spaces.Box(0, 255, (1, *environment.obs_shape), np.uint8),
        gymnasium.spaces.Discrete(dataset.metadata.num_actions),
    )
    storage.update_metadata(
        {
            "dataset_id": dataset_id,
            "minari_version": minari.__version__,
            "algorithm_name": dataset.metadata.agent_hash,
            "description": f"{environment.name}, {len(dataset.shard_paths)} shards of Dreamscope",
            DESCRIPTION_KEY: json.dumps(dataset.metadata.to_dict()),
        }
    )
    storage.update_episodes(_buffers(dataset))
    storage.update_episode_metadata(_episode_metadata(dataset))


def _rollouts(dataset: RolloutDataset, task: str) -> Iterator[Rollout]:
    for index in tqdm(range(dataset.num_episodes), desc=task, unit="episode", disable=None):
        yield dataset.read_episode(index)


def _buffers(dataset: RolloutDataset) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    for rollout in _rollouts(dataset, "export"):
        last = np.arange(len(rollout)) == len(rollout) - 1
        terminated = bool(rollout.done[-1]) and not rollout.info.truncated
        yield EpisodeBuffer(
            observations=_with_last_repeated(rollout.obs)[:, None],  # type: ignore[arg-type]
            actions=rollout.action,  # type: ignore[arg-type]
            rewards=rollout.reward,  # type: ignore[arg-type]
            terminations=last & terminated,
            truncations=last & (not terminated),
            infos=_infos(rollout, dataset.metadata),
        )


def _infos(rollout: Rollout, metadata: DatasetMetadata) -> dict[str, NDArray[Any]]:
    infos = {REPEATED_FRAME: np.arange(len(rollout) + 1) == len(rollout)}
    for spec in metadata.step_fields:
        if spec.name not in _OWN_ARRAYS:
            rows = _with_last_repeated(array_of(rollout, spec.name))
            # Minari takes bytes in two to four dimensions for images.
            infos[spec.name] = rows.astype(np.int16) if rows.dtype == np.uint8 else rows
    for spec in metadata.ragged_fields:
        rows = array_of(rollout, spec.name)
        # Minari cannot store an array without rows.
        if len(rows):
            infos[spec.name] = rows
    return infos


def _with_last_repeated(rows: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([rows, rows[-1:]])


def _episode_metadata(dataset: RolloutDataset) -> Iterator[dict[str, Any]]:
    columns = {
        spec.name: dataset.read_episode_field(spec.name)
        for spec in dataset.metadata.episode_fields
        if spec.name not in _NOT_OF_AN_EPISODE_ALONE
    }
    for index in range(dataset.num_episodes):
        yield {name: column[index] for name, column in columns.items()}


def import_minari(folder: Path, out: Path) -> RolloutDataset:
    """Make the dataset again that `export_minari` wrote to `folder`.

    Args:
        folder: as it was written, or its folder `data`.
        out: folder that does not exist yet, or is empty; it appears whole.

    Raises:
        UserError: Minari is not installed, `folder` holds no such export, `out` has content, or
            the disk has too little room; nothing is written.
    """
    require_minari()
    require_new_folder(out)
    storage, metadata = _open_export(folder)
    # Compressed it takes less, how much less is not known.
    require_free_space(out, int(storage.total_steps * metadata.row_bytes / 4), "--out")
    try:
        with atomic_folder(out, replace=False) as temporary:
            with RolloutWriter(temporary, metadata) as writer:
                for rollout in _read_rollouts(storage, metadata):
                    writer.write(rollout)
            RolloutDataset(temporary)
    except OSError as error:
        raise storage_error(error, out) from error
    except (KeyError, TypeError, ValueError, SchemaError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: not an export of this project ({reason})") from None
    return RolloutDataset(out)


def _open_export(folder: Path) -> tuple[Any, DatasetMetadata]:
    from minari.dataset.minari_storage import MinariStorage

    data = folder / DATA_FOLDER if (folder / DATA_FOLDER).is_dir() else folder
    try:
        storage = MinariStorage.read(data)
        description = storage.metadata.get(DESCRIPTION_KEY)
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise UserError(f"{folder}: not a Minari dataset ({error})") from None
    if not isinstance(description, str):
        raise UserError(f"{folder}: a Minari dataset that `rollouts export` did not write")
    return storage, DatasetMetadata.from_dict(json.loads(description), folder)


def _read_rollouts(storage: Any, metadata: DatasetMetadata) -> Iterator[Rollout]:
    indices = range(storage.total_episodes)
    # One at a time: both are generators, and each holds one episode.
    episodes, columns = storage.get_episodes(indices), storage.get_episode_metadata(indices)
    pairs = zip(episodes, columns, strict=True)
    for episode, row in tqdm(
        pairs, desc="import", total=len(indices), unit="episode", disable=None
    ):
        yield _to_rollout(episode, row, metadata)


def _to_rollout(episode: dict[str, Any], row: dict[str, Any], metadata: DatasetMetadata) -> Rollout:
    arrays = {
        "obs": episode["observations"][:-1, 0],
        "action": episode["actions"],
        "reward": episode["rewards"],
    }
    for spec in metadata.step_fields:
        if spec.name not in arrays:
            arrays[spec.name] = episode["infos"][spec.name][:-1].astype(spec.dtype)
    for spec in metadata.ragged_fields:
        none = np.empty((0, *spec.row_shape), spec.dtype)
        arrays[spec.name] = episode["infos"].get(spec.name, none)
    info: dict[str, Any] = {
        spec.name: row[spec.name] if spec.row_shape else spec.to_python(row[spec.name])
        for spec in metadata.episode_fields
        if spec.name in EpisodeInfo.__dataclass_fields__
    }
    info["interventions"] = tuple(json.loads(info["interventions"]))
    return rollout_of_arrays(arrays, EpisodeInfo(**info), row.get("game_grid_shape"))
