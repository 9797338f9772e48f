from dataclasses import fields

import numpy as np
import pytest

from experiment.errors import UserError
from rollouts.store import RolloutDataset
from rollouts.types import WindowBatch
from rollouts.windows import WindowSampler, permute

LENGTHS = [1, 2, 3, 4, 9, 25, 40, 3]
INIT, SIM = 3, 6
NULL_ACTION = 2


@pytest.fixture
def dataset(write_rollouts, make_rollout, make_metadata) -> RolloutDataset:
    kinds = [{}, {}, {}, {"cut": True}, {"truncated": True}, {}, {}, {}]
    rollouts = [
        make_rollout(100 + i, length, **kind)
        for i, (length, kind) in enumerate(zip(LENGTHS, kinds, strict=True))
    ]
    return write_rollouts(rollouts, shard_bytes=make_metadata().row_bytes * 10)


def slow_window(dataset: RolloutDataset, episode_id: int, start: int) -> dict[str, np.ndarray]:
    """One window, row by row, from the whole episode."""
    rollout = dataset.read_episode(dataset.index_of(episode_id))
    names = ("obs", "agent_hidden", "reward")
    window = {name: np.zeros((INIT + SIM - 1, *getattr(rollout, name).shape[1:])) for name in names}
    window["action"] = np.full(INIT + SIM - 1, NULL_ACTION)
    window["terminal"] = np.zeros(INIT + SIM - 1, bool)
    window["valid"] = np.zeros(INIT + SIM - 1, bool)
    for row in range(min(INIT + SIM - 1, len(rollout) - start)):
        for name in names:
            window[name][row] = getattr(rollout, name)[start + row]
        window["action"][row] = rollout.action[start + row]
        window["valid"][row] = True
        is_last = start + row == len(rollout) - 1
        ended_by_game = not rollout.info.cut and not rollout.info.truncated
        window["terminal"][row] = is_last and ended_by_game
    return window


def all_starts(dataset: RolloutDataset) -> list[tuple[int, int]]:
    table = dataset.episodes[["episode_id", "length"]].itertuples(index=False)
    return [(int(e), row) for e, length in table for row in range(length - INIT + 1)]


def starts_of(batch: WindowBatch) -> list[tuple[int, int]]:
    return list(zip(batch.episode_id.tolist(), batch.start_row.tolist(), strict=True))


@pytest.mark.parametrize("cache_bytes", [0, 300, 10**9])
def test_every_window_equals_the_slow_reference(dataset, cache_bytes):
    starts = all_starts(dataset)
    assert len(starts) == sum(max(0, length - INIT + 1) for length in LENGTHS)
    indices = [dataset.index_of(episode_id) for episode_id, _ in starts]
    sampler = WindowSampler(dataset, INIT, SIM, batch_size=1, seed=0, cache_bytes=cache_bytes)
    batch = sampler.windows_at(indices, [row for _, row in starts])
    assert starts_of(batch) == starts
    for column, (episode_id, row) in enumerate(starts):
        for name, expected in slow_window(dataset, episode_id, row).items():
            found = getattr(batch, name)[:, column]
            np.testing.assert_array_equal(found, expected, err_msg=f"{name} {episode_id} {row}")


def test_batch_types_and_shapes(dataset):
    batch = WindowSampler(dataset, INIT, SIM, batch_size=5, seed=0).batch(2)
    found = {f.name: getattr(batch, f.name) for f in fields(WindowBatch)}
    assert found.pop("num_init_steps") == INIT
    assert {name: (array.shape, array.dtype.name) for name, array in found.items()} == {
        "obs": ((8, 5, 8, 6, 3), "uint8"),
        "agent_hidden": ((8, 5, 5), "float32"),
        "action": ((8, 5), "int64"),
        "reward": ((8, 5), "float32"),
        "terminal": ((8, 5), "bool"),
        "valid": ((8, 5), "bool"),
        "episode_id": ((5,), "int64"),
        "start_row": ((5,), "int64"),
    }
    assert found["obs"].flags.c_contiguous


def test_initial_rows_are_real_and_the_terminal_row_is_valid(dataset):
    sampler = WindowSampler(dataset, INIT, SIM, batch_size=16, seed=1)
    batches = [sampler.batch(step) for step in range(20)]
    assert all(batch.valid[:INIT].all() for batch in batches)
    assert all(batch.valid[batch.terminal].all() for batch in batches)
    assert all(batch.terminal.sum(axis=0).max() <= 1 for batch in batches)
    assert any(batch.terminal.any() for batch in batches)
    # Padding follows real rows and is never followed by one.
    assert all((np.diff(batch.valid.astype(int), axis=0) <= 0).all() for batch in batches)


