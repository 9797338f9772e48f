"""Datasets of rollouts on disk: a folder of `dataset.json` and sealed HDF5 shards.

`docs/data_format.md` is the normative description. Nothing else in the project opens these files.
"""

import contextlib
import errno
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pandas as pd
from h5py import h5d, h5s
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

from experiment.errors import UserError
from experiment.files import hash_bytes, read_json, require_writable_folder
from rollouts.schema import (
    FORMAT_NAME,
    SCHEMA_VERSION,
    STRING,
    ContentHash,
    DatasetMetadata,
    FieldSpec,
    check_rollout,
    find_difference,
)
from rollouts.types import EpisodeInfo, Rollout

METADATA_FILE = "dataset.json"
DEFAULT_SHARD_BYTES = 2**28
"""A shard is sealed once its uncompressed arrays exceed this; a killed writer loses at most as
much, and a writer's memory is bounded by it."""

FRAMES_PER_CHUNK = 16
_CHUNK_BYTES = 2**15
_MAX_OPEN_SHARDS = 128
_VERIFY_ROWS = 4096
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHARD_NAME = re.compile(r"shard-(?P<writer>\w+)-(?P<number>\d+)\.h5")
_PARTIAL_NAME = re.compile(r"shard-(?P<writer>\w+)-(?P<number>\d+)\.h5\.partial")


