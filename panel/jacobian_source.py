"""Jacobians of samples as the page sees them: points, and the samples behind one entry."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.jacobian_means import lag_means
from panel.analysis_source import AnalysisSource
from panel.rollout_source import UnknownItemError

MAX_SAMPLES = 512
"""Samples whose entries are read for one answer; each takes a chunk of some hundred kilobytes."""


class JacobianSource(AnalysisSource):
    """Holds one `jacobians.nc`, which may be larger than memory."""

    REQUIRED = ("sample_id", "jacobian", "length", "cluster", "environment_gradient")

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        sizes = self._results.sizes
        return {
            **super().describe(),
            "dataset_hash": self.hash_of_input.get("generated_dataset"),
            "environment_gradients": self._texts("environment_gradient"),
            "num_components": int(sizes["source"]),
            "num_sim_steps": int(sizes["source_step"]),
            "num_samples": int(sizes["sample"]),
            "num_samples_read": min(int(sizes["sample"]), MAX_SAMPLES),
        }

    def effects(
        self, source: int, target: int, lag: int, environment_gradient: str
    ) -> dict[str, NDArray]:
        """(N,) `sample_id`, and each sample's `effect` of a source component at t on a target
        component at t + lag, its mean over t, in units of the components; NaN without such a t.

        Only the first `MAX_SAMPLES` samples are looked at.

        Raises:
            UnknownItemError: no such component, lag or environment gradient.
        """
        sizes = self._results.sizes
        if not (0 <= source < sizes["source"] and 0 <= target < sizes["target"]):
            raise UnknownItemError(f"components are numbered 0 to {sizes['source'] - 1}")
        if not 0 <= lag < sizes["source_step"]:
            raise UnknownItemError(f"lags go from 0 to {sizes['source_step'] - 1}")
        variant = self._position("environment_gradient", environment_gradient)
        first = slice(MAX_SAMPLES)
        entries = self._read(
            "jacobian", sample=first, environment_gradient=variant, source=source, target=target
        )
        length = self._read("length", sample=first)
        means = lag_means(entries[:, :, None, :, None], length, [lag])
        return {
            "sample_id": self._read("sample_id", sample=first),
            "effect": np.asarray(means[:, 0, 0, 0], np.float32),
        }
