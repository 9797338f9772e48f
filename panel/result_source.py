"""What every source of one result file has in common."""

import threading
from pathlib import Path
from typing import Any, ClassVar

import xarray as xr
from numpy.typing import NDArray

from analysis.results import input_hashes, read_results
from experiment.errors import UserError
from panel.fingerprint import fingerprint
from panel.provenance import result_provenance
from panel.rollout_source import UnknownItemError


class ResultSource:
    """An open result file; its arrays are read when they are asked for, one thread at a time."""

    REQUIRED: ClassVar[tuple[str, ...]] = ()
    """Variables and coordinates without which the file is of no use."""

    def __init__(self, path: Path) -> None:
        self.content_hash = fingerprint(path)
        self._lock = threading.Lock()
        self._results: xr.Dataset = read_results(path)
        missing = [name for name in self.REQUIRED if name not in self._results.variables]
        if missing:
            raise UserError(f"{path.name}: {', '.join(missing)} missing")
        self.hash_of_input = dict(input_hashes(self._results))
        """By role."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What the file says of its making."""
        return result_provenance(self._results)

    def _read(self, name: str, **positions: int | slice) -> NDArray:
        """One variable at some positions of its dims, in memory."""
        with self._lock:
            return self._results[name].isel(positions).to_numpy()

    def _texts(self, name: str) -> list[str]:
        return [str(value) for value in self._read(name).tolist()]

    def _position(self, dim: str, label: str) -> int:
        """Where a label stands along `dim`; `UnknownItemError` for one that is not there."""
        labels = self._texts(dim)
        if label not in labels:
            raise UnknownItemError(f"{dim}: the file has {', '.join(labels)}")
        return labels.index(label)
