"""What an HDF5 file must not ask of its reader.

The format can point into other files: external links, virtual datasets, and raw storage in files
of any name. A file that someone else made could so have a viewer read and show any file of its
user. It can also declare arrays larger than any memory at the cost of a few bytes.
"""

from pathlib import Path

import h5py

from experiment.errors import UserError

SHARD_SUFFIX = ".h5"
MAX_OBJECTS = 10_000
"""Groups and datasets of one file; ours have some dozens."""
MAX_EXPANSION = 2_000
"""Bytes in memory for each stored byte; Blosc and gzip reach some hundreds on constant data."""
FREE_BYTES = 64 * 2**20
"""Arrays up to this size may be stored in nothing at all."""


def require_harmless(path: Path) -> None:
    """Refuse a file that refers to other files or promises far more than it stores.

    No reference is followed and no array is read.

    Raises:
        UserError: what was found, by name.
        OSError: it is not HDF5.
    """
    # HDF5 refuses to open a file twice with different locking: shards are read without.
    locking = False if path.suffix == SHARD_SUFFIX else None
    with h5py.File(path, "r", locking=locking) as file:
        waiting: list[h5py.Group] = [file]
        seen = 0
        while waiting:
            group = waiting.pop()
            seen += len(group)
            # Groups may contain each other.
            if seen > MAX_OBJECTS:
                raise UserError(f"{path.name}: more than {MAX_OBJECTS} objects")
            for name in group:
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise UserError(f"{path.name}: {name} is a link, data expected")
                child = group[name]
                if isinstance(child, h5py.Group):
                    waiting.append(child)
                elif isinstance(child, h5py.Dataset):
                    _require_own_data(child, f"{path.name}: {name}")


def _require_own_data(dataset: h5py.Dataset, label: str) -> None:
    if dataset.external or dataset.is_virtual:
        raise UserError(f"{label} keeps its data in other files")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > FREE_BYTES + MAX_EXPANSION * stored:
        raise UserError(f"{label} declares {dataset.nbytes} bytes and stores {stored}")
