"""Whether events are predicted as often as they happen: AUROC, Brier score, reliability."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generative.event_forecasts import EVENTS, FORECASTS, EventForecasts
from generative.fidelity_windows import FidelityConfig
from generative.level_bootstrap import LevelBootstrap, percentile_interval

RELIABILITY_EDGES = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
"""Bins of probabilities. Events are rare, so the bins are narrow near zero."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of predicted events with 95% intervals from resampling levels.

    Spans are horizon 1, horizon 2, ..., and last all of these together. Where a span holds no
    event, or nothing else, there is no AUROC: NaN.
    """

    forecasts: EventForecasts
    auroc: NDArray[np.float64]
    """(num_events, num_forecasts, num_spans) probability that a row at which it happens is given
    the higher forecast than one at which it does not; ties count half. 0.5 is chance."""
    auroc_interval: NDArray[np.float64]
    """(2, num_events, num_forecasts, num_spans)"""
    brier: NDArray[np.float64]
    """(num_events, num_forecasts, num_spans) mean squared difference of probability and event
    (Brier, 1950); NaN for what is no probability."""
    brier_interval: NDArray[np.float64]
    """(2, num_events, num_forecasts, num_spans)"""
    brier_skill: NDArray[np.float64]
    """(num_events, num_forecasts, num_spans) 1 − Brier score / that of the base rate; 0 is no
    better than knowing how often it happens."""
    brier_skill_interval: NDArray[np.float64]
    """(2, num_events, num_forecasts, num_spans)"""
    num_events: NDArray[np.int64]
    """(num_events, num_spans) rows at which each happens."""
    num_rows: NDArray[np.int64]
    """(num_spans,)"""
    reliability: "Reliability"

    @property
    def spans(self) -> list[str]:
        """Names of the spans: their horizons."""
        last = len(self.num_rows) - 1
        return [*(str(horizon) for horizon in range(1, last + 1)), f"1 to {last}"]

    def summary(self) -> dict[str, Any]:
        """Plain numbers for a report, over all horizons."""
        return {
            name: {
                "events": int(self.num_events[index, -1]),
                "rows": int(self.num_rows[-1]),
                **{
                    f"{measure}_{forecast}": _rounded(getattr(self, measure)[index, column, -1])
                    for measure in ("auroc", "brier")
                    for column, forecast in enumerate(FORECASTS)
                },
            }
            for index, name in enumerate(EVENTS)
        }

    def table(self) -> list[str]:
        """Scores over all horizons, one line per forecast."""
        lines = []
        for index, (name, meaning) in enumerate(EVENTS.items()):
            counts = f"{self.num_events[index, -1]} times in {self.num_rows[-1]} rows"
            lines += [f"{name}: {meaning} ({counts}, horizons {self.spans[-1]})"]
            lines += [f"{'':<20s}{'AUROC':<26s}Brier"]
            for column, forecast in enumerate(FORECASTS):
                cells = [
                    _with_interval(values[index, column, -1], bounds[:, index, column, -1])
                    for values, bounds in (
                        (self.auroc, self.auroc_interval),
                        (self.brier, self.brier_interval),
                    )
                ]
                lines.append(f"{forecast:<20s}{cells[0]:<26s}{cells[1]}")
        return lines


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often events happen that are given a certain probability, over all horizons."""

    mean_forecast: NDArray[np.float64]
    """(num_events, num_forecasts, num_bins) NaN for an empty bin."""
    frequency: NDArray[np.float64]
    """The same shape."""
    frequency_interval: NDArray[np.float64]
    """(2, num_events, num_forecasts, num_bins)"""
    count: NDArray[np.int64]
    """(num_events, num_forecasts, num_bins) rows."""