@pytest.mark.parametrize("world_size", [1, 3])
def test_an_epoch_visits_every_start_once_over_all_ranks(dataset, world_size):
    samplers = [
        WindowSampler(dataset, INIT, SIM, 2, seed=5, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    expected = sorted(all_starts(dataset))
    num_steps = -(-2 * len(expected) // (2 * world_size))
    dealt = [
        start for step in range(num_steps) for s in samplers for start in starts_of(s.batch(step))
    ]
    for epoch in range(2):
        visited = dealt[epoch * len(expected) : (epoch + 1) * len(expected)]
        assert sorted(visited) == expected
    first, second = dealt[: len(expected)], dealt[len(expected) : 2 * len(expected)]
    assert first != second, "each epoch has its own order"


def test_ranks_have_together_what_one_has_with_the_whole_batch(dataset):
    """Rank r has windows r, r + 2, r + 4 of it, so that each has its share of the first ones."""
    whole = WindowSampler(dataset, INIT, SIM, 6, seed=5)
    ranks = [WindowSampler(dataset, INIT, SIM, 3, seed=5, rank=r, world_size=2) for r in range(2)]
    for step in (0, 1, 7):
        for rank, sampler in enumerate(ranks):
            assert starts_of(sampler.batch(step)) == starts_of(whole.batch(step))[rank::2]
            assert (sampler.window_numbers(step) == whole.window_numbers(step)[rank::2]).all()
    assert whole.window_numbers(1).tolist() == list(range(6, 12))


def test_batches_are_a_function_of_seed_and_step(dataset):
    def starts(seed: int, step: int) -> list[tuple[int, int]]:
        return starts_of(WindowSampler(dataset, INIT, SIM, 4, seed=seed).batch(step))

    assert starts(3, 7) == starts(3, 7)
    assert starts(3, 7) != starts(3, 8)
    assert starts(3, 7) != starts(4, 7)


def test_prefetched_batches_are_the_same(dataset):
    sampler = WindowSampler(dataset, INIT, SIM, 4, seed=3)
    ahead = list(sampler.prefetch(5, 12))
    assert [starts_of(b) for b in ahead] == [starts_of(sampler.batch(i)) for i in range(5, 12)]
    iterator = sampler.prefetch(0, 10**9)
    np.testing.assert_array_equal(next(iterator).obs, sampler.batch(0).obs)
    iterator.close()  # type: ignore[attr-defined]


def test_simulated_rollouts_have_windows_too(write_rollouts, make_rollout):
    dataset = write_rollouts([make_rollout(i, 12, simulated=True) for i in range(3)])
    batch = WindowSampler(dataset, 2, 4, batch_size=6, seed=0).batch(0)
    assert batch.obs.shape[:2] == (5, 6)


def test_bad_sizes_are_user_errors(dataset):
    with pytest.raises(UserError, match=r"data: no episode has the 41 rows .* longest has 40"):
        WindowSampler(dataset, 41, 2, 1, seed=0)
    with pytest.raises(UserError, match="num_initializing_steps: found 1, expected at least 2"):
        WindowSampler(dataset, 1, 2, 1, seed=0)
    with pytest.raises(UserError, match="num_sim_steps: found 0, expected at least 1"):
        WindowSampler(dataset, 3, 0, 1, seed=0)
    sampler = WindowSampler(dataset, 3, 2, 1, seed=0)
    with pytest.raises(UserError, match=r"a window at row 38 of episode 106 .* has 40"):
        sampler.windows_at([dataset.index_of(105), dataset.index_of(106)], [0, 38])
    with pytest.raises(UserError, match="only 8 episodes"):
        sampler.windows_at([8], [0])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_permute_is_a_permutation(size):
    images = permute(np.arange(size), size, seed=9, epoch=2)
    np.testing.assert_array_equal(np.sort(images), np.arange(size))


def test_permute_takes_negative_seeds():
    images = permute(np.arange(50), 50, seed=-1, epoch=0)
    np.testing.assert_array_equal(np.sort(images), np.arange(50))
    assert (images != permute(np.arange(50), 50, seed=1, epoch=0)).any()


def test_permute_is_uniform_and_differs_by_key():
    size, num_epochs = 12, 1500
    images = np.stack([permute(np.arange(size), size, seed=1, epoch=e) for e in range(num_epochs)])
    # Where each position lands, and where a pair of neighbours lands, must be uniform: chi-square
    # with n − 1 degrees of freedom has mean n − 1 and variance 2(n − 1).
    for cells in (images[:, 3], images[:, 0] * size + images[:, 1]):
        counts = np.unique(cells, return_counts=True)[1]
        expected = num_epochs / len(counts)
        statistic = ((counts - expected) ** 2 / expected).sum()
        freedom = len(counts) - 1
        assert len(counts) in (size, size * (size - 1))
        assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_permute_works_point_by_point_at_any_size():
    size = 3 * 10**12
    positions = np.array([0, 1, size - 1, 10**9])
    images = permute(positions, size, seed=2**40 + 3, epoch=0)
    assert ((images >= 0) & (images < size)).all()
    assert len(set(images.tolist())) == 4
    np.testing.assert_array_equal(permute(positions[2:3], size, 2**40 + 3, 0), images[2:3])
    assert (permute(positions, size, seed=3, epoch=0) != images).all()
