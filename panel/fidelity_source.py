"""The simulator's fidelity over the horizon as the page sees it: a curve with its interval."""

from typing import Any

from numpy.typing import NDArray

from panel.result_source import ResultSource

CURVE_DIMS = ("prediction", "horizon")


class FidelitySource(ResultSource):
    """Holds one `simulator_fidelity.nc`; its curves are small."""

    REQUIRED = (
        *("score", "score_interval", "measure", "measure_meaning"),
        *("prediction", "prediction_meaning", "horizon"),
    )

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        return {
            "hash": self.content_hash,
            "measures": self._texts("measure"),
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
        chosen = {"measure": self._position("measure", measure)}
        with self._lock:
            score = self._results["score"].isel(chosen).transpose(*CURVE_DIMS).to_numpy()
            interval = self._results["score_interval"].isel(chosen)
            lower, upper = interval.transpose("bound", *CURVE_DIMS).to_numpy()
            horizon = self._results["horizon"].to_numpy()
        return {"horizon": horizon, "score": score, "lower": lower, "upper": upper}
