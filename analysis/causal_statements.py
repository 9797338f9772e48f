"""The ranked table of candidate statements "i drives j after k steps in behaviour c".

Every statement collects evidence, each piece for (+1), against (−1) or neither (0):

| evidence | for | against |
| --- | --- | --- |
| correlation | differs from zero (pairing null) | |
| lag | is specific to this lag (time-shift null) | |
| gradient | the mean Jacobian differs from zero | |
| sign | correlation and gradient, both significant, have one sign | they have opposite signs |
| push | a finite push has a significant effect of the gradient's sign | of the opposite sign |
| replication | correlation and gradient have the same signs in both halves | they have not |

Significance is after control of false discoveries over all statements. Statements are ranked by
the sum, then by the weaker of |correlation| and |gradient|: a statement needs both. The ranking
orders candidates for an experiment; it proves none.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

EVIDENCE = ("correlation", "lag", "gradient", "sign", "push", "replication")


@dataclass(frozen=True)
class StatementSettings:
    """Which statements are made, and when a test counts."""

    false_discovery_rate: float = 0.05
    """Adjusted p-values below this count as significant."""
    num_statements: int | None = 200
    """Statements kept in the table, the best supported first; None for all."""


def rank_statements(cross: xr.Dataset, settings: StatementSettings) -> pd.DataFrame:
    """All candidates with a lag of at least one step and two components, best supported first.

    Args:
        cross: contents of xcorr_and_xcaus.nc, causation included.
        settings: which count.

    Returns:
        One row per statement, `num_statements` at most, numbered by `rank` from 1.
    """
    lags = [lag for lag in cross["lag"].values if lag > 0]
    chosen = cross.sel(lag=lags)
    columns = _evidence(chosen, settings.false_discovery_rate)
    size = cross.sizes["source"]
    is_pair = ~np.eye(size, dtype=np.bool_)
    is_candidate = np.isfinite(columns["gradient_mean"]) & np.isfinite(columns["r"]) & is_pair
    group, lag, source, target = np.nonzero(is_candidate)
    table = pd.DataFrame(
        {
            "behaviour": chosen["group"].values[group],
            "lag": chosen["lag"].values[lag],
            "source": source,
            "target": target,
            **{name: values[is_candidate] for name, values in columns.items()},
            "num_episodes": chosen["num_episodes"].values[group],
            "num_jacobians": chosen["num_jacobians"].values[group],
        }
    )
    weaker = np.minimum(table["r"].abs(), table["gradient_mean"].abs())
    table = table.assign(weaker=weaker).sort_values(
        ["score", "weaker"], ascending=False, kind="stable"
    )
    table = table.drop(columns="weaker").iloc[: settings.num_statements].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table


def _evidence(cross: xr.Dataset, rate: float) -> dict[str, NDArray]:
    """Columns of shape (group, lag, source, target)."""
    passed = cross.sel(environment_gradient="passed")
    r, gradient = cross["correlation"].values, passed["causation"].values
    cut = cross["causation"].sel(environment_gradient="cut").values
    q = {name: cross["correlation_q"].sel(null=name).values for name in cross["null"].values}
    q_gradient = passed["causation_q"].values
    has_r, has_gradient = q["pairing"] < rate, q_gradient < rate
    evidence = {
        "correlation": has_r.astype(int),
        "lag": (q["time_shift"] < rate).astype(int),
        "gradient": has_gradient.astype(int),
        "sign": np.where(has_r & has_gradient, np.sign(r * gradient), 0),
        "push": _push_evidence(passed, gradient, rate),
        "replication": _replication(cross, passed),
    }
    lower, upper = cross["correlation_interval"].values
    gradient_lower, gradient_upper = passed["causation_interval"].values
    columns = {
        "r": r,
        "r_lower": lower,
        "r_upper": upper,
        **{f"q_{name}": values for name, values in q.items()},
        "gradient_mean": gradient,
        "gradient_lower": gradient_lower,
        "gradient_upper": gradient_upper,
        "q_gradient": q_gradient,
        "positive_share": passed["causation_positive_share"].values,
        "gradient_without_environment": cut,
        **{f"evidence_{name}": np.nan_to_num(v).astype(int) for name, v in evidence.items()},
    }
    if "push" in passed:
        columns |= {"push_mean": passed["push"].values, "q_push": passed["push_q"].values}
    columns["score"] = sum(columns[f"evidence_{name}"] for name in EVIDENCE)
    return columns


def _push_evidence(passed: xr.Dataset, gradient: NDArray, rate: float) -> NDArray:
    if "push" not in passed:
        return np.zeros(gradient.shape)
    is_known = passed["push_q"].values < rate
    return np.where(is_known, np.sign(passed["push"].values * gradient), 0)


def _replication(cross: xr.Dataset, passed: xr.Dataset) -> NDArray:
    """+1 where both halves have the signs of each other, −1 where not, 0 where a half is empty."""
    signs = []
    for half in (cross["correlation_half"], passed["causation_half"]):
        first, second = half.values
        signs.append(np.sign(first * second))
    weaker = np.minimum(*signs)
    return np.where(np.isfinite(weaker), weaker, 0)
