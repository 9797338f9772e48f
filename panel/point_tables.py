"""Analyses as tables of points: one row per step or sample, whatever was laid out.

A table has `source` (names, or codes with `flag_meanings`), `episode_id` and `step` of each row,
variables of dims (row,), and coordinates of dims (row, component).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.results import (
    BEHAVIOUR_NAME,
    BOTTLENECK_ANALYSIS_NAME,
    ENV_H_ANALYSIS_NAME,
    HIDDEN_ANALYSIS_NAME,
    JACOBIAN_NAME,
    SML_ANALYSIS_NAME,
    flag_attributes,
)

SIMULATED = "simulated"


@dataclass(frozen=True)
class PointKind:
    """One kind of analysis."""

    title: str
    """What its points are, in words."""
    tabulate: Callable[[xr.Dataset], xr.Dataset]
    """From the content of the file to the table."""


def hidden_state_points(results: xr.Dataset) -> xr.Dataset:
    """Analyses of hidden states are such tables already."""
    return results


def vector_points(results: xr.Dataset) -> xr.Dataset:
    """Environment states, latents or states of the whole loop; a latent is drawn at step 0."""
    table = results.rename({"sample_id": "episode_id"})
    names = tuple(str(results.attrs["sources"]).split())
    source = table["source"].assign_attrs(flag_attributes(names, "where the row is from"))
    step = table.get("step", xr.zeros_like(table["episode_id"]))
    return table.assign(source=source, step=step)


def behaviour_points(results: xr.Dataset) -> xr.Dataset:
    """The steps that have a place in the layout, each with the behaviour of its sample."""
    cluster = results["cluster"].to_numpy()
    places = results["embedding"].to_numpy() if "embedding" in results else None
    is_shown = cluster >= 0 if places is None else np.isfinite(places).all(axis=-1)
    sample, step = np.nonzero(is_shown)
    columns = {
        "episode_id": results["sample"].to_numpy()[sample],
        "step": step.astype(np.int32),
        "cluster": cluster[sample, step],
        "behaviour": results["sample_cluster"].to_numpy()[sample],
        "purity": results["purity"].to_numpy()[sample],
        "action": results["action"].to_numpy()[sample, step],
    }
    return _table(columns, None if places is None else places[sample, step])


def jacobian_points(results: xr.Dataset) -> xr.Dataset:
    """One point per sample, at the step that its clustered Jacobian begins at."""
    episode_id = results["sample_id"].to_numpy()
    step = int(results.attrs["grad_timestep"])
    columns = {
        "episode_id": episode_id,
        # A sample that ends before is shown at its last step.
        "step": np.minimum(step, np.maximum(results["length"].to_numpy() - 1, 0)),
        "cluster": results["cluster"].to_numpy(),
    }
    return _table(columns, results["embedding"].to_numpy() if "embedding" in results else None)


def _table(columns: dict[str, NDArray], places: NDArray | None) -> xr.Dataset:
    num_rows = len(columns["episode_id"])
    variables = {name: ("row", values) for name, values in columns.items()}
    table = xr.Dataset(variables).assign(source=("row", np.full(num_rows, SIMULATED)))
    return table if places is None else table.assign(embedding=(("row", "axis"), places))


POINT_KINDS: dict[str, PointKind] = {
    HIDDEN_ANALYSIS_NAME: PointKind("hidden states", hidden_state_points),
    ENV_H_ANALYSIS_NAME: PointKind("environment states", vector_points),
    BOTTLENECK_ANALYSIS_NAME: PointKind("latents", vector_points),
    SML_ANALYSIS_NAME: PointKind("agent, environment and latent", vector_points),
    BEHAVIOUR_NAME: PointKind("agent and environment", behaviour_points),
    JACOBIAN_NAME: PointKind("Jacobians", jacobian_points),
}
"""By the name of the result file, in the order in which they are offered."""
