"""Datasets of rollouts on disk: a folder of `dataset.json` and sealed HDF5 shards.

`docs/data_format.md` is the normative description. Nothing else in the project opens these files.
"""

import json
import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from experiment.errors import UserError
from experiment.files import hash_bytes, require_writable_folder
from rollouts.description import METADATA_FILE, create_or_check_metadata, read_metadata
from rollouts.saved_states import NUM_BYTES, ROW, is_intact
from rollouts.schema import DatasetMetadata, FieldSpec, check_rollout, length_column
from rollouts.sealing import list_shards, remove_stale_partials, write_shard
from rollouts.shards import (
    ShardBuilder,
    ShardReader,
    find_damage,
    open_shard,
    stored_array,
    summarise_shard,
)
from rollouts.types import EpisodeInfo, Rollout, rollout_of_arrays

DEFAULT_SHARD_BYTES = 2**28
"""A shard is sealed once its uncompressed arrays exceed this; a killed writer loses at most as
much, and a writer's memory is bounded by it."""

_MAX_OPEN_SHARDS = 128


class RolloutWriter:
    """Appends rollouts to a dataset; many writers of different names may do so at once.

    Used as a context manager. A clean exit seals the open shard; an exception drops it, as does a
    failure to write or to seal, whatever it is.

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
        create_or_check_metadata(self.folder / METADATA_FILE, metadata)
        remove_stale_partials(self.folder, writer)
        sealed = list_shards(self.folder)
        self._known_shards = set(sealed)
        self._episode_ids = _sealed_episode_ids(sealed, metadata)
        self._open_ids: set[int] = set()
        self._shard: ShardBuilder | None = None

    @property
    def episode_ids(self) -> frozenset[int]:
        """Episodes that were sealed when the writer was made, and those it has written since.

        A recorder that continues a dataset leaves these out.
        """
        return frozenset(self._episode_ids)

    def write(self, rollout: Rollout) -> None:
        """Append one episode, whose arrays must not be changed afterwards.

        Raises:
            SchemaError: a field does not fit the schema; nothing has been written.
            UserError: the episode id exists already, or the disk is full.
        """
        check_rollout(rollout, self.metadata)
        episode_id = int(rollout.info.episode_id)
        if episode_id in self._episode_ids:
            raise UserError(f"{self.folder}: episode_id {episode_id} exists already")
        if self._shard is None:
            self._shard = ShardBuilder(self.metadata)
        try:
            self._shard.append(rollout)
        except BaseException:
            # Some of its arrays may have rows that others lack.
            self.discard()
            raise
        self._episode_ids.add(episode_id)
        self._open_ids.add(episode_id)
        if self._shard.num_bytes >= self.shard_bytes:
            self.seal()

    def seal(self) -> None:
        """Make what was written so far a finished shard, visible to readers.

        Raises:
            UserError: the disk is full, or another process of the same writer's name has sealed
                one of these episodes; the open shard is dropped, sealed ones are intact.
        """
        if self._shard is None:
            return
        try:
            image = self._shard.finish()
            path = write_shard(self.folder, self.writer, image, self._check_rivals)
            self._known_shards.add(path)
        finally:
            self.discard()

    def _check_rivals(self) -> None:
        """A job that was requeued while it still ran would else leave every episode twice."""
        for path in list_shards(self.folder, self.writer):
            if path in self._known_shards:
                continue
            sealed_ids = _sealed_episode_ids([path], self.metadata)
            if twice := self._open_ids & sealed_ids:
                raise UserError(
                    f"{path}: another process that records the same part has sealed episode_id "
                    f"{min(twice)} meanwhile; this one stops and drops its unsealed episodes"
                )
            self._known_shards.add(path)
            self._episode_ids |= sealed_ids

    def discard(self) -> None:
        """Drop the open shard."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
            self._open_ids.clear()

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


def _sealed_episode_ids(paths: list[Path], metadata: DatasetMetadata) -> set[int]:
    ids: set[int] = set()
    for path in paths:
        with open_shard(path) as file:
            ids.update(summarise_shard(file, metadata).table["episode_id"].tolist())
    return ids