class RolloutWriter:
    """Appends rollouts to a dataset; many writers of different names may do so at once.

    Used as a context manager. A clean exit seals the open shard; an exception drops it.

    Args:
        folder: the dataset; created if it is absent, continued if it exists.
        metadata: written to `dataset.json` by the first writer; later ones must agree with it.
        writer: name of the writer, letters, digits and underscores.
        shard_bytes: size of a shard, uncompressed.

    Raises:
        UserError: the folder is not writable, or holds a dataset that differs in its metadata.
    """

    def __init__(
        self,
        folder: Path | str,
        metadata: DatasetMetadata,
        writer: str = "0",
        shard_bytes: int = DEFAULT_SHARD_BYTES,
    ):
        if not re.fullmatch(r"\w+", writer):
            raise UserError(f"writer {writer!r}: expected letters, digits and underscores")
        self.folder = require_writable_folder(folder, "dataset")
        self.metadata = metadata
        self.writer = writer
        self.shard_bytes = shard_bytes
        _create_or_check_metadata(self.folder / METADATA_FILE, metadata)
        _remove_stale_partials(self.folder, writer)
        self._episode_ids = _sealed_episode_ids(self.folder)
        self._shard: _OpenShard | None = None

    @property
    def episode_ids(self) -> frozenset[int]:
        """Episodes that were sealed when the writer was made, and those it has written since.

        A recorder that continues a dataset leaves these out.
        """
        return frozenset(self._episode_ids)

    def write(self, rollout: Rollout) -> None:
        """Append one episode.

        Raises:
            SchemaError: a field does not fit the schema; nothing has been written.
            UserError: the episode id exists already, or the disk is full.
        """
        check_rollout(rollout, self.metadata)
        episode_id = int(rollout.info.episode_id)
        if episode_id in self._episode_ids:
            raise UserError(f"{self.folder}: episode_id {episode_id} exists already")
        if self._shard is None:
            self._shard = _OpenShard(self.metadata)
        self._shard.append(rollout)
        self._episode_ids.add(episode_id)
        if self._shard.num_rows * self.metadata.row_bytes >= self.shard_bytes:
            self.seal()

    def seal(self) -> None:
        """Make what was written so far a finished shard, visible to readers."""
        if self._shard is None:
            return
        image = self._shard.finish()
        self._shard = None
        _write_shard(self.folder, self.writer, image)

    def discard(self) -> None:
        """Drop the open shard."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None

    def __enter__(self) -> "RolloutWriter":
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exception_type is None:
            self.seal()
        else:
            self.discard()


class _OpenShard:
    """A shard under construction, compressed in memory.

    HDF5 cannot close a file on a full disk and brings the process down in the attempt, so it
    never writes to the disk itself: a finished shard is one buffer of bytes.
    """

    def __init__(self, metadata: DatasetMetadata):
        self.num_rows = 0
        self._metadata = metadata
        self._hash = ContentHash(metadata.step_fields + metadata.episode_fields)
        self._columns: dict[str, list[Any]] = {f.name: [] for f in metadata.episode_fields}
        self._file = h5py.File(
            "shard", "w", driver="core", backing_store=False, block_size=2**22, libver="v110"
        )
        for spec in metadata.step_fields:
            _create_step_field(self._file, spec)

    def append(self, rollout: Rollout) -> None:
        """Add one episode, checked already."""
        start, stop = self.num_rows, self.num_rows + len(rollout)
        for spec in self._metadata.step_fields:
            rows = getattr(rollout, spec.name)
            dataset = self._file["steps"][spec.name]
            dataset.resize(stop, axis=0)
            dataset[start:stop] = rows
            self._hash.update(spec.name, rows)
        for name, value in _episode_row(rollout, offset=start).items():
            if name in self._columns:
                self._columns[name].append(value)
        self.num_rows = stop

    def finish(self) -> bytes:
        """Write the episode table and return the shard as the bytes of an HDF5 file."""
        table = self._file.create_group("episodes")
        for spec in self._metadata.episode_fields:
            _write_column(table, spec, self._columns[spec.name], self._hash)
        self._file.attrs["format"] = FORMAT_NAME
        self._file.attrs["schema_version"] = SCHEMA_VERSION
        self._file.attrs["num_rows"] = self.num_rows
        self._file.attrs["num_episodes"] = len(self._columns["episode_id"])
        self._file.attrs["content_hash"] = self._hash.hexdigest()
        self._file.flush()
        image = self._file.id.get_file_image()
        self.close()
        return image

    def close(self) -> None:
        """Free the memory."""
        self._file.close()


def _create_step_field(file: h5py.File, spec: FieldSpec) -> None:
    rows_per_chunk = max(FRAMES_PER_CHUNK, _CHUNK_BYTES // max(1, spec.row_bytes))
    file.create_dataset(
        f"steps/{spec.name}",
        shape=(0, *spec.row_shape),
        maxshape=(None, *spec.row_shape),
        chunks=(rows_per_chunk, *spec.row_shape),
        dtype=_stored_dtype(spec),
        **_compression(spec),
    )


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


def _stored_dtype(spec: FieldSpec) -> DTypeLike:
    return np.dtype(spec.dtype).newbyteorder("<")


def _compression(spec: FieldSpec) -> Any:
    # Shuffling groups the bytes of equal weight: it helps numbers, and hurts runs of pixels.
    shuffle = hdf5plugin.Blosc.NOSHUFFLE if spec.dtype == "uint8" else hdf5plugin.Blosc.SHUFFLE
    return hdf5plugin.Blosc(cname="lz4hc", clevel=3, shuffle=shuffle)


def _episode_row(rollout: Rollout, offset: int) -> dict[str, Any]:
    """One row of the episode table, by column."""
    info = {name: getattr(rollout.info, name) for name in EpisodeInfo.__dataclass_fields__}
    return {
        **info,
        "offset": offset,
        "length": len(rollout),
        "return": float(rollout.reward.sum(dtype=np.float64)),
        "interventions": json.dumps(rollout.info.interventions),
    }


def _create_or_check_metadata(path: Path, metadata: DatasetMetadata) -> None:
    """Create `dataset.json` whole and exclusively; where it exists, compare it instead."""
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        _write_synced(temporary, (json.dumps(metadata.to_dict(), indent=2) + "\n").encode())
        # A link appears whole, and unlike a rename it never replaces another writer's file.
        os.link(temporary, path)
    except FileExistsError:
        existing = read_metadata(path.parent)
        difference = find_difference(existing.identity, metadata.identity)
        if difference is not None:
            raise UserError(
                f"{path}: the existing dataset differs in `{difference}`: found "
                f"{_look_up(existing.identity, difference)!r}, expected "
                f"{_look_up(metadata.identity, difference)!r}"
            ) from None
    except OSError as error:
        raise _storage_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _look_up(values: Any, dotted_key: str) -> Any:
    for name in dotted_key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _remove_stale_partials(folder: Path, writer: str) -> None:
    """Remove what an earlier, killed writer of the same name left half-written."""
    for path in folder.iterdir():
        match = _PARTIAL_NAME.fullmatch(path.name)
        if match and match["writer"] == writer:
            path.unlink()


def _write_shard(folder: Path, writer: str, image: bytes) -> None:
    names = (_SHARD_NAME.fullmatch(path.name) for path in folder.iterdir())
    taken = [int(name["number"]) for name in names if name and name["writer"] == writer]
    path = folder / f"shard-{writer}-{max(taken, default=-1) + 1:05d}.h5"
    partial = path.with_name(path.name + ".partial")
    try:
        _write_synced(partial, image)
        os.rename(partial, path)
        _sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _storage_error(error, path) from error


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _storage_error(error: OSError, path: Path) -> Exception:
    if error.errno in _DISK_FULL:
        return UserError(
            f"disk full while writing {path} ({error.strerror}); the sealed shards are intact"
        )
    return error


def read_metadata(folder: Path | str) -> DatasetMetadata:
    """Read `dataset.json`.

    Raises:
        UserError: there is none, it is malformed, or its schema version is unknown.
    """
    path = Path(folder) / METADATA_FILE
    if not path.is_file():
        raise UserError(f"{folder}: not a rollout dataset (it has no {METADATA_FILE})")
    return DatasetMetadata.from_dict(read_json(path), path)


def list_shards(folder: Path | str) -> list[Path]:
    """Sealed shards, ordered by writer and number (`2` before `10`)."""
    found = ((_SHARD_NAME.fullmatch(path.name), path) for path in Path(folder).iterdir())
    keyed = [((len(m["writer"]), m["writer"], int(m["number"])), p) for m, p in found if m]
    return [path for _, path in sorted(keyed)]


def _sealed_episode_ids(folder: Path) -> set[int]:
    ids: set[int] = set()
    for path in list_shards(folder):
        with _open_shard(path) as file:
            ids.update(file["episodes/episode_id"][:].tolist())
    return ids


def _open_shard(path: Path) -> h5py.File:
    """Open a sealed shard for reading, without the file locks that network disks lack."""
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UserError(f"{path}: not a readable shard ({error})") from None
    version = file.attrs.get("schema_version")
    if file.attrs.get("format") != FORMAT_NAME or version != SCHEMA_VERSION:
        file.close()
        raise UserError(
            f"{path}: schema version {version} is unknown, this program reads {SCHEMA_VERSION}"
        )
    return file


class _ShardReader:
    """One open shard."""

    def __init__(self, path: Path):
        self.file = _open_shard(path)
        self._step_ids: dict[str, h5d.DatasetID] = {}

    def read_steps(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill the contiguous `out` with rows of a step field, from row `start` of the shard on.

        HDF5's low-level interface: h5py's indexing would take as long as the reading itself.
        """
        dataset = self._step_ids.get(name)
        if dataset is None:
            dataset = self._step_ids[name] = self.file[f"steps/{name}"].id
        selected = dataset.get_space()
        selected.select_hyperslab((start, *(0,) * (out.ndim - 1)), out.shape)
        dataset.read(h5s.create_simple(out.shape), selected, out)


