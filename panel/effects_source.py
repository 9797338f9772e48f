"""Effects of an intervention as the page sees them: predicted, observed, and against controls."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.effect_names import TESTED, TWIN
from analysis.effect_verdict import find, main_measures, meaning, random_controls, strength_lines
from panel.result_source import ResultSource
from panel.rollout_source import UnknownItemError

ROW_DIMS = ("world", "variant", "step")


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

        A number that there is none of is None. Looking all of them up takes a second, once.
        """
        if self._findings is None:
            with self._lock:
                results = self._results.load()
            measures, worlds = self.describe()["measures"], self._texts("world")
            rows = [self._finding(world, measure) for measure in measures for world in worlds]
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

    def _finding(self, world: str, measure: str) -> dict[str, Any]:
        results = self._results
        finding = find(results, world, measure)
        controls = results["effect"].sel(
            world=world, measure=measure, variant=random_controls(results)
        )
        lowest, highest = float(controls.min()), float(controls.max())
        numbers = {
            **asdict(finding),
            "predicted_by_readout": self._predicted(f"readout_{world}", measure),
            "predicted_by_gradient": self._predicted(f"gradient_{world}", measure),
            "lowest_control": lowest,
            "highest_control": highest,
        }
        plain = {name: _plain(value) for name, value in numbers.items()}
        words = {"meaning": meaning(measure), "verdict": finding.words}
        flags = {"is_seen": finding.is_seen, "is_beyond_controls": finding.is_beyond_controls}
        return {**plain, **words, **flags}

    def _predicted(self, prediction: str, measure: str) -> float:
        try:
            where = {
                "prediction": self._position("prediction", prediction),
                "row_measure": self._position("row_measure", measure),
                "variant": self._position("variant", TESTED),
            }
        except UnknownItemError:
            return np.nan
        return float(self._read("predicted", **where))


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
