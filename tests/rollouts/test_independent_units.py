"""Which episodes depend on each other, and permutations that keep them together."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from rollouts.independent_units import (
    independent_units,
    levels_of_episodes,
    permute_units,
    units_of_episodes,
)
from rollouts.store import RolloutDataset, RolloutWriter


def same(units):
    """Which of the units are equal, as numbers in the order of their first appearance."""
    order = {unit: number for number, unit in enumerate(dict.fromkeys(units.tolist()))}
    return [order[unit] for unit in units.tolist()]


@pytest.fixture
def real(write_rollouts, make_rollout):
    """Three episodes, two of one level."""
    levels = (7, 9, 7)
    rollouts = [make_rollout(i, 3, level_seed=level) for i, level in enumerate(levels)]
    return write_rollouts(rollouts, "real")


@pytest.fixture
def write_samples(tmp_path, make_rollout, make_metadata):
    def write(provenance, infos):
        metadata = replace(make_metadata(simulated=True), provenance=provenance)
        with RolloutWriter(tmp_path / "samples", metadata) as writer:
            for number, info in enumerate(infos):
                writer.write(make_rollout(number, 3, simulated=True, **info))
        return RolloutDataset(tmp_path / "samples")

    return write


def test_real_episodes_belong_to_their_level(real, write_rollouts, make_rollout) -> None:
    assert same(independent_units(real)) == [0, 1, 0]
    assert levels_of_episodes(real).tolist() == [7, 9, 7]
    assert same(units_of_episodes(real, np.array([2, 1, 2]))) == [0, 1, 0]
    without = write_rollouts([make_rollout(i + 40, 3) for i in range(3)], "without")
    assert same(independent_units(without)) == [0, 1, 2]
    assert levels_of_episodes(without).tolist() == [40, 41, 42]


def test_samples_belong_to_the_episode_that_their_window_is_from(real, write_samples) -> None:
    informed = [{"source_episode_id": episode, "source_row": 1} for episode in (0, 1, 0, 2)]
    random = [{"initialisation": "random"}] * 2
    samples = write_samples({"inputs": {"dataset": real.hash}}, informed + random)
    assert same(independent_units(samples)) == [0, 1, 0, 2, 3, 4]
    assert independent_units(samples).min() >= 0
    # Episodes 0 and 2 are of one level; the real rollouts tell.
    linked = independent_units(samples, sources=real)
    assert same(linked) == [0, 1, 0, 0, 2, 3]
    assert linked[:2].tolist() == independent_units(real)[:2].tolist()


def test_other_rollouts_tell_nothing_of_the_sources(real, write_samples) -> None:
    samples = write_samples({"inputs": {"dataset": "other"}}, [{"source_episode_id": 0}])
    found = independent_units(samples, sources=real)
    assert found.tolist() == independent_units(samples).tolist()
    assert not np.isin(found, independent_units(real)).any()


def test_points_of_one_way_between_windows_belong_together(write_samples) -> None:
    provenance = {"config": {"interpolation_points": 3}}
    samples = write_samples(provenance, [{"initialisation": "interpolated"}] * 7)
    assert same(independent_units(samples)) == [0, 0, 0, 1, 1, 1, 2]


def test_copies_of_one_start_belong_together(write_samples, tmp_path) -> None:
    """Samples 0 and 1 hold different actions from the same latent, and so on."""
    provenance = {"config": {"interpolation_points": 2, "copies_per_start": 2}}
    random = write_samples(provenance, [{"initialisation": "random"}] * 5)
    assert same(independent_units(random)) == [0, 0, 1, 1, 2]
    shutil.rmtree(tmp_path / "samples")
    ways = write_samples(provenance, [{"initialisation": "interpolated"}] * 6)
    assert same(independent_units(ways)) == [0, 0, 0, 0, 1, 1]


def test_permuted_units_stay_whole() -> None:
    unit = np.array([5, 5, 5, 8, 2, 2, 5])
    rng = np.random.default_rng(0)
    for _ in range(30):
        order = permute_units(unit, rng)
        for number in np.unique(unit):
            newcomers = unit[order[unit == number]]
            assert len(set(newcomers)) == 1
            present, count = len(set(order[unit == number])), np.sum(unit == newcomers[0])
            assert present == min(np.sum(unit == number), count)
        assert set(unit[order]) == set(unit)


def test_units_of_one_member_are_permuted_as_members_are() -> None:
    orders = {tuple(permute_units(np.arange(3), np.random.default_rng(s))) for s in range(60)}
    assert len(orders) == 6
    assert all(sorted(order) == [0, 1, 2] for order in orders)