class _ShardHandles:
    """Open shards of one process, at most `_MAX_OPEN_SHARDS` of them.

    HDF5 handles survive neither a fork nor pickling, so a child or a copy starts without any.
    """

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self._open: OrderedDict[int, _ShardReader] = OrderedDict()
        self._process_id = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_ShardHandles, (self.paths,))

    def __getitem__(self, shard: int) -> _ShardReader:
        if os.getpid() != self._process_id:
            self._open, self._process_id = OrderedDict(), os.getpid()
        reader = self._open.get(shard)
        if reader is None:
            reader = self._open[shard] = _ShardReader(self.paths[shard])
            # Dropped, not closed: another thread may be reading from it.
            while len(self._open) > _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        return reader


class RolloutDataset:
    """The sealed shards of a dataset as they are when it is opened.

    Rows are numbered through all shards, in the order of `list_shards`, episodes likewise; an
    episode's rows are contiguous. Episode ids stay valid when the dataset grows, row numbers and
    episode indices do not.

    Safe to use in forked and spawned workers and from several threads.

    Raises:
        UserError: no dataset, an unknown schema version, or a dataset without any episode.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.metadata = read_metadata(folder)
        paths = list_shards(folder)
        if not paths:
            raise UserError(f"{folder}: the dataset is empty (it has no sealed shard)")
        self._handles = _ShardHandles(paths)
        self._fields = {spec.name: spec for spec in self.metadata.step_fields}
        self._episode_fields = {spec.name: spec for spec in self.metadata.episode_fields}
        files = [self._handles[shard].file for shard in range(len(paths))]
        tables = [_read_table(file, shard) for shard, file in enumerate(files)]
        self._content_hashes = [str(file.attrs["content_hash"]) for file in files]
        num_rows = [int(file.attrs["num_rows"]) for file in files]
        self._shard_starts = np.concatenate([[0], np.cumsum(num_rows, dtype=np.int64)])
        self.episodes = pd.concat(tables, ignore_index=True)
        """One row per episode: the scalar columns of the episode table, with `offset` counting
        rows of the whole dataset, plus `shard`, the index of the shard."""
        self.episodes["offset"] += self._shard_starts[self.episodes["shard"]]
        self._index = pd.Index(self.episodes["episode_id"])
        if not self._index.is_unique:
            double = self._index[self._index.duplicated()][0]
            raise UserError(f"{folder}: episode_id {double} occurs more than once")

    @property
    def shard_paths(self) -> list[Path]:
        """The shards that were sealed when the dataset was opened."""
        return list(self._handles.paths)

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @property
    def num_rows(self) -> int:
        """Number of decisions in all episodes."""
        return int(self._shard_starts[-1])

    @property
    def hash(self) -> str:
        """SHA-256 of the dataset's identity and the content hashes of its shards.

        Equal for equal content, whoever wrote it and when.
        """
        identity = json.dumps(self.metadata.identity, sort_keys=True, separators=(",", ":"))
        hashes = sorted(self._content_hashes)
        return hash_bytes("\n".join([identity, *hashes]).encode())

    def index_of(self, episode_id: int) -> int:
        """Index of the episode with that id; raises `UserError` where there is none."""
        index = int(self._index.get_indexer(pd.Index([episode_id]))[0])
        if index < 0:
            raise UserError(f"{self.folder}: no episode with episode_id {episode_id}")
        return index

    def read_field(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows `start .. stop-1` of a step field, over the whole dataset.

        The caller bounds the size; `iter_field` reads any amount piece by piece.

        Returns:
            (stop − start, *row_shape)
        """
        stop = self.num_rows if stop is None else min(stop, self.num_rows)
        spec = self._field(name)
        out = np.empty((max(0, stop - start), *spec.row_shape), spec.dtype)
        self.read_rows(name, start, out)
        return out

    def read_rows(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out`, contiguous and of the field's dtype, with rows from `start` on."""
        filled = 0
        while filled < len(out):
            row = start + filled
            shard = int(np.searchsorted(self._shard_starts, row, side="right")) - 1
            num_rows = min(len(out) - filled, int(self._shard_starts[shard + 1]) - row)
            local_row = row - int(self._shard_starts[shard])
            self._handles[shard].read_steps(name, local_row, out[filled : filled + num_rows])
            filled += num_rows

    def iter_field(self, name: str, rows_per_chunk: int = 8192) -> Iterator[NDArray[Any]]:
        """All rows of a step field in order, at most `rows_per_chunk` at a time."""
        for start in range(0, self.num_rows, rows_per_chunk):
            yield self.read_field(name, start, start + rows_per_chunk)

    def read_episode_field(self, name: str) -> NDArray[Any]:
        """(num_episodes, ...) of any column of the episode table, arrays included.

        `agent_initial_state` and `latent` are not part of `episodes`.
        """
        if name in self.episodes:
            return self.episodes[name].to_numpy()
        if name not in self._episode_fields:
            raise UserError(f"{self.folder}: no episode field {name!r}")
        shards = range(len(self._handles.paths))
        return np.concatenate([self._handles[i].file[f"episodes/{name}"][:] for i in shards])

    def read_episode(self, index: int) -> Rollout:
        """The episode of that index, as it was written."""
        if not 0 <= index < self.num_episodes:
            raise UserError(
                f"{self.folder}: no episode {index}, the dataset has {self.num_episodes}"
            )
        row = self.episodes.iloc[index]
        start, stop = int(row["offset"]), int(row["offset"] + row["length"])
        steps = {name: self.read_field(name, start, stop) for name in self._fields}
        return Rollout(**steps, info=self._episode_info(index, row))

    def _episode_info(self, index: int, row: pd.Series) -> EpisodeInfo:
        shard = int(row["shard"])
        index_in_shard = index - int(np.searchsorted(self.episodes["shard"], shard))
        table = self._handles[shard].file["episodes"]
        arrays = {
            name: table[name][index_in_shard]
            for name, spec in self._episode_fields.items()
            if spec.row_shape
        }
        scalars = {
            spec.name: spec.to_python(row[spec.name])
            for spec in self._episode_fields.values()
            if spec.name in EpisodeInfo.__dataclass_fields__ and not spec.row_shape
        }
        scalars["interventions"] = tuple(json.loads(scalars["interventions"]))
        return EpisodeInfo(**scalars, **arrays)

    def _field(self, name: str) -> FieldSpec:
        if name not in self._fields:
            known = ", ".join(self._fields)
            raise UserError(f"{self.folder}: no step field {name!r}, it has {known}")
        return self._fields[name]


def _read_table(file: h5py.File, shard: int) -> pd.DataFrame:
    """The scalar columns of one shard's episode table."""
    columns: dict[str, Any] = {}
    for name, column in file["episodes"].items():
        if h5py.check_string_dtype(column.dtype):
            columns[name] = pd.Series(column.asstr()[:], dtype=object)
        elif column.ndim == 1:
            columns[name] = column[:]
    return pd.DataFrame(columns).assign(shard=shard)


def verify_dataset(folder: Path | str) -> list[str]:
    """Read every sealed shard whole and compare it with the hash taken when it was sealed.

    Returns:
        One line per shard that is damaged; empty when all is well.
    """
    metadata = read_metadata(folder)
    problems = []
    for path in tqdm(list_shards(folder), desc="verify", unit="shard", disable=None):
        try:
            with _open_shard(path) as file:
                problem = _find_damage(file, metadata)
        except (UserError, OSError, KeyError) as error:
            problem = str(error)
        if problem is not None:
            problems.append(f"{path.name}: {problem}")
    return problems


def _find_damage(file: h5py.File, metadata: DatasetMetadata) -> str | None:
    content_hash = ContentHash(metadata.step_fields + metadata.episode_fields)
    num_rows, num_episodes = int(file.attrs["num_rows"]), int(file.attrs["num_episodes"])
    for spec in metadata.step_fields:
        dataset = file["steps"][spec.name]
        if dataset.shape != (num_rows, *spec.row_shape):
            return f"{spec.name} has shape {dataset.shape}, expected {num_rows} rows"
        for start in range(0, num_rows, _VERIFY_ROWS):
            content_hash.update(spec.name, dataset[start : start + _VERIFY_ROWS])
    for spec in metadata.episode_fields:
        column = file["episodes"][spec.name]
        if len(column) != num_episodes:
            return f"{spec.name} has {len(column)} rows, expected {num_episodes}"
        is_text = spec.dtype == STRING
        content_hash.update(spec.name, list(column.asstr()[:]) if is_text else column[:])
    if content_hash.hexdigest() != file.attrs["content_hash"]:
        return "the content differs from the hash taken when it was sealed"
    return None
