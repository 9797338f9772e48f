"""Agreement of gradients with dynamics, and the ranked statements, as the page sees them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.causal_statements import EVIDENCE
from panel.result_source import ResultSource

AGREEMENT_DIMS = ("dynamics", "environment_gradient", "measure", "lag")
PREFIX = "statement_"
STATEMENT_COLUMNS = (
    *("rank", "score", "lag", "source", "target", "r", "r_lower", "r_upper", "q_pairing"),
    *("q_time_shift", "q_labels", "gradient_mean", "gradient_lower", "gradient_upper"),
    *("q_gradient", "positive_share", "gradient_without_environment", "push_mean", "q_push"),
    *("num_episodes", "num_jacobians"),
    *(f"evidence_{name}" for name in EVIDENCE),
)
"""Columns of numbers that a file may hold; the words of `behaviour` come as codes."""


class ConsistencySource(ResultSource):
    """Holds one `consistency.nc`."""

    REQUIRED = ("agreement", "agreement_null", "agreement_q", "group", "lag", "measure")

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        return {
            "hash": self.content_hash,
            "dataset_hash": self.hash_of_input.get("dataset"),
            "projection_hash": self.hash_of_input.get("projection_data"),
            "groups": self._texts("group"),
            "lags": [int(lag) for lag in self._read("lag")],
            "measures": self._texts("measure"),
            "measure_meanings": self._texts("measure_meaning"),
            "dynamics": self._texts("dynamics"),
            "environment_gradients": self._texts("environment_gradient"),
            "nulls": self._texts("null"),
            "null_meanings": self._texts("null_meaning"),
            "evidence": list(EVIDENCE),
            "num_statements": int(self._results.sizes.get("statement", 0)),
        }

    def agreement(self, group: str) -> dict[str, NDArray]:
        """Of one group: `observed` (dynamics, environment gradient, measure, lag), and of each null
        its mean and the adjusted p-value, `expected` and `q` (null, ...).

        Raises:
            UnknownItemError: no such group.
        """
        where = self._position("group", group)
        with self._lock:
            at = self._results.isel(group=where)
            return {
                "observed": at["agreement"].transpose(*AGREEMENT_DIMS).to_numpy(),
                "expected": at["agreement_null"].transpose("null", *AGREEMENT_DIMS).to_numpy(),
                "q": at["agreement_q"].transpose("null", *AGREEMENT_DIMS).to_numpy(),
            }

    def statements(self) -> dict[str, NDArray]:
        """(N,) columns of the table, best supported first; `behaviour` as positions in the groups.

        Empty where there is no statement.
        """
        if "statement" not in self._results.sizes:
            return {}
        groups = self._texts("group")
        behaviours = [groups.index(name) for name in self._texts(f"{PREFIX}behaviour")]
        columns = {
            name: self._read(f"{PREFIX}{name}")
            for name in STATEMENT_COLUMNS
            if f"{PREFIX}{name}" in self._results
        }
        return {"behaviour": np.array(behaviours, np.int32), **columns}
