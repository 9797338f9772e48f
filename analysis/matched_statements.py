"""Supported statements beside others whose effect is predicted to be as large.

Supported statements tend to be those of large predicted effects, and large effects come true more
often. So each supported statement is compared with all others whose predicted size differs by less
than a factor (a caliper on log |prediction|), which share its weight. Matching within a radius
changes smoothly as statements are drawn anew; the bootstrap fails for the single nearest neighbour
(Abadie and Imbens, "On the failure of the bootstrap for matching estimators", 2008).

What is resampled are pushed components, with all statements that they are the source of: these were
tested by the same recordings.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.fidelity_file import BOUNDS
from analysis.statement_outcomes import SignedEffects, signed_effects, statement_group
from experiment.resampling import resample_weights
from generative.level_bootstrap import percentile_interval

RATES = {
    "seen": "effects seen, with the predicted sign",
    "opposite": "effects seen, with the opposite sign",
    "sign": "effects with the predicted sign, seen or not",
    "realised": "observed effect along the prediction, over the predicted size",
}
"""What is compared, as shares of the statements or, the last, of the summed predicted sizes."""
COMPARED = ("supported", "matched", "difference")
MIN_SOURCES = 5
"""Fewer pushed components with a supported statement that has a match tell no interval."""


@dataclass(frozen=True)
class MatchSettings:
    """Which statements are compared."""

    match_ratio: float = 1.2
    """Others match a supported statement if their predicted sizes differ by less than this factor.
    """


@dataclass(frozen=True, eq=False)
class Fraction:
    """A rate is Σ top / Σ bottom over statements."""

    top: NDArray[np.float64]
    """(N,)"""
    bottom: NDArray[np.float64]
    """(N,)"""


@dataclass(frozen=True, eq=False)
class Matching:
    """Supported statements and their matches among the C others."""

    supported: NDArray[np.int64]
    """(S,) those with a match, as positions among all statements."""
    others: NDArray[np.int64]
    """(C,) likewise."""
    is_match: NDArray[np.bool_]
    """(S, C)"""
    num_unmatched: int
    """Supported statements without any match, which are left out."""

    def rates(self, fraction: Fraction, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """(2, R) rate of the supported, and of their matches.

        Args:
            fraction: over all N statements.
            weight: (R, N) how often each statement counts.
        """
        top, bottom = fraction.top, fraction.bottom
        of_others = weight[:, self.others]
        matches = self.is_match.T.astype(np.float64)
        num_matches = of_others @ matches
        counts = weight[:, self.supported] * (num_matches > 0)
        shared = counts / np.where(num_matches > 0, num_matches, 1.0)

        def matched(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return (shared * ((of_others * values[self.others]) @ matches)).sum(axis=1)

        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack(
                [
                    counts @ top[self.supported] / (counts @ bottom[self.supported]),
                    matched(top) / matched(bottom),
                ]
            )


def find_matches(
    size: NDArray[np.float64],
    is_supported: NDArray[np.bool_],
    is_other: NDArray[np.bool_],
    ratio: float,
) -> Matching:
    """Pair supported statements with others of nearly the same predicted size; (N,) each."""
    supported, others = np.flatnonzero(is_supported & (size > 0)), np.flatnonzero(is_other)
    with np.errstate(divide="ignore"):
        log_size = np.log(size)
    is_match = np.abs(log_size[supported][:, None] - log_size[others]) < np.log(ratio)
    has_match = is_match.any(axis=1)
    return Matching(
        supported[has_match],
        others,
        is_match[has_match],
        int(is_supported.sum() - has_match.sum()),
    )


def match_statements(
    dataset: xr.Dataset, settings: MatchSettings, num_resamples: int, seed: int
) -> xr.Dataset:
    """Rates of coming true of supported statements, of their matches, and the difference.

    Args:
        dataset: effects, predictions and scores, as in statement_effects.nc.
        settings: which statements match.
        num_resamples: of the pushed components.
        seed: of the resamples.
    """
    gradient = dataset["gradient"].transpose("source", "lag", "target").values
    size = np.abs(gradient).ravel()
    is_supported, is_other = (
        statement_group(dataset, group).ravel() for group in ("supported", "others")
    )
    matching = find_matches(size, is_supported, is_other, settings.match_ratio)
    source = np.arange(len(size)) // gradient[0].size
    num_sources = len(np.unique(source[matching.supported]))
    once = np.ones((1, len(size)))
    weights = resample_weights(len(gradient), num_resamples, seed)[:, source]
    worlds = dataset["world"].values.tolist()
    rate = np.full((len(worlds), len(COMPARED), len(RATES)), np.nan)
    interval = np.full((2, *rate.shape), np.nan)
    for w, world in enumerate(worlds):
        fractions = _fractions(signed_effects(dataset, world), size)
        for r, name in enumerate(RATES):
            rate[w, :, r] = _compare(matching, fractions[name], once)[:, 0]
            if num_sources >= MIN_SOURCES:
                drawn = _compare(matching, fractions[name], weights)
                interval[:, w, :, r] = percentile_interval(drawn.T)
    dims = ("world", "compared", "rate")
    return xr.Dataset(
        {
            "matched_rate": (dims, rate, {"long_name": "see rate_meaning"}),
            "matched_rate_interval": (("bound", *dims), interval, {
                "long_name": "95% interval, pushed components resampled; NaN where they are few"
            }),
            "rate_meaning": ("rate", list(RATES.values())),
        },
        coords={
            "world": worlds,
            "compared": list(COMPARED),
            "rate": list(RATES),
            "bound": list(BOUNDS),
        },
        attrs={
            "match_ratio": settings.match_ratio,
            "num_supported_with_match": len(matching.supported),
            "num_supported_without_match": matching.num_unmatched,
            "num_sources_with_match": num_sources,
            "matched_size_ratio": _size_ratio(matching, size),
        },
    )  # fmt: skip


def _fractions(found: SignedEffects, size: NDArray[np.float64]) -> dict[str, Fraction]:
    """By rate."""
    along, one = found.along.ravel(), np.ones(len(size))
    return {
        "seen": Fraction(found.is_seen.ravel().astype(float), one),
        "opposite": Fraction(found.is_opposite.ravel().astype(float), one),
        "sign": Fraction((along > 0).astype(float), one),
        "realised": Fraction(along, size),
    }


def _compare(
    matching: Matching, fraction: Fraction, weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(3, R) rates of COMPARED; (R, N) weights."""
    rates = matching.rates(fraction, weight)
    return np.concatenate([rates, rates[:1] - rates[1:]])


def _size_ratio(matching: Matching, size: NDArray[np.float64]) -> float:
    """Mean predicted size of the matches over that of the supported: 1 where they balance."""
    one = np.ones(len(size))
    supported, matched = matching.rates(Fraction(size, one), one[None])[:, 0]
    return float(matched / supported)