def calibrate(forecasts: EventForecasts, config: FidelityConfig) -> Calibration:
    """Score forecasts at each horizon from 1 on, and over all of these."""
    bootstrap = LevelBootstrap(forecasts.level, config.num_resamples, config.seed)
    last = forecasts.happened.shape[-1] - 1
    spans = [*(slice(horizon, horizon + 1) for horizon in range(1, last + 1)), slice(1, None)]
    orders = [_aurocs(forecasts, span, bootstrap) for span in spans]
    briers = [_briers(forecasts, span, bootstrap) for span in spans]
    skills = [_Resampled.skill(brier) for brier in briers]
    is_row = np.isfinite(forecasts.forecast[0, 0])
    return Calibration(
        forecasts=forecasts,
        auroc=_values(orders),
        auroc_interval=_intervals(orders),
        brier=_values(briers),
        brier_interval=_intervals(briers),
        brier_skill=_values(skills),
        brier_skill_interval=_intervals(skills),
        num_events=np.stack(
            [(forecasts.happened & is_row)[..., span].sum((1, 2)) for span in spans], axis=-1
        ),
        num_rows=np.array([is_row[:, span].sum() for span in spans]),
        reliability=measure_reliability(forecasts, bootstrap),
    )


@dataclass(frozen=True, eq=False)
class _Resampled:
    """A score of every event and forecast, and what resamples make of it."""

    value: NDArray[np.float64]
    """(num_events, num_forecasts)"""
    resampled: NDArray[np.float64]
    """(R, num_events, num_forecasts)"""

    @classmethod
    def skill(cls, brier: "_Resampled") -> "_Resampled":
        """Relative to the base rate."""
        base = list(FORECASTS).index("base_rate")
        with np.errstate(invalid="ignore", divide="ignore"):
            parts = [
                np.where(score[..., base, None] > 0, 1 - score / score[..., base, None], np.nan)
                for score in (brier.value, brier.resampled)
            ]
        return cls(*parts)


def _values(spans: Sequence[_Resampled]) -> NDArray[np.float64]:
    return np.stack([span.value for span in spans], axis=-1)


def _intervals(spans: Sequence[_Resampled]) -> NDArray[np.float64]:
    return np.stack([percentile_interval(span.resampled) for span in spans], axis=-1)


def _aurocs(forecasts: EventForecasts, span: slice, bootstrap: LevelBootstrap) -> _Resampled:
    num_resamples, shape = len(bootstrap.weights), forecasts.forecast.shape[:2]
    value, resampled = np.full(shape, np.nan), np.full((num_resamples, *shape), np.nan)
    for event, name in np.ndindex(*shape):
        forecast = forecasts.forecast[event, name, :, span]
        is_row = np.isfinite(forecast)
        group = np.broadcast_to(bootstrap.group[:, None], forecast.shape)[is_row]
        happened = forecasts.happened[event][:, span][is_row]
        pairs = order_pairs(forecast[is_row], happened, group, bootstrap.num_levels)
        value[event, name] = pairs.auroc(np.ones((1, bootstrap.num_levels)))[0]
        resampled[:, event, name] = pairs.auroc(bootstrap.weights)
    return _Resampled(value, resampled)