class _ShardHandles:
    """Open shards of one process, at most `_MAX_OPEN_SHARDS` of them.

    HDF5 handles survive neither a fork nor pickling, so a child or a copy starts without any.
    """

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        self._process_id = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_ShardHandles, (self.paths,))

    def __getitem__(self, shard: int) -> ShardReader:
        if os.getpid() != self._process_id:
            self._open, self._process_id = OrderedDict(), os.getpid()
        reader = self._open.get(shard)
        if reader is None:
            reader = self._open[shard] = ShardReader(self.paths[shard])
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
        UserError: no dataset, an unknown schema version, a dataset without any episode, or a
            malformed shard, which it names.
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
        summaries = [summarise_shard(file, self.metadata) for file in files]
        self._content_hashes = [summary.content_hash for summary in summaries]
        self._shard_starts = [0, *accumulate(summary.num_rows for summary in summaries)]
        self._columns = _join_tables([summary.table for summary in summaries])
        self._columns["offset"] += np.array(self._shard_starts)[self._columns["shard"]]
        self._ragged_starts = {
            spec.name: _starts_in_shard(self._columns["shard"], self._columns[length_column(spec)])
            for spec in self.metadata.ragged_fields
        }
        ids, times = np.unique(self._columns["episode_id"], return_counts=True)
        if (times > 1).any():
            raise UserError(f"{folder}: episode_id {ids[times > 1][0]} occurs more than once")

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """One row per episode: the scalar columns of the episode table, with `offset` counting
        rows of the whole dataset, plus `shard`, the index of the shard."""
        # Made when it is asked for: of a small dataset it takes as long as to read the columns.
        # Texts stay objects, whatever pandas makes of them by itself.
        return pd.DataFrame(
            {name: pd.Series(values, dtype=values.dtype) for name, values in self._columns.items()}
        )

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self._columns["episode_id"])

    @property
    def shard_paths(self) -> list[Path]:
        """The shards that were sealed when the dataset was opened."""
        return list(self._handles.paths)

    @property
    def shard_starts(self) -> list[int]:
        """First row of each shard, then the number of all rows."""
        return self._shard_starts

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self._columns["episode_id"])

    @property
    def num_rows(self) -> int:
        """Number of decisions in all episodes."""
        return self._shard_starts[-1]

    @property
    def raw_bytes(self) -> int:
        """Bytes of all steps, uncompressed."""
        ragged = [
            int(self._columns[length_column(spec)].sum()) * spec.row_bytes
            for spec in self.metadata.ragged_fields
        ]
        return self.num_rows * self.metadata.row_bytes + sum(ragged)

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
        spec = self.step_field(name)
        out = np.empty((max(0, stop - start), *spec.row_shape), spec.dtype)
        self.read_rows(name, start, out)
        return out

    def read_rows(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out`, contiguous and of the field's dtype, with rows from `start` on."""
        self._check_out(name, start, out)
        filled = 0
        while filled < len(out):
            row = start + filled
            shard = bisect_right(self._shard_starts, row) - 1
            stop = min(len(out), filled + self._shard_starts[shard + 1] - row)
            local_row = row - self._shard_starts[shard]
            self._handles[shard].read_steps(name, local_row, out[filled:stop])
            filled = stop

    def _check_out(self, name: str, start: int, out: NDArray[Any]) -> None:
        """HDF5 writes into the buffer unseen, so it must be what it is taken for."""
        spec = self.step_field(name)
        if out.dtype != spec.dtype or out.shape[1:] != spec.row_shape or not out.flags.c_contiguous:
            raise ValueError(f"{name}: the buffer is not a contiguous {spec.dtype} array of rows")
        if not 0 <= start <= start + len(out) <= self.num_rows:
            raise IndexError(f"{name}: rows {start} to {start + len(out)} of {self.num_rows}")

    def iter_field(self, name: str, rows_per_chunk: int = 8192) -> Iterator[NDArray[Any]]:
        """All rows of a step field in order, at most `rows_per_chunk` at a time."""
        for start in range(0, self.num_rows, rows_per_chunk):
            yield self.read_field(name, start, start + rows_per_chunk)

    def read_episode_field(self, name: str) -> NDArray[Any]:
        """(num_episodes, ...) of any column of the episode table, arrays included.

        `agent_initial_state` and `latent` are not part of `episodes`.
        """
        if name in self._columns:
            return self._columns[name]
        if name not in self._episode_fields:
            raise UserError(f"{self.folder}: no episode field {name!r}")
        files = (self._handles[shard].file for shard in range(len(self._handles.paths)))
        return np.concatenate([stored_array(file, f"episodes/{name}")[:] for file in files])

    def read_episode(self, index: int) -> Rollout:
        """The episode of that index, as it was written."""
        if not 0 <= index < self.num_episodes:
            raise UserError(
                f"{self.folder}: no episode {index}, the dataset has {self.num_episodes}"
            )
        start = int(self._columns["offset"][index])
        stop = start + int(self._columns["length"][index])
        arrays = {name: self.read_field(name, start, stop) for name in self._fields}
        arrays |= {name: self._read_ragged(name, index) for name in self._ragged_starts}
        columns = self._array_columns(index)
        grid_shape = columns.pop("game_grid_shape", None)
        return rollout_of_arrays(arrays, self._episode_info(index, columns), grid_shape)

    def _read_ragged(self, name: str, index: int) -> NDArray[Any]:
        """What an episode has of a ragged field."""
        length = int(self._columns[f"{name}_length"][index])
        shard = int(self._columns["shard"][index])
        start = int(self._ragged_starts[name][index])
        return self._handles[shard].read_ragged(name, start, length)

    def saved_state_rows(self, index: int) -> NDArray[np.int64]:
        """Rows of an episode whose environment states are kept, in order."""
        if self.metadata.save_state_every is None:
            return np.zeros(0, np.int64)
        return self._read_ragged("saved_state_table", index)[:, ROW]

    def read_saved_state(self, index: int, number: int) -> bytes:
        """An episode's saved state at its row `saved_state_rows(index)[number]`.

        Raises:
            UserError: it is damaged; names the shard.
        """
        table = self._read_ragged("saved_state_table", index)
        before = int(table[:number, NUM_BYTES].sum())
        shard = int(self._columns["shard"][index])
        start = int(self._ragged_starts["saved_states"][index]) + before
        try:
            content = self._handles[shard].read_ragged(
                "saved_states", start, int(table[number, NUM_BYTES])
            )
        except OSError:
            # What the filter cannot decompress.
            content = np.zeros(0, np.uint8)
        if not is_intact(content.tobytes(), table[number]):
            raise UserError(
                f"{self.shard_paths[shard]}: damaged: the environment state saved at row "
                f"{table[number, ROW]} of episode_id {self._columns['episode_id'][index]} "
                "differs from its checksum"
            )
        return content.tobytes()

    def _array_columns(self, index: int) -> dict[str, NDArray[Any]]:
        """Those columns of an episode that are no part of `episodes`."""
        shards = self._columns["shard"]
        shard = int(shards[index])
        index_in_shard = index - int(np.searchsorted(shards, shard))
        file = self._handles[shard].file
        return {
            name: stored_array(file, f"episodes/{name}")[index_in_shard]
            for name, spec in self._episode_fields.items()
            if spec.row_shape
        }

    def _episode_info(self, index: int, arrays: dict[str, Any]) -> EpisodeInfo:
        scalars = {
            spec.name: spec.to_python(self._columns[spec.name][index])
            for spec in self._episode_fields.values()
            if spec.name in EpisodeInfo.__dataclass_fields__ and not spec.row_shape
        }
        scalars["interventions"] = tuple(json.loads(scalars["interventions"]))
        return EpisodeInfo(**scalars, **arrays)

    def step_field(self, name: str) -> FieldSpec:
        """Type and shape of a step field; raises `UserError` where there is none."""
        if name not in self._fields:
            known = ", ".join(self._fields)
            raise UserError(f"{self.folder}: no step field {name!r}, it has {known}")
        return self._fields[name]


def _join_tables(tables: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The episode tables of all shards as one, with the index of the shard as `shard`."""
    joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    shard = np.repeat(np.arange(len(tables)), [len(table["episode_id"]) for table in tables])
    return {**joined, "shard": shard}


def _starts_in_shard(shards: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """(num_episodes,) first row of each episode's part of its shard's array."""
    stops = np.cumsum(lengths, dtype=np.int64)
    before = np.concatenate([[0], stops])[np.searchsorted(shards, shards)]
    return stops - lengths - before


def verify_dataset(folder: Path | str) -> list[str]:
    """Read every sealed shard whole and compare it with the hash taken when it was sealed.

    Returns:
        One line per shard that is damaged; empty when all is well.
    """
    metadata = read_metadata(folder)
    problems = []
    for path in tqdm(list_shards(folder), desc="verify", unit="shard", disable=None):
        try:
            with open_shard(path) as file:
                problem = find_damage(file, metadata)
        except (UserError, OSError, KeyError) as error:
            problem = str(error)
        if problem is not None:
            problems.append(f"{path.name}: {problem}")
    return problems
