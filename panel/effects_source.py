"""Effects of an intervention as the page sees them: predicted, observed, and against controls."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.effect_names import TESTED, TWIN
from analysis.effect_verdict import find, main_measures, meaning, random_controls, strength_lines
from panel.result_source import ResultSource

ROW_DIMS = ("world", "variant", "step")
_Numbers = dict[tuple[str, str], float]


class EffectsSource(ResultSource):
    """Holds one `intervention_effects.nc`, all of it: it is small."""

    REQUIRED = (
        *("effect", "effect_interval", "excess_interval", "q_value", "row_effect", "predicted"),
        *("predicted_row", "world", "variant", "measure", "row_measure", "prediction", "level"),
    )

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._findings: dict[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        main = main_measures(self._results)
        measures = self._texts("measure")
        config = self.provenance.get("config", {})
        return {
            "hash": self.content_hash,
            "projection_hash": self.hash_of_input.get("projection"),
            "worlds": self._texts("world"),
            "variants": self._texts("variant"),
            "twin": TWIN,
            "measures": [*main, *(name for name in measures if name not in main)],
            "num_main_measures": len(main),
            "row_measures": self._texts("row_measure"),
            "predictions": self._texts("prediction"),
            "prediction_meanings": self._texts("prediction_meaning"),
            "num_steps": int(self._results.sizes["step"]),
            "num_levels": len(np.unique(self._read("level"))),
            "num_pairs": int(self._results.sizes["pair"]),
            "intervention": config.get("intervention", {}),
        }

    def findings(self) -> dict[str, Any]:
        """Plain values: what each measure says in each world, and how large the changes were.

        A number that there is none of is None.
        """
        if self._findings is None:
            with self._lock:
                results = self._results.load()
            measures, worlds = self.describe()["measures"], self._texts("world")
            predicted = results["predicted"].sel(variant=TESTED)
            randoms = results["effect"].sel(variant=random_controls(results))
            known = (
                _by_labels(predicted, "prediction", "row_measure"),
                _by_labels(randoms.min("variant"), "world", "measure"),
                _by_labels(randoms.max("variant"), "world", "measure"),
            )
            rows = [
                self._finding(world, measure, *known) for measure in measures for world in worlds
            ]
            self._findings = {"findings": rows, "strengths": strength_lines(results)}
        return self._findings

    def rows(self, measure: str) -> dict[str, NDArray]:
        """By step: `effect`, `lower` and `upper` (world, variant, step), and `predicted`
        (prediction, step) of the tested intervention; NaN where nothing was predicted.

        Raises:
            UnknownItemError: the measure is none that each row has.
        """
        where = {"row_measure": self._position("row_measure", measure)}
        tested = self._texts("variant").index(TESTED)
        with self._lock:
            effect = self._results["row_effect"].isel(where).transpose(*ROW_DIMS).to_numpy()
            interval = self._results["row_effect_interval"].isel(where)
            lower, upper = interval.transpose("bound", *ROW_DIMS).to_numpy()
            predicted = self._results["predicted_row"].isel({**where, "variant": tested})
            by_prediction = predicted.transpose("prediction", "step").to_numpy()
        return {"effect": effect, "lower": lower, "upper": upper, "predicted": by_prediction}

    def _finding(
        self, world: str, measure: str, predicted: _Numbers, lowest: _Numbers, highest: _Numbers
    ) -> dict[str, Any]:
        finding = find(self._results, world, measure)
        numbers = {
            **asdict(finding),
            "predicted_by_readout": predicted.get((f"readout_{world}", measure), np.nan),
            "predicted_by_gradient": predicted.get((f"gradient_{world}", measure), np.nan),
            "lowest_control": lowest[world, measure],
            "highest_control": highest[world, measure],
        }
        plain = {name: _plain(value) for name, value in numbers.items()}
        words = {"meaning": meaning(measure), "verdict": finding.words}
        flags = {"is_seen": finding.is_seen, "is_beyond_controls": finding.is_beyond_controls}
        return {**plain, **words, **flags}


def _by_labels(numbers: xr.DataArray, *dims: str) -> _Numbers:
    """Numbers by the labels of two dims; looking them up in xarray takes a second."""
    return numbers.transpose(*dims).to_series().to_dict()


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
