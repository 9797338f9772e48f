"""A training log as the page sees it: one curve per column."""

from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from experiment.errors import UserError
from experiment.files import read_json
from panel.fingerprint import fingerprint

STEP_COLUMNS = ("step", "timesteps")
"""What counts the progress of training: updates of a simulator, environment steps of an agent."""
MAX_LOG_BYTES = 64 * 2**20
PROVENANCE_FILE = "provenance.json"


class TrainingSource:
    """Holds one CSV file of a training run, which grows while training runs."""

    def __init__(self, path: Path) -> None:
        self.content_hash = fingerprint(path)
        self._folder = path.parent
        if path.stat().st_size > MAX_LOG_BYTES:
            raise UserError(f"{path.name}: larger than {MAX_LOG_BYTES} bytes")
        self._table = pd.read_csv(path).select_dtypes("number")
        steps = [name for name in STEP_COLUMNS if name in self._table]
        if not steps:
            raise UserError(f"{path.name}: no column {' or '.join(STEP_COLUMNS)}")
        self._step_column = steps[0]

    @property
    def provenance(self) -> dict[str, Any]:
        """What the run's folder says of its making; empty where it says nothing."""
        path = self._folder / PROVENANCE_FILE
        return read_json(path) if path.is_file() else {}

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        return {
            "hash": self.content_hash,
            "step_column": self._step_column,
            "columns": [name for name in self._table.columns if name != self._step_column],
            "num_rows": len(self._table),
        }

    def curves(self) -> dict[str, NDArray]:
        """Every numeric column, (rows,); NaN where a row has no value."""
        values = self._table.to_numpy(dtype=float, na_value=float("nan"))
        return {str(name): values[:, column] for column, name in enumerate(self._table.columns)}
