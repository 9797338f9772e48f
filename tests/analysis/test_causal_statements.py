"""What counts for a causal statement and what against it, on tables that are known."""

import numpy as np
import pytest
import xarray as xr

from analysis.causal_statements import EVIDENCE, StatementSettings, rank_statements

SIZE, RATE = 4, 0.05
FOUND, NOT_FOUND = 0.01, 0.2


@pytest.fixture
def cross() -> xr.Dataset:
    """Of components 0 and 1 alone there are Jacobians; nothing is significant yet, and a half of
    the episodes is empty."""
    lagged = ("group", "lag", "source", "target")
    passed = ("environment_gradient", *lagged)
    shape = (1, 2, SIZE, SIZE)
    gradient = np.full((2, *shape), 0.1)
    gradient[..., 2:, :] = np.nan

    def filled(*extra: int, value: float) -> np.ndarray:
        return np.full((*extra, *shape), value)

    return xr.Dataset(
        {
            "correlation": (lagged, filled(value=0.1)),
            "correlation_interval": (("bound", *lagged), filled(2, value=0.1)),
            "correlation_q": (("null", *lagged), filled(3, value=NOT_FOUND)),
            "correlation_half": (("half", *lagged), filled(2, value=np.nan)),
            "causation": (passed, gradient),
            "causation_interval": (("bound", *passed), filled(2, 2, value=0.1)),
            "causation_q": (passed, filled(2, value=NOT_FOUND)),
            "causation_positive_share": (passed, filled(2, value=1.0)),
            "causation_half": (("half", *passed), filled(2, 2, value=np.nan)),
            "push": (passed, filled(2, value=0.1)),
            "push_q": (passed, filled(2, value=NOT_FOUND)),
            "num_episodes": ("group", [9]),
            "num_jacobians": ("group", [8]),
        },
        {
            "group": ["all"],
            "lag": [0, 1],
            "source": np.arange(SIZE),
            "target": np.arange(SIZE),
            "null": ["pairing", "time_shift", "labels"],
            "environment_gradient": ["passed", "cut"],
            "bound": ["lower", "upper"],
        },
    )


def plant(cross: xr.Dataset, pair: tuple[int, int], halves=None, **values: float) -> None:
    """Values of a pair at lag 1, with the environment passed; `halves` of r and of the gradient."""
    at = {"lag": 1, "source": pair[0], "target": pair[1]}
    for name, value in values.items():
        variable, _, null = name.partition("__")
        where = at | ({"null": null} if null else {})
        if "environment_gradient" in cross[variable].dims:
            where["environment_gradient"] = "passed"
        cross[variable].loc[where] = value
    if halves is not None:
        of_correlation, of_gradient = halves
        cross["correlation_half"].loc[at] = np.array(of_correlation)[:, None]
        cross["causation_half"].loc[at | {"environment_gradient": "passed"}] = np.array(
            of_gradient
        )[:, None]


def evidence_of(cross: xr.Dataset, pair: tuple[int, int]) -> dict[str, int]:
    """What is not 0, and the sum."""
    table = rank_statements(cross, StatementSettings(RATE))
    row = table[(table["source"] == pair[0]) & (table["target"] == pair[1])].iloc[0]
    assert row["score"] == sum(row[f"evidence_{name}"] for name in EVIDENCE)
    found = {name: int(row[f"evidence_{name}"]) for name in EVIDENCE}
    return {name: value for name, value in found.items() if value}


def test_statements_are_of_two_components_some_steps_apart(cross) -> None:
    table = rank_statements(cross, StatementSettings(RATE))
    pairs = sorted(zip(table["source"].tolist(), table["target"].tolist(), strict=True))
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]
    assert (table["lag"] == 1).all()
    assert (table["score"] == 0).all()


SIGNIFICANT = {"correlation_q__pairing": FOUND, "causation_q": FOUND}


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ({"correlation_q__pairing": FOUND}, {"correlation": 1}),
        ({"correlation_q__time_shift": FOUND}, {"lag": 1}),
        ({"correlation_q__labels": FOUND}, {}),
        ({"causation_q": FOUND}, {"gradient": 1}),
        (SIGNIFICANT, {"correlation": 1, "gradient": 1, "sign": 1}),
        ({**SIGNIFICANT, "correlation": -0.3}, {"correlation": 1, "gradient": 1, "sign": -1}),
        ({"correlation": -0.3}, {}),
        ({"push_q": FOUND}, {"push": 1}),
        ({"push_q": FOUND, "push": -0.3}, {"push": -1}),
        ({"push_q": FOUND, "push": -0.3, "causation": -0.2}, {"push": 1}),
        ({"halves": ([0.2, 0.1], [-0.3, -0.1])}, {"replication": 1}),
        ({"halves": ([0.2, -0.1], [0.3, 0.1])}, {"replication": -1}),
        ({"halves": ([0.2, 0.1], [0.3, -0.1])}, {"replication": -1}),
        ({"halves": ([0.2, 0.1], [0.3, np.nan])}, {}),
    ],
)
def test_each_piece_of_evidence(cross, planted, expected) -> None:
    plant(cross, (0, 1), **planted)
    assert evidence_of(cross, (0, 1)) == expected
    assert evidence_of(cross, (1, 0)) == {}


def test_without_pushes_there_is_no_evidence_from_them(cross) -> None:
    plant(cross, (0, 1), push_q=FOUND)
    assert evidence_of(cross.drop_vars(["push", "push_q"]), (0, 1)) == {}


def test_the_weaker_of_correlation_and_gradient_ranks_statements_of_one_score(cross) -> None:
    plant(cross, (0, 3), correlation=0.9, causation=0.05)
    plant(cross, (1, 2), correlation=-0.3, causation=0.3)
    plant(cross, (1, 3), correlation_q__time_shift=FOUND, correlation=0.01)
    table = rank_statements(cross, StatementSettings(RATE))
    pairs = list(zip(table["source"].tolist(), table["target"].tolist(), strict=True))
    assert pairs == [(1, 3), (1, 2), (0, 1), (0, 2), (1, 0), (0, 3)]
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    few = rank_statements(cross, StatementSettings(RATE, num_statements=2))
    assert few["source"].tolist() == [1, 1]
