"""One shard: an HDF5 file that is built in memory, sealed under its name, and then only read."""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import h5py
import h5py.h5d as h5d
import hdf5plugin
import numpy as np
from h5py import h5s, h5t
from numpy.typing import NDArray

from experiment.errors import UserError
from rollouts.chunk_writer import BLOSC_CODEC, BLOSC_LEVEL, ChunkWriter
from rollouts.schema import (
    FORMAT_NAME,
    READABLE,
    READABLE_VERSIONS,
    STRING,
    ContentHash,
    DatasetMetadata,
    FieldSpec,
    length_column,
)
from rollouts.types import EpisodeInfo, Rollout, array_of

FRAMES_PER_CHUNK = 8
_MIN_CHUNK_BYTES = 2**15
_MAX_CHUNK_BYTES = 2**20
"""What HDF5's chunk cache surely holds: an open chunk beyond it is compressed at every append."""

_TABLES = ("game_variables", "game_camera", "game_entities", "game_grid_changes")
"""Fields whose columns are as different as those of a table: each is compressed by itself."""
_TABLE_CHUNK_ROWS = 2**11
"""Small enough that the open chunks of all columns are in HDF5's chunk cache."""

_SAVED_STATE_CHUNK_BYTES = 2**17
"""Several states: those of one episode are much alike."""

_VERIFY_ROWS = 4096
_ROWS_PER_WRITE = 512


class ShardBuilder:
    """A shard under construction, compressed in memory.

    HDF5 cannot close a file on a full disk and brings the process down in the attempt, so it
    never writes to the disk itself: a finished shard is one buffer of bytes.
    """

    def __init__(self, metadata: DatasetMetadata):
        self.num_rows = 0
        self.num_bytes = 0
        self._waiting: list[Rollout] = []
        self._metadata = metadata
        self._hash = ContentHash(metadata.all_fields)
        self._columns: dict[str, list[Any]] = {f.name: [] for f in metadata.episode_fields}
        # No file of this name is made, but HDF5 takes two that are open for one.
        name = f"shard-{uuid.uuid4()}"
        self._file = h5py.File(
            name, "w", driver="core", backing_store=False, block_size=2**22, libver="v110"
        )
        for group, fields in _groups_of(metadata):
            for spec in fields:
                _create_array(self._file, f"{group}/{spec.name}", spec)
        self._compressors = ThreadPoolExecutor(_num_cores(), "compressor")
        self._chunk_writers = {
            spec.name: ChunkWriter(
                stored_array(self._file, f"steps/{spec.name}"), _shuffles(spec), self._compressors
            )
            for spec in metadata.step_fields
            if spec.name not in _TABLES
        }

    def append(self, rollout: Rollout) -> None:
        """Add one episode, checked already, whose arrays do not change any more."""
        self._waiting.append(rollout)
        for name, value in episode_row(rollout, offset=self.num_rows).items():
            if name in self._columns:
                self._columns[name].append(value)
        for spec in (*self._metadata.step_fields, *self._metadata.ragged_fields):
            self.num_bytes += array_of(rollout, spec.name).nbytes
        self.num_rows += len(rollout)
        if sum(map(len, self._waiting)) >= _ROWS_PER_WRITE:
            self._store_waiting()

    def _store_waiting(self) -> None:
        """Several episodes at once: for a short one HDF5 takes longer than the compression."""
        for group, fields in _groups_of(self._metadata):
            for spec in fields:
                pieces = [array_of(rollout, spec.name) for rollout in self._waiting]
                if spec.name in self._chunk_writers:
                    self._chunk_writers[spec.name].append(pieces)
                else:
                    array = stored_array(self._file, f"{group}/{spec.name}")
                    self._append_rows(array, np.concatenate(pieces))
                for rows in pieces:
                    self._hash.update(spec.name, rows)
        self._waiting.clear()

    @staticmethod
    def _append_rows(dataset: h5py.Dataset, rows: NDArray[Any]) -> None:
        if len(rows):
            start = len(dataset)
            dataset.resize(start + len(rows), axis=0)
            dataset[start:] = rows

    def finish(self) -> bytes:
        """Write the episode table and return the shard as the bytes of an HDF5 file."""
        if self._waiting:
            self._store_waiting()
        for writer in self._chunk_writers.values():
            writer.finish()
        table = self._file.create_group("episodes")
        for spec in self._metadata.episode_fields:
            _write_column(table, spec, self._columns[spec.name], self._hash)
        self._file.attrs["format"] = FORMAT_NAME
        self._file.attrs["schema_version"] = self._metadata.schema_version
        self._file.attrs["num_rows"] = self.num_rows
        self._file.attrs["num_episodes"] = len(self._columns["episode_id"])
        self._file.attrs["content_hash"] = self._hash.hexdigest()
        self._file.flush()
        image = self._file.id.get_file_image()
        self.close()
        return image

    def close(self) -> None:
        """Free the memory."""
        self._compressors.shutdown(cancel_futures=True)
        self._file.close()


