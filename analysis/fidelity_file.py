"""What simulator_fidelity.nc holds: its labels, dims and variables."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from generative.calibration import RELIABILITY_EDGES, Calibration
from generative.component_fit import ComponentFit
from generative.event_forecasts import EVENTS, FORECASTS
from generative.fidelity import METHODS, REFERENCES, Fidelity
from generative.scores import SCORES

BOUNDS = ("lower", "upper")


def to_dataset(fidelity: Fidelity) -> xr.Dataset:
    """Label the figures."""
    windows = fidelity.windows
    scores = xr.Dataset(
        {
            **with_interval(
                "score",
                ("measure", "prediction", "horizon"),
                fidelity.mean,
                fidelity.interval,
                "mean over windows",
            ),
            **with_interval(
                "difference",
                ("measure", "prediction", "baseline", "horizon"),
                fidelity.difference,
                fidelity.difference_interval,
                "mean over windows, minus the baseline's on the same rows",
            ),
            "window_score": (
                ("measure", "prediction", "window", "horizon"),
                windows.scores,
                {"long_name": "score of one window; NaN past the end of its episode"},
            ),
            "level": ("window", windows.level, {"long_name": "level seed"}),
            "episode_id": ("window", windows.episode_id, {"long_name": "episode"}),
            "start_row": ("window", windows.start_row, {"long_name": "first row of the window"}),
            "measure_meaning": ("measure", list(SCORES.values())),
            "prediction_meaning": ("prediction", list(METHODS.values())),
        },
        coords={
            "measure": list(SCORES),
            "prediction": list(METHODS),
            "baseline": list(REFERENCES),
            "horizon": np.arange(fidelity.horizon + 1),
            "bound": list(BOUNDS),
        },
    )
    if fidelity.components is not None:
        scores = scores.merge(_components(fidelity.components))
    if fidelity.calibration is not None:
        scores = scores.merge(_calibration(fidelity.calibration))
    return scores


def _components(fit: ComponentFit) -> xr.Dataset:
    dims = ("prediction", "horizon")
    return xr.Dataset(
        {
            **with_interval(
                "component_r2",
                (*dims, "component"),
                fit.r2,
                fit.r2_interval,
                "R² of a component of the agent's hidden state",
            ),
            **with_interval(
                "median_component_r2",
                dims,
                fit.median_r2,
                fit.median_r2_interval,
                "R² of the agent's hidden state, median over components",
            ),
        },
        coords={"component": np.arange(fit.r2.shape[-1])},
    )


def _calibration(calibration: Calibration) -> xr.Dataset:
    dims, reliability = ("event", "forecast", "span"), calibration.reliability
    meanings = {
        "auroc": "area under the receiver operating characteristic",
        "brier": "Brier score",
        "brier_skill": "1 - Brier score / Brier score of the base rate",
    }
    variables = {}
    for name, meaning in meanings.items():
        interval = getattr(calibration, f"{name}_interval")
        variables |= with_interval(name, dims, getattr(calibration, name), interval, meaning)
    return xr.Dataset(
        {
            **variables,
            "num_events": (
                ("event", "span"),
                calibration.num_events,
                {"long_name": "rows at which the event happens"},
            ),
            "num_rows": ("span", calibration.num_rows, {"long_name": "rows that are judged"}),
            **with_interval(
                "event_frequency",
                ("event", "forecast", "bin"),
                reliability.frequency,
                reliability.frequency_interval,
                "share of the rows of a bin at which the event happens",
            ),
            "mean_forecast": (
                ("event", "forecast", "bin"),
                reliability.mean_forecast,
                {"long_name": "mean predicted probability in a bin"},
            ),
            "bin_count": (
                ("event", "forecast", "bin"),
                reliability.count,
                {"long_name": "rows in a bin"},
            ),
            "calibration_level": (
                "calibration_window",
                calibration.forecasts.level,
                {"long_name": "level seed of a window whose events are judged"},
            ),
            "event_meaning": ("event", list(EVENTS.values())),
            "forecast_meaning": ("forecast", list(FORECASTS.values())),
        },
        coords={
            "event": list(EVENTS),
            "forecast": list(FORECASTS),
            "span": calibration.spans,
            "bin": list(RELIABILITY_EDGES[:-1]),
        },
    )


def with_interval(
    name: str,
    dims: tuple[str, ...],
    values: NDArray[np.float64],
    interval: NDArray[np.float64],
    meaning: str,
) -> dict[str, tuple]:
    """Variables of a figure and of its interval, (2, ...) with the dim `bound` first."""
    bounds = {"long_name": f"95% interval of the {meaning}, bootstrap over levels"}
    return {
        name: (dims, values, {"long_name": meaning}),
        f"{name}_interval": (("bound", *dims), interval, bounds),
    }
