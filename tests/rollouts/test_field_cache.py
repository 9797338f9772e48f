"""The cache of small fields gives the stored rows and keeps to its budget."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rollouts.field_cache import FieldCache
from rollouts.store import RolloutDataset


@pytest.fixture
def dataset(write_rollouts, make_rollout, make_metadata) -> RolloutDataset:
    """Four shards of 10 rows."""
    rollouts = [make_rollout(i, 10) for i in range(4)]
    return write_rollouts(rollouts, shard_bytes=make_metadata().row_bytes * 10)


def read(cache: FieldCache, dataset: RolloutDataset, name: str, start: int) -> np.ndarray:
    spec = dataset.step_field(name)
    out = np.empty((4, *spec.row_shape), spec.dtype)
    cache.read_rows(name, start, out)
    return out


@pytest.mark.parametrize(
    ("budget", "kept"), [(0, 0), (10 * 4 - 1, 0), (10 * 4, 40), (3 * 10 * 4 + 5, 120), (999, 160)]
)
def test_rows_are_those_of_the_dataset_at_any_budget(dataset, budget, kept):
    cache = FieldCache(dataset, budget)
    for _ in range(2):
        for start in (30, 36, 0, 6, 13, 22):
            found = read(cache, dataset, "reward", start)
            np.testing.assert_array_equal(found, dataset.read_field("reward", start, start + 4))
    assert cache.cached_bytes == kept


def test_a_shard_is_read_once(dataset, monkeypatch):
    cache = FieldCache(dataset)
    expected = dataset.read_field("agent_hidden", 12, 16)
    read(cache, dataset, "agent_hidden", 10)
    monkeypatch.setattr(RolloutDataset, "read_rows", None)
    np.testing.assert_array_equal(read(cache, dataset, "agent_hidden", 12), expected)


def test_threads_and_copies_share_nothing_wrongly(dataset):
    cache = FieldCache(dataset, 250)
    expected = [dataset.read_field("agent_hidden", start, start + 4) for start in range(0, 40, 10)]

    def read_shard(number: int) -> np.ndarray:
        return read(cache, dataset, "agent_hidden", number % 4 * 10)

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(read_shard, range(200))):
            np.testing.assert_array_equal(found, expected[number % 4])
    assert cache.cached_bytes == 200
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.cached_bytes == 0
    np.testing.assert_array_equal(read(copy, dataset, "agent_hidden", 20), expected[2])
