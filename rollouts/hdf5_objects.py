"""HDF5 files whose objects stay open while much is asked of them."""

from typing import Any

import h5py


class KeepingFile(h5py.File):
    """Keeps the objects that were asked for by name, until it is told to `forget` them."""

    def __init__(self, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._kept: dict[str, Any] | None = {}

    def __getitem__(self, name: Any) -> Any:
        if self._kept is None or not isinstance(name, str):
            return super().__getitem__(name)
        if name not in self._kept:
            self._kept[name] = super().__getitem__(name)
        return self._kept[name]

    def forget(self) -> None:
        """Keep nothing from now on."""
        self._kept = None
