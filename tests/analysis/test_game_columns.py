"""The game's variables beside hidden states: of real rows, and only where a frame shows them."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from analysis.game_columns import game_columns
from rollouts.store import RolloutDataset

NAMES = ("agent_y", "coin_dx", "coin_dy")
VALUES = np.array([[1.0, 2.0, -3.0], [4.0, 9.0, 1.0], [5.0, np.nan, np.nan]], np.float32)


@dataclass
class Rows:
    """Stands for `RolloutRows`."""

    dataset: Any

    def read(self, field: str, start: int, stop: int) -> np.ndarray:
        assert field == "game_variables"
        return VALUES[start:stop]


def dataset(game: Any) -> RolloutDataset:
    environment = SimpleNamespace(name="coinrun")
    metadata = SimpleNamespace(game=game, environment=environment)
    return cast(RolloutDataset, SimpleNamespace(metadata=metadata, folder="data"))


def test_values_out_of_sight_are_not_known_and_sight_is_a_variable_of_its_own():
    real = dataset(SimpleNamespace(variables=NAMES))
    columns = game_columns(real, 6.5)
    assert columns is not None
    assert columns.names == (*NAMES, "coin_in_sight")
    assert columns.units[1] == "cells"
    found = columns.read(cast(Any, Rows(real)), slice(0, 3))
    expected = [[1, 2, -3, 1], [4, np.nan, np.nan, 0], [5, np.nan, np.nan, 0]]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_rollouts_without_game_variables_have_none():
    assert game_columns(dataset(None), 6.5) is None
    columns = game_columns(dataset(SimpleNamespace(variables=NAMES)), 6.5)
    assert columns is not None
    simulated = columns.read(cast(Any, Rows(dataset(None))), slice(0, 2))
    assert simulated.shape == (2, 4)
    assert np.isnan(simulated).all()
