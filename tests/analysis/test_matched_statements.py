"""Supported statements beside others of the same predicted size, where the truth is planted."""

import numpy as np
import pytest
import xarray as xr

from analysis.matched_statements import (
    MIN_SOURCES,
    RATES,
    Fraction,
    MatchSettings,
    find_matches,
    match_statements,
)
from analysis.statement_outcomes import outcome

NUM, LAGS, SCORE = 24, 6, 6
SHAPE = (NUM, LAGS, NUM)


def planted(support_adds: float, num_sources: int = NUM, seed: int = 0) -> xr.Dataset:
    """Effects that are seen the more often the larger they are predicted; support adds to that.

    Statements of large predictions are supported more often, so that supported ones come true
    more often even where support adds nothing.
    """
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(size=SHAPE))
    gradient = size * rng.choice([-1.0, 1.0], SHAPE)
    is_supported = rng.random(SHAPE) < size / (1 + size)
    is_seen = rng.random(SHAPE) < 0.6 * size / (1 + size) + support_adds * is_supported
    by_world = ("world", "source", "lag", "target")
    dataset = xr.Dataset(
        {
            "effect": (by_world, gradient[None] * np.where(is_seen, 1.0, 0.1)),
            "effect_q": (by_world, np.where(is_seen, 0.01, 0.5)[None]),
            "gradient": (by_world[1:], gradient),
            "score": (by_world[1:], np.where(is_supported, SCORE, 3.0)),
            "control_low": (by_world, np.zeros((1, *SHAPE))),
            "control_high": (by_world, np.zeros((1, *SHAPE))),
        },
        coords={
            "world": ["real"],
            "source": np.arange(NUM),
            "lag": np.arange(1, LAGS + 1),
            "target": np.arange(NUM),
        },
        attrs={"largest_possible_score": SCORE},
    )
    return dataset.isel(source=slice(num_sources))


def compare(dataset: xr.Dataset, ratio: float = 1.2) -> xr.Dataset:
    return match_statements(dataset, MatchSettings(ratio), num_resamples=400, seed=0)


def test_what_predicted_size_explains_is_no_merit_of_the_evidence() -> None:
    dataset = planted(support_adds=0.0)
    crude = [outcome(dataset, "real", group).share_seen for group in ("supported", "others")]
    assert crude[0] - crude[1] > 0.06
    found = compare(dataset)
    difference = found.sel(world="real", rate="seen", compared="difference")
    low, high = difference["matched_rate_interval"].values
    assert low < 0 < high
    assert abs(float(difference["matched_rate"])) < 0.05
    assert found.attrs["matched_size_ratio"] == pytest.approx(1.0, abs=0.06)


def test_what_evidence_adds_is_found() -> None:
    found = compare(planted(support_adds=0.3))
    difference = found.sel(world="real", rate="seen", compared="difference")
    low, high = difference["matched_rate_interval"].values
    assert 0.2 < low < high < 0.4
    realised = found["matched_rate"].sel(world="real", rate="realised")
    assert realised.sel(compared="supported") > realised.sel(compared="matched")


def test_rates_equal_a_slow_reference() -> None:
    dataset = planted(support_adds=0.2, num_sources=3)
    size = np.abs(dataset["gradient"].values).ravel()
    source, _, target = (axis.ravel() for axis in np.indices((3, LAGS, NUM)))
    is_supported = dataset["score"].values.ravel() == SCORE
    is_seen = dataset["effect_q"].values.ravel() < 0.05
    along = (dataset["effect"].values[0] * np.sign(dataset["gradient"].values)).ravel()
    seen, realised, sizes, num_left_out = [], [], [], 0
    for i in np.flatnonzero(is_supported & (source != target)):
        matches = [
            c
            for c in np.flatnonzero(~is_supported & (source != target))
            if max(size[i], size[c]) < 1.01 * min(size[i], size[c])
        ]
        num_left_out += not matches
        if matches:
            seen.append(is_seen[matches].mean())
            realised.append(along[matches].mean())
            sizes.append(size[matches].mean())
    found = compare(dataset, ratio=1.01)
    rate = found["matched_rate"].sel(world="real", compared="matched")
    assert float(rate.sel(rate="seen")) == pytest.approx(np.mean(seen))
    assert float(rate.sel(rate="realised")) == pytest.approx(np.sum(realised) / np.sum(sizes))
    assert found.attrs["num_supported_with_match"] == len(seen)
    assert found.attrs["num_supported_without_match"] == num_left_out > 0


def test_resampled_weights_count_statements_as_often_as_they_are_drawn() -> None:
    """Weights equal writing a statement down as often."""
    rng = np.random.default_rng(0)
    size, top = np.exp(rng.normal(size=40)), rng.random(40)
    is_supported = np.arange(40) < 15
    weight = rng.integers(0, 3, size=(1, 40))
    matching = find_matches(size, is_supported, ~is_supported, 1.5)
    rows = np.repeat(np.arange(40), weight[0])
    repeated = find_matches(size[rows], is_supported[rows], ~is_supported[rows], 1.5)
    np.testing.assert_allclose(
        matching.rates(Fraction(top, size), weight.astype(float)),
        repeated.rates(Fraction(top[rows], size[rows]), np.ones((1, len(rows)))),
    )


def test_few_pushed_components_tell_no_interval() -> None:
    found = compare(planted(support_adds=0.0, num_sources=MIN_SOURCES - 1))
    assert np.isfinite(found["matched_rate"]).all()
    assert np.isnan(found["matched_rate_interval"]).all()


def test_no_match_is_no_rate() -> None:
    dataset = planted(support_adds=0.0)
    nothing = compare(dataset.assign(score=xr.zeros_like(dataset["score"])))
    assert np.isnan(nothing["matched_rate"]).all()
    assert nothing.attrs["num_supported_with_match"] == 0
    assert nothing.sizes["rate"] == len(RATES)
