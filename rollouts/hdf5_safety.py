"""What an HDF5 file must not ask of its reader.

The format can point into other files: external links, virtual datasets, and raw storage in files
of any name. A file that someone else made could so have a viewer read and show any file of its
user. It can also declare arrays larger than any memory at the cost of a few bytes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import h5py.h5d as h5d
import h5py.h5g as h5g
import h5py.h5l as h5l
import h5py.h5o as h5o

from experiment.errors import UserError

SHARD_SUFFIX = ".h5"
MAX_OBJECTS = 10_000
"""Groups and datasets of one file; ours have some dozens."""
MAX_EXPANSION = 2_000
"""Bytes in memory for each stored byte; Blosc and gzip reach some hundreds on constant data."""
FREE_BYTES = 64 * 2**20
"""Arrays up to this size may be stored in nothing at all."""
MAX_KEPT_OPEN = 8
"""Files that stay open at once after they were looked through: HDF5 takes 64 KiB for each array."""


@contextmanager
def harmless_files(paths: Iterable[Path]) -> Iterator[None]:
    """Refuse files that refer to other files or promise far more than they store.

    No reference is followed and no array is read. Within the block the files stay open with all
    their objects, the last `MAX_KEPT_OPEN` of them: what is open already, HDF5 opens once more in
    a seventh of the time.

    Raises:
        UserError: what was found, by name.
        OSError: a file is not HDF5.
    """
    # Dropped, not closed, which is quicker: h5py would look for what belongs to a file among all
    # that is open.
    kept: deque[_Kept] = deque(maxlen=MAX_KEPT_OPEN)
    try:
        for path in paths:
            # HDF5 refuses to open a file twice with different locking: shards are read without.
            locking = False if path.suffix == SHARD_SUFFIX else None
            file = h5py.File(path, "r", locking=locking)
            kept.append(_Kept(file, tuple(_harmless_objects(file.id, path.name))))
            del file
        yield
    finally:
        kept.clear()


@dataclass(frozen=True)
class _Kept:
    file: h5py.File
    objects: tuple[Any, ...]


def _harmless_objects(root: h5g.GroupID, label: str) -> Iterator[Any]:
    """All objects below a group, opened; through HDF5's low-level interface, which is several
    times as quick as h5py's indexing."""
    waiting, seen = [root], 0
    while waiting:
        group = waiting.pop()
        seen += group.get_num_objs()
        # Groups may contain each other.
        if seen > MAX_OBJECTS:
            raise UserError(f"{label}: more than {MAX_OBJECTS} objects")
        for name, kind in _links_of(group):
            shown = f"{label}: {name.decode(errors='replace')}"
            if kind != h5l.TYPE_HARD:
                raise UserError(f"{shown} is a link, data expected")
            child = h5o.open(group, name)
            if isinstance(child, h5g.GroupID):
                waiting.append(child)
            elif isinstance(child, h5d.DatasetID):
                _require_own_data(child, shown)
            yield child


def _links_of(group: h5g.GroupID) -> list[tuple[bytes, int]]:
    """Name and kind of each link of a group."""
    links: list[tuple[bytes, int]] = []
    group.links.iterate(lambda name, link: links.append((name, link.type)), info=True)
    return links


def _require_own_data(dataset: h5d.DatasetID, label: str) -> None:
    layout = dataset.get_create_plist()
    if layout.get_external_count() or layout.get_layout() == h5d.VIRTUAL:
        raise UserError(f"{label} keeps its data in other files")
    stored = dataset.get_storage_size()
    num_values = dataset.get_space().get_simple_extent_npoints()
    declared = num_values * dataset.get_type().get_size()
    if declared > FREE_BYTES + MAX_EXPANSION * stored:
        raise UserError(f"{label} declares {declared} bytes and stores {stored}")
