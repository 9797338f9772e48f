"""What components go with, by the probe analysis, as the page sees it."""

from typing import Any

from numpy.typing import NDArray

from panel.result_source import ResultSource


class ProbeSource(ResultSource):
    """Holds one `probe_analysis.nc`."""

    REQUIRED = (
        *("component", "variable", "partial_correlation", "partial_correlation_interval"),
        *("q_value", "score", "score_interval", "representation", "probe"),
    )

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        return {
            "hash": self.content_hash,
            "projection_hash": self.hash_of_input.get("projection"),
            "variables": self._texts("variable"),
            "representations": self._texts("representation"),
            "num_components": int(self._results.sizes["component"]),
            "false_discovery_rate": float(self._results.attrs["false_discovery_rate"]),
        }

    def table(self) -> dict[str, NDArray]:
        """Of components by variables, (K, V): partial `correlation` given the step, `lower` and
        `upper` of its 95% interval, false-discovery rate `q`. Of representations by variables,
        (R, V): `score` (R²) of linear probes on levels that they were not fitted on."""
        lower, upper = self._read("partial_correlation_interval")
        linear = self._position("probe", "linear")
        return {
            "correlation": self._read("partial_correlation"),
            "lower": lower,
            "upper": upper,
            "q": self._read("q_value"),
            "score": self._read("score", probe=linear),
        }
