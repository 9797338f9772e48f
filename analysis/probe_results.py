"""The result file of the probe analysis: labels, and a summary for people."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from analysis.partial_correlations import CorrelationTable
from analysis.probe_scores import Score
from analysis.probe_tables import ProbeTable, ReadingTable
from analysis.probe_targets import ProbeTargets

FALSE_DISCOVERY_RATE = 0.05
"""Share of false entries that is put up with among those that count as found."""
READ_SOURCES = ("real", "simulated")
PROBES = ("linear", "perceptron")
SIMULATOR_DIM = "simulator_representation"
BOUNDS = ("lower", "upper")
_R2 = "share of variance explained on levels not fitted on (R²; Brier skill of yes-or-no variables)"
_SHOWN_VARIABLES = 3


@dataclass(frozen=True, eq=False)
class FoundByProbes:
    """All tables of one analysis."""

    targets: ProbeTargets
    real: ProbeTable
    """Representations of real decisions."""
    correlations: CorrelationTable
    reading: ReadingTable | None
    """Probes of real decisions, read on simulated ones; None without simulated rollouts."""
    simulator: ProbeTable | None
    """Representations of simulated decisions; None likewise."""

    def metrics(self) -> dict[str, Any]:
        """Plain numbers for a report."""
        found = self.correlations.q_value < FALSE_DISCOVERY_RATE
        by_name = {
            name: round(float(np.nanmean(self.real.linear.mean[index])), 4)
            for index, name in enumerate(self.real.representations)
        }
        return {
            "variables": int(np.isfinite(self.real.linear.mean[0]).sum()),
            "levels": int(self.real.num_levels.max()),
            "mean_linear_score": by_name,
            "mean_shuffled_score": round(float(np.nanmean(self.real.shuffled)), 4),
            "component_variable_pairs_tested": int(np.isfinite(self.correlations.q_value).sum()),
            "component_variable_pairs_found": int(found.sum()),
        }

    def summary(self) -> str:
        """For every variable its scores, for every component what goes with it."""
        return "\n".join([*self._score_lines(), "", *self._component_lines()])

    def _score_lines(self) -> list[str]:
        table = self.real
        names = "".join(f"{name:>12s}" for name in table.representations)
        lines = [f"linear probes, R² on other levels{'':<4s}{names}{'shuffled':>12s}"]
        for index, variable in enumerate(self.targets.names):
            scores = [*table.linear.mean[:, index], table.shuffled[0, index]]
            if np.isfinite(scores[0]):
                lines.append(f"{variable:<37s}" + "".join(f"{score:12.2f}" for score in scores))
        return lines

    def _component_lines(self) -> list[str]:
        lines = ["component: variables by partial correlation (false-discovery rate 5%)"]
        partial = self.correlations.partial
        found = self.correlations.q_value < FALSE_DISCOVERY_RATE
        for component in range(len(partial)):
            strength = np.where(found[component], np.abs(partial[component]), 0.0)
            best = [v for v in np.argsort(-strength)[:_SHOWN_VARIABLES] if strength[v] > 0]
            told = ", ".join(f"{self.targets.names[v]} {partial[component, v]:+.2f}" for v in best)
            lines.append(f"{component:9d}: {told or 'none'}")
        return lines


def to_dataset(found: FoundByProbes) -> xr.Dataset:
    """Label all arrays."""
    variables = {
        "unit": ("variable", list(found.targets.units)),
        "is_binary": ("variable", found.targets.is_binary.astype(np.int8)),
        **_probe_variables(found.real, "representation", ""),
        **_correlation_variables(found.correlations),
    }
    coordinates = {
        "variable": list(found.targets.names),
        "representation": list(found.real.representations),
        "baseline": list(found.real.baselines),
        "component": np.arange(len(found.correlations.partial)),
        "probe": list(PROBES),
        "bound": list(BOUNDS),
    }
    if found.reading is not None and found.simulator is not None:
        variables |= _reading_variables(found.reading)
        variables |= _probe_variables(found.simulator, SIMULATOR_DIM, "simulator_")
        coordinates |= {
            "read_source": list(READ_SOURCES),
            "read_representation": list(found.reading.representations),
            "step": np.arange(found.reading.num_rows.shape[0]),
            SIMULATOR_DIM: list(found.simulator.representations),
            "simulator_baseline": list(found.simulator.baselines),
        }
    return xr.Dataset(variables, coordinates, {"false_discovery_rate": FALSE_DISCOVERY_RATE})


def _probe_variables(table: ProbeTable, dim: str, prefix: str) -> dict[str, Any]:
    both = Score(
        np.stack([table.linear.mean, table.perceptron.mean]),
        np.stack([table.linear.interval, table.perceptron.interval], axis=1),
    )
    by_pair = (dim, f"{prefix}baseline", "variable")
    return {
        **_scores(f"{prefix}score", ("probe", dim, "variable"), both, _R2),
        **_scores(f"{prefix}difference", by_pair, table.difference, "linear R² minus baseline's"),
        **_scores(f"{prefix}mean_score", ("variable",), table.mean, f"{_R2}, of the mean"),
        f"{prefix}shuffled_score": (
            (dim, "variable"),
            table.shuffled,
            {"long_name": "R² of ridge regression on values of other levels, mean of shuffles"},
        ),
        f"{prefix}shuffled_maximum": (
            (dim, "variable"),
            table.shuffled_maximum,
            {"long_name": "the same, highest of the shuffles"},
        ),
        f"{prefix}num_rows": ("variable", table.num_rows, {"long_name": "rows it is known in"}),
        f"{prefix}num_levels": ("variable", table.num_levels, {"long_name": "levels it is in"}),
    }


def _correlation_variables(table: CorrelationTable) -> dict[str, Any]:
    dims = ("component", "variable")
    given = "given the step in the episode"
    partial = Score(table.partial, table.interval)
    return {
        "correlation": (dims, table.plain, {"long_name": "correlation"}),
        **_scores("partial_correlation", dims, partial, f"correlation {given}"),
        "p_value": (dims, table.p_value, {"long_name": f"p of no correlation {given}"}),
        "q_value": (
            dims,
            table.q_value,
            {"long_name": "false-discovery rate (Benjamini-Hochberg)"},
        ),
    }


def _reading_variables(table: ReadingTable) -> dict[str, Any]:
    dims = ("read_source", "read_representation", "step", "variable")
    what = "R² of linear probes of real decisions, read on other levels"
    return {
        **_scores("reading_score", dims, table.score, what),
        "reading_num_rows": (("step", "variable"), table.num_rows),
    }


def _scores(name: str, dims: tuple[str, ...], score: Score, what: str) -> dict[str, Any]:
    interval = f"95% interval of: {what}; bootstrap over levels"
    return {
        name: (dims, score.mean, {"long_name": what}),
        f"{name}_interval": (("bound", *dims), score.interval, {"long_name": interval}),
    }
