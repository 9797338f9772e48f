"""Curves over the horizon, with their intervals, as all fidelity figures draw them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr
from matplotlib.axes import Axes

from analysis.figure_style import OKABE_ITO
from generative.scores import RISING_SCORES


@dataclass(frozen=True)
class Line:
    """How one prediction is drawn."""

    prediction: str
    label: str
    colour: str
    style: str = "-"


LINES = (
    Line("mode", "simulator, most probable future", OKABE_ITO[0]),
    Line("mode_decoded_state", "the same, decoded initial agent state", OKABE_ITO[4]),
    Line("mean_of_samples", "simulator, mean of sampled futures", OKABE_ITO[2]),
    Line("single_sample", "simulator, one sampled future", OKABE_ITO[3]),
    Line("observed", "upper bound: has seen the true frames", OKABE_ITO[7], ":"),
    Line("shuffled_actions", "control: another window's actions", OKABE_ITO[5], "--"),
    Line("last_frame", "baseline: last frame repeated", OKABE_ITO[1], "-."),
    Line("mean_frame", "baseline: mean frame", "0.45", "-."),
    Line("other_episode", "baseline: another episode", "0.7", "-."),
)


SHORT_MEANINGS = {
    "mse": "squared error of pixels",
    "psnr": "signal-to-noise ratio (dB)",
    "ssim": "structural similarity",
    "policy_kl": "KL(true policy ‖ predicted), nats",
    "greedy_agreement": "same most probable action (share)",
    "value_error": "absolute error of the value",
    "hidden_cosine": "cosine of hidden states",
}
"""Titles for small panels, by score."""


def title_of(measure: str) -> str:
    """What a score is, and which way is better."""
    better = "higher" if measure in RISING_SCORES else "lower"
    return f"{SHORT_MEANINGS[measure]}\n{better} is better"


@dataclass(frozen=True, eq=False)
class Curve:
    """A figure over the horizon with its 95% interval."""

    mean: xr.DataArray
    """(horizon,)"""
    low: xr.DataArray
    """(horizon,)"""
    high: xr.DataArray
    """(horizon,)"""


def select_curve(results: xr.Dataset, name: str, chosen: Mapping[str, Any]) -> Curve:
    """The variable `name` and its interval where the other dims are as `chosen`."""
    interval = results[f"{name}_interval"].sel(**chosen)
    return Curve(
        results[name].sel(**chosen), interval.sel(bound="lower"), interval.sel(bound="upper")
    )


def draw_line(axis: Axes, curve: Curve, line: Line) -> None:
    """A line with its interval as a band."""
    horizon = curve.mean["horizon"].values
    axis.plot(
        horizon, curve.mean.values, line.style, color=line.colour, label=line.label, linewidth=1.4
    )
    axis.fill_between(
        horizon, curve.low.values, curve.high.values, color=line.colour, alpha=0.18, linewidth=0
    )


def leave_out_horizon_0(axis: Axes, scores: xr.DataArray) -> None:
    """Limit an axis to scores from horizon 1 on.

    At horizon 0 the last frame given is the truth itself, whose signal-to-noise ratio is far above
    all else.
    """
    predicted = scores.isel(horizon=slice(1, None))
    axis.set_ylim(float(predicted.min()) - 1, float(predicted.max()) + 2)


def open_axis(axis: Axes) -> None:
    """Leave out the frame's upper and right sides."""
    axis.spines[["top", "right"]].set_visible(False)