@dataclass(frozen=True, eq=False)
class OrderedPairs:
    """Pairs of a row at which an event happens and one at which it does not, counted by level."""

    levels: NDArray[np.int64]
    """(P,) levels at which it happens anywhere."""
    in_order: NDArray[np.float64]
    """(P, L) pairs of the first row from one level and the second from another in which the first
    has the higher forecast; ties count half."""
    num_happened: NDArray[np.float64]
    """(P,) rows"""
    num_not: NDArray[np.float64]
    """(L,) rows"""

    def auroc(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R, L) how often each level is drawn → (R,) share of pairs in order."""
        of_first = weights[:, self.levels]
        in_order = ((of_first @ self.in_order) * weights).sum(axis=1)
        num_pairs = (of_first @ self.num_happened) * (weights @ self.num_not)
        with np.errstate(invalid="ignore"):
            return np.where(num_pairs > 0, in_order / num_pairs, np.nan)


def order_pairs(
    forecast: NDArray[np.float64],
    happened: NDArray[np.bool_],
    group: NDArray[np.int64],
    num_levels: int,
) -> OrderedPairs:
    """Compare rows at which an event happens with those at which it does not.

    The area under the receiver operating characteristic is the share of pairs in order (Hanley and
    McNeil, 1982). Counted by level, a resample of levels costs two small matrix products.

    Args:
        forecast: (N,)
        happened: (N,)
        group: (N,) index of each row's level.
        num_levels: L.
    """
    levels, first = np.unique(group[happened], return_inverse=True)
    in_order = np.zeros((len(levels), num_levels))
    order = np.argsort(forecast[~happened])
    sorted_not, group_not = forecast[~happened][order], group[~happened][order]
    for index, value in zip(first, forecast[happened], strict=True):
        below, up_to = (
            np.searchsorted(sorted_not, value),
            np.searchsorted(sorted_not, value, "right"),
        )
        in_order[index] += np.bincount(group_not[:below], minlength=num_levels)
        in_order[index] += np.bincount(group_not[below:up_to], minlength=num_levels) / 2
    return OrderedPairs(
        levels,
        in_order,
        np.bincount(first, minlength=len(levels)).astype(np.float64),
        np.bincount(group_not, minlength=num_levels).astype(np.float64),
    )


def _probabilities(forecasts: EventForecasts) -> NDArray[np.float64]:
    """(num_events, num_forecasts, W, horizon + 1); NaN for what is no probability."""
    clipped = np.clip(forecasts.forecast, 0.0, 1.0)
    return np.where(forecasts.is_probability[:, None, None, None], clipped, np.nan)


def _briers(forecasts: EventForecasts, span: slice, bootstrap: LevelBootstrap) -> _Resampled:
    error = np.square(_probabilities(forecasts) - forecasts.happened[:, None])[..., span]
    by_window = np.moveaxis(error, 2, 0)
    sums = bootstrap.sum_by_level(np.nan_to_num(by_window).sum(axis=-1))
    counts = bootstrap.sum_by_level(np.isfinite(by_window).sum(axis=-1))
    with np.errstate(invalid="ignore"):
        return _Resampled(
            sums.sum(axis=0) / counts.sum(axis=0),
            bootstrap.resample(sums) / bootstrap.resample(counts),
        )


def measure_reliability(forecasts: EventForecasts, bootstrap: LevelBootstrap) -> Reliability:
    """Frequencies of events by bins of their probability, over all horizons from 1 on."""
    probability = np.moveaxis(_probabilities(forecasts)[..., 1:], 2, 0)
    happened = np.moveaxis(forecasts.happened[:, None, :, 1:], 2, 0)
    parts = []
    for is_in_bin in _bins(probability):
        rows = [is_in_bin, is_in_bin * np.nan_to_num(probability), is_in_bin & happened]
        parts.append(np.stack([row.sum(axis=-1) for row in rows]))
    # (3, W, num_events, num_forecasts, num_bins)
    counts, forecast, events = (bootstrap.sum_by_level(x) for x in np.stack(parts, axis=-1))
    with np.errstate(invalid="ignore"):
        return Reliability(
            mean_forecast=forecast.sum(axis=0) / counts.sum(axis=0),
            frequency=events.sum(axis=0) / counts.sum(axis=0),
            frequency_interval=percentile_interval(
                bootstrap.resample(events) / bootstrap.resample(counts)
            ),
            count=counts.sum(axis=0).astype(np.int64),
        )


def _bins(probability: NDArray[np.float64]) -> Iterator[NDArray[np.bool_]]:
    """For each bin, which probabilities it holds; the last one includes its upper edge."""
    upper = (*RELIABILITY_EDGES[1:-1], np.inf)
    for low, high in zip(RELIABILITY_EDGES[:-1], upper, strict=True):
        yield (probability >= low) & (probability < high)


def _rounded(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None


def _with_interval(value: float, bounds: NDArray[np.float64]) -> str:
    if not np.isfinite(value):
        return "no probability or event"
    return f"{value:.4f} ({bounds[0]:.4f}-{bounds[1]:.4f})"
