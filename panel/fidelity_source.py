"""The simulator's fidelity over the horizon as the page sees it: a curve with its interval."""

import threading
from pathlib import Path
from typing import Any

import xarray as xr
from numpy.typing import NDArray

from analysis.results import read_results
from experiment.errors import UserError
from panel.fingerprint import fingerprint
from panel.provenance import result_provenance
from panel.rollout_source import UnknownItemError

CURVE_DIMS = ("prediction", "horizon")
REQUIRED_VARIABLES = (
    "score",
    "score_interval",
    "measure",
    "measure_meaning",
    "prediction",
    "prediction_meaning",
    "horizon",
)


class FidelitySource:
    """Holds one `simulator_fidelity.nc`; its curves are small."""

    def __init__(self, path: Path) -> None:
        self.content_hash = fingerprint(path)
        self._lock = threading.Lock()
        self._results: xr.Dataset = read_results(path)
        missing = [name for name in REQUIRED_VARIABLES if name not in self._results]
        if missing:
            raise UserError(f"{path.name}: {', '.join(missing)} missing")
        self._measures = self._texts("measure")

    @property
    def provenance(self) -> dict[str, Any]:
        """What the file says of its making."""
        return result_provenance(self._results)

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        return {
            "hash": self.content_hash,
            "measures": self._measures,
            "measure_meanings": self._texts("measure_meaning"),
            "predictions": self._texts("prediction"),
            "prediction_meanings": self._texts("prediction_meaning"),
            "num_windows": int(self._results.sizes.get("window", 0)),
        }

    def curves(self, measure: str) -> dict[str, NDArray]:
        """`horizon` (H,), `score` (P, H), and `lower` and `upper` (P, H) of its 95% interval.

        Raises:
            UnknownItemError: no such measure.
        """
        if measure not in self._measures:
            raise UnknownItemError(f"measure: the file has {', '.join(self._measures)}")
        chosen = {"measure": self._measures.index(measure)}
        with self._lock:
            score = self._results["score"].isel(chosen).transpose(*CURVE_DIMS).to_numpy()
            interval = self._results["score_interval"].isel(chosen)
            lower, upper = interval.transpose("bound", *CURVE_DIMS).to_numpy()
            horizon = self._results["horizon"].to_numpy()
        return {"horizon": horizon, "score": score, "lower": lower, "upper": upper}

    def _texts(self, name: str) -> list[str]:
        return [str(value) for value in self._results[name].to_numpy().tolist()]