def _groups_of(metadata: DatasetMetadata) -> Sequence[tuple[str, Sequence[FieldSpec]]]:
    """The groups of a shard that hold arrays, and their fields."""
    return (("steps", metadata.step_fields), ("ragged", metadata.ragged_fields))


def _create_array(file: h5py.File, path: str, spec: FieldSpec) -> None:
    file.create_dataset(
        path,
        shape=(0, *spec.row_shape),
        maxshape=(None, *spec.row_shape),
        chunks=_chunk_shape(spec),
        dtype=np.dtype(spec.dtype).newbyteorder("<"),
        **_compression(spec),
    )


def _chunk_shape(spec: FieldSpec) -> tuple[int, ...]:
    if spec.name in _TABLES:
        return (_TABLE_CHUNK_ROWS, 1)
    if spec.name == "saved_states":
        return (_SAVED_STATE_CHUNK_BYTES,)
    row_bytes = max(1, spec.row_bytes)
    wanted_rows = max(FRAMES_PER_CHUNK, _MIN_CHUNK_BYTES // row_bytes)
    rows_per_chunk = min(wanted_rows, max(1, _MAX_CHUNK_BYTES // row_bytes))
    return (rows_per_chunk, *spec.row_shape)


def _write_column(
    table: h5py.Group, spec: FieldSpec, values: list[Any], content_hash: ContentHash
) -> None:
    if spec.dtype == STRING:
        content_hash.update(spec.name, values)
        table.create_dataset(spec.name, data=values, dtype=h5py.string_dtype())
        return
    column = np.asarray(values, dtype=spec.dtype).reshape(len(values), *spec.row_shape)
    content_hash.update(spec.name, column)
    table.create_dataset(spec.name, data=column, chunks=True, **_compression(spec))


def _compression(spec: FieldSpec) -> Any:
    shuffle = hdf5plugin.Blosc.SHUFFLE if _shuffles(spec) else hdf5plugin.Blosc.NOSHUFFLE
    return hdf5plugin.Blosc(cname=BLOSC_CODEC, clevel=BLOSC_LEVEL, shuffle=shuffle)


def _shuffles(spec: FieldSpec) -> bool:
    """Whether bytes of equal weight are grouped: it helps numbers, and hurts runs of pixels."""
    return spec.dtype != "uint8"


def _num_cores() -> int:
    """Cores that this process may use: a scheduler may have given it a part of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def episode_row(rollout: Rollout, offset: int) -> dict[str, Any]:
    """One row of the episode table, by column."""
    info = {name: getattr(rollout.info, name) for name in EpisodeInfo.__dataclass_fields__}
    return {
        **info,
        **_sizes_of_game(rollout),
        "saved_state_table_length": _num_rows(rollout.saved_state_table),
        "saved_states_length": _num_rows(rollout.saved_states),
        "offset": offset,
        "length": len(rollout),
        "return": float(rollout.reward[: _rows_until_done(rollout)].sum(dtype=np.float64)),
        "interventions": json.dumps(rollout.info.interventions),
    }


def _rows_until_done(rollout: Rollout) -> int:
    """A simulated rollout may go on after its predicted end."""
    return int(rollout.done.argmax()) + 1 if rollout.done.any() else len(rollout)


def _num_rows(array: NDArray[Any] | None) -> int:
    return 0 if array is None else len(array)


def _sizes_of_game(rollout: Rollout) -> dict[str, Any]:
    game = rollout.game
    if game is None:
        return {}
    return {
        "game_grid_shape": np.array(game.grid.shape, np.int64),
        "game_entities_length": len(game.entities),
        "game_grid_changes_length": len(game.grid_changes),
        "game_grid_length": game.grid.size,
    }


def open_shard(path: Path) -> h5py.File:
    """Open a sealed shard for reading, without the file locks that network disks lack."""
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UserError(f"{path}: not a readable shard ({error})") from None
    version = file.attrs.get("schema_version")
    if file.attrs.get("format") != FORMAT_NAME or version not in READABLE_VERSIONS:
        file.close()
        raise UserError(
            f"{path}: schema version {version} is unknown, this program reads {READABLE}"
        )
    return file


def stored_array(file: h5py.File, name: str) -> h5py.Dataset:
    """The array of that name; raises `KeyError` where there is none."""
    array = file.get(name)
    if not isinstance(array, h5py.Dataset):
        raise KeyError(f"no array {name}")
    return array


def read_count(file: h5py.File, attribute: str) -> int:
    """An integer attribute of a shard."""
    return int(np.asarray(file.attrs[attribute]).item())


def read_column(file: h5py.File, spec: FieldSpec) -> NDArray[Any] | list[str]:
    """A whole column of the episode table."""
    values = _whole_column(stored_array(file, f"episodes/{spec.name}").id, spec)
    return values.tolist() if spec.dtype == STRING else values


def _whole_column(column: h5d.DatasetID, spec: FieldSpec) -> NDArray[Any]:
    """Through HDF5's low-level interface, in half of the time that h5py's indexing takes."""
    values = np.empty(column.shape, column.dtype)
    column.read(h5s.ALL, h5s.ALL, values)
    if spec.dtype != STRING:
        return values
    if h5py.check_string_dtype(column.dtype) is None:
        raise TypeError(f"{spec.name} is {column.dtype}, expected a string")
    return np.array([text.decode() for text in values.tolist()], object)


@dataclass(frozen=True)
class _StepArray:
    """Low-level handles of one step field, which cost more to make than a window to read."""

    dataset: Any
    selection: Any
    memory_type: Any


@lru_cache(maxsize=256)
def _memory_space(shape: tuple[int, ...]) -> Any:
    return h5s.create_simple(shape)


class ShardReader:
    """One open shard."""

    def __init__(self, path: Path):
        self.file = open_shard(path)
        self._arrays: dict[str, _StepArray] = {}
        self._lock = Lock()

    def read_steps(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill the contiguous `out` with rows of a step field, from row `start` of the shard on.

        Through HDF5's low-level interface: h5py's indexing takes several times as long as it
        takes to read a window of a small field.
        """
        # The lock guards the selection; HDF5 lets one thread read at a time in any case.
        with self._lock:
            array = self._arrays.get(name) or self._open_array(name, out.dtype)
            array.selection.select_hyperslab((start, *(0,) * (out.ndim - 1)), out.shape)
            space = _memory_space(out.shape)
            array.dataset.read(space, array.selection, out, array.memory_type)

    def read_ragged(self, name: str, start: int, length: int) -> NDArray[Any]:
        """`length` rows of a ragged field, from row `start` of the shard's array on."""
        with self._lock:
            return stored_array(self.file, f"ragged/{name}")[start : start + length]

    def _open_array(self, name: str, dtype: np.dtype[Any]) -> _StepArray:
        dataset = stored_array(self.file, f"steps/{name}").id
        array = _StepArray(dataset, dataset.get_space(), h5t.py_create(dtype))
        self._arrays[name] = array
        return array


@dataclass(frozen=True)
class ShardSummary:
    """What a dataset must know of a shard before it reads any row."""

    num_rows: int
    content_hash: str
    table: Mapping[str, NDArray[Any]]
    """The scalar columns of the episode table, by name."""


def summarise_shard(file: h5py.File, metadata: DatasetMetadata) -> ShardSummary:
    """Read the episode table of an open shard and check that the arrays are as it says.

    Raises:
        UserError: something is absent or does not fit; names the file.
    """
    try:
        arrays = _open_arrays(file, metadata)
        summary = ShardSummary(
            num_rows=read_count(file, "num_rows"),
            content_hash=_read_hash(file),
            table={
                spec.name: _whole_column(arrays[f"episodes/{spec.name}"], spec)
                for spec in metadata.episode_fields
                if not spec.row_shape
            },
        )
        _check_shapes(arrays, read_count(file, "num_episodes"), metadata, summary)
    except (KeyError, ValueError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file.filename}: malformed shard ({reason})") from None
    return summary


def _read_hash(file: h5py.File) -> str:
    content_hash = file.attrs["content_hash"]
    if not isinstance(content_hash, str):
        raise TypeError("content_hash is not a string")
    return content_hash


def _open_arrays(file: h5py.File, metadata: DatasetMetadata) -> dict[str, h5d.DatasetID]:
    """Every array of a shard, each opened once: a folder may hold hundreds of shards."""
    groups = (*_groups_of(metadata), ("episodes", metadata.episode_fields))
    paths = [f"{group}/{spec.name}" for group, fields in groups for spec in fields]
    return {path: _open_array(file, path) for path in paths}


def _open_array(file: h5py.File, path: str) -> h5d.DatasetID:
    try:
        return h5d.open(file.id, path.encode())
    except KeyError:
        raise KeyError(f"no array {path}") from None


def _check_shapes(
    arrays: Mapping[str, h5d.DatasetID],
    num_episodes: int,
    metadata: DatasetMetadata,
    summary: ShardSummary,
) -> None:
    """Raise `ValueError` where a shard's shapes contradict each other; no row is read."""
    lengths = summary.table["length"]
    sizes = [(f"steps/{spec.name}", summary.num_rows, spec) for spec in metadata.step_fields]
    sizes += [(f"episodes/{spec.name}", num_episodes, spec) for spec in metadata.episode_fields]
    for spec in metadata.ragged_fields:
        num_ragged = int(summary.table[length_column(spec)].sum())
        sizes.append((f"ragged/{spec.name}", num_ragged, spec))
    for name, num_rows, spec in sizes:
        found, expected = arrays[name].shape, (num_rows, *spec.row_shape)
        if found != expected:
            raise ValueError(f"{name} has shape {found}, expected {expected}")
    follow_each_other = np.cumsum(lengths) - lengths == summary.table["offset"]
    if lengths.sum() != summary.num_rows or not follow_each_other.all():
        raise ValueError(f"its episodes do not make up its {summary.num_rows} rows")


def find_damage(file: h5py.File, metadata: DatasetMetadata) -> str | None:
    """Read a shard whole; what is wrong with it, or None."""
    content_hash = ContentHash(metadata.all_fields)
    num_rows, num_episodes = read_count(file, "num_rows"), read_count(file, "num_episodes")
    for spec in metadata.step_fields:
        dataset = stored_array(file, f"steps/{spec.name}")
        if dataset.shape != (num_rows, *spec.row_shape):
            return f"{spec.name} has shape {dataset.shape}, expected {num_rows} rows"
        for start in range(0, num_rows, _VERIFY_ROWS):
            content_hash.update(spec.name, dataset[start : start + _VERIFY_ROWS])
    for spec in metadata.ragged_fields:
        dataset = stored_array(file, f"ragged/{spec.name}")
        num_at_once = _SAVED_STATE_CHUNK_BYTES if spec.dtype == "uint8" else _VERIFY_ROWS
        for start in range(0, len(dataset), num_at_once):
            content_hash.update(spec.name, dataset[start : start + num_at_once])
    for spec in metadata.episode_fields:
        column = read_column(file, spec)
        if len(column) != num_episodes:
            return f"{spec.name} has {len(column)} rows, expected {num_episodes}"
        content_hash.update(spec.name, column)
    if content_hash.hexdigest() != file.attrs["content_hash"]:
        return "the content differs from the hash taken when it was sealed"
    return None
