"""Cross-correlations and cross-causations as the page sees them: all lags of one matrix."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from panel.result_source import ResultSource
from panel.rollout_source import UnknownItemError

QUANTITIES = ("correlation", "regression", "causation", "push")
"""Matrices that a file may hold, [source at t, target at t + lag]."""
BY_GRADIENT = ("causation", "push")
"""Those that exist with and without what passes through the environment."""
MATRIX_DIMS = ("lag", "source", "target")


class CrossSource(ResultSource):
    """Holds one `xcorr_and_xcaus.nc`."""

    REQUIRED = ("correlation", "group", "lag", "null", "num_episodes", "component_order")

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        has_causation = "causation" in self._results
        settings = self.provenance.get("config", {}).get("settings", {})
        return {
            "hash": self.content_hash,
            "dataset_hash": self.hash_of_input.get("dataset"),
            "projection_hash": self.hash_of_input.get("projection_data"),
            "groups": self._texts("group"),
            "lags": [int(lag) for lag in self._read("lag")],
            "nulls": self._texts("null"),
            "quantities": [name for name in QUANTITIES if name in self._results],
            "environment_gradients": self._texts("environment_gradient") if has_causation else [],
            "num_components": int(self._results.sizes["source"]),
            "num_episodes": [int(count) for count in self._read("num_episodes")],
            "num_jacobians": [int(count) for count in self._read("num_jacobians")]
            if has_causation
            else [],
            "clip": float(self._results.attrs.get("clip", 0.0)),
            "heeds_ends": bool(settings.get("heed_ends", True)),
        }

    def matrices(
        self, quantity: str, group: str, environment_gradient: str | None
    ) -> dict[str, NDArray]:
        """`value` (L, D, D) of one group, and, where the file has them, `lower` and `upper` of the
        95% interval and `q`, (N, L, D, D): by null, of a causation or push of its one test.

        Also `order` (D,), in which related components are neighbours, and `deviation` (D,), the
        standard deviation of each component, which is the unit of its axis.

        Args:
            quantity: one of `QUANTITIES`.
            group: name of the group.
            environment_gradient: `passed` or `cut`, for those of `BY_GRADIENT`.

        Raises:
            UnknownItemError: the file has no such matrix.
        """
        if quantity not in QUANTITIES or quantity not in self._results:
            raise UnknownItemError(f"the file has no {quantity[:40]}")
        where = {"group": self._position("group", group)}
        if quantity in BY_GRADIENT:
            label = environment_gradient or ""
            where["environment_gradient"] = self._position("environment_gradient", label)
        found = {
            "value": self._at(quantity, where, ()),
            "order": self._read("component_order", group=where["group"]),
            "deviation": self._read("component_deviation"),
        }
        if f"{quantity}_interval" in self._results:
            interval = self._at(f"{quantity}_interval", where, ("bound",))
            found["lower"], found["upper"] = interval
        if f"{quantity}_q" in self._results:
            is_tested_once = quantity in BY_GRADIENT
            q = self._at(f"{quantity}_q", where, () if is_tested_once else ("null",))
            found["q"] = q[None] if is_tested_once else q
        return found

    def _at(self, name: str, where: dict[str, int], leading: tuple[str, ...]) -> NDArray:
        with self._lock:
            chosen = self._results[name].isel(where).transpose(*leading, *MATRIX_DIMS)
            return np.asarray(chosen.to_numpy(), np.float32)
