import numpy as np
import pytest
import torch

from experiment.randomness import (
    keyed_normal,
    keyed_permutation,
    keyed_uniform,
    philox4x32,
    sample_categorical,
    seed_everything,
)

# Random123's known-answer tests for philox4x32-10.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    key_low, key_high = words(key)
    found = philox4x32(np.array(words(counter), np.uint64), (key_low, key_high))
    assert found.tolist() == words(expected)


def test_philox_is_vectorised_over_counters():
    counters = np.array([words(answer[0]) for answer in KNOWN_ANSWERS], np.uint64).T
    together = philox4x32(counters, (1, 2))
    for column in range(3):
        np.testing.assert_array_equal(together[:, column], philox4x32(counters[:, column], (1, 2)))


def test_draws_do_not_depend_on_the_batch():
    ids, t = np.array([5, 2**40, 0, 7]), np.array([0, 3, 9, 3])
    together = keyed_uniform(11, "action", ids, t, size=6)
    assert together.shape == (4, 6)
    for index in range(4):
        alone = keyed_uniform(11, "action", ids[index], t[index], size=6)
        np.testing.assert_array_equal(together[index], alone)
    np.testing.assert_array_equal(together[:, :3], keyed_uniform(11, "action", ids, t, size=3))
    np.testing.assert_array_equal(
        together[::-1], keyed_uniform(11, "action", ids[::-1], t[::-1], 6)
    )


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 12},
        {"seed": 11 + 2**32},
        {"stream": "latent"},
        {"ids": 6},
        {"ids": 5 + 2**32},
        {"t": 1},
    ],
    ids=str,
)
def test_every_part_of_the_key_matters(other):
    key = {"seed": 11, "stream": "action", "ids": 5, "t": 0, "size": 8}
    first, second = keyed_uniform(**key), keyed_uniform(**{**key, **other})
    assert not np.intersect1d(first, second).size


def test_draws_are_uniform_and_uncorrelated():
    draws = keyed_uniform(0, "noise", np.arange(200)[:, None], np.arange(50), size=10)
    assert draws.shape == (200, 50, 10)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=64, range=(0, 1))[0]
    expected = draws.size / 64
    # Chi-square with 63 degrees of freedom: mean 63, standard deviation 11.2.
    assert abs(((counts - expected) ** 2 / expected).sum() - 63) < 5 * 11.2
    flat = draws - 0.5
    for pair in (
        (flat[1:], flat[:-1]),
        (flat[:, 1:], flat[:, :-1]),
        (flat[..., 1:], flat[..., :-1]),
    ):
        correlation = np.mean(pair[0] * pair[1]) * 12
        assert abs(correlation) < 5 / np.sqrt(pair[0].size)


def test_ids_and_times_are_broadcast():
    draws = keyed_uniform(0, "noise", np.arange(3)[:, None], np.arange(4))
    assert draws.shape == (3, 4, 1)
    np.testing.assert_array_equal(draws[2, 1], keyed_uniform(0, "noise", 2, 1))


def test_normal_draws_have_the_moments_of_the_standard_normal_and_its_tails():
    draws = keyed_normal(0, "normal", np.arange(50_000), 0, 2)
    assert draws.shape == (50_000, 2)
    assert draws.mean() == pytest.approx(0, abs=0.01)
    assert draws.std() == pytest.approx(1, abs=0.01)
    assert (np.abs(draws) > 1.96).mean() == pytest.approx(0.05, abs=0.003)


def test_categorical_inverts_the_cumulative_distribution():
    probabilities = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    uniform = np.array([0.0, 0.1, 0.2499, 0.25, 0.9, np.nextafter(1.0, 0.0)])
    drawn = sample_categorical(np.broadcast_to(probabilities, (6, 5)), uniform)
    assert drawn.tolist() == [1, 1, 1, 3, 3, 3]


def test_categorical_frequencies():
    probabilities = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    uniform = keyed_uniform(3, "action", np.arange(40_000))[:, 0]
    drawn = sample_categorical(np.broadcast_to(probabilities, (40_000, 4)), uniform)
    frequencies = np.bincount(drawn, minlength=4) / 40_000
    np.testing.assert_allclose(frequencies, probabilities, atol=5 * 0.5 / 200)


def test_categorical_stays_in_range_when_rounding_leaves_the_sum_below_one():
    probabilities = np.full((1, 3), 0.3333, np.float32)
    assert sample_categorical(probabilities, np.array([0.99999999])).tolist() == [2]


def test_seed_everything_repeats():
    seed_everything(2**33 + 1)
    first = torch.rand(3)
    seed_everything(2**33 + 1)
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 1000])
def test_a_keyed_permutation_is_one_and_depends_on_its_key(size: int) -> None:
    whole = keyed_permutation(5, "level", np.arange(size), size, [[0], [1]])
    assert np.array_equal(np.sort(whole), np.tile(np.arange(size), (2, 1)))
    if size >= 17:
        assert not np.array_equal(*whole)
        assert not np.array_equal(whole[0], keyed_permutation(6, "level", np.arange(size), size))
    assert keyed_permutation(5, "level", size - 1, size) == whole[0, -1]


def test_keyed_permutations_send_an_element_everywhere_alike() -> None:
    images = keyed_permutation(0, "level", np.arange(10), 10, np.arange(4000)[:, None])
    counts = np.stack([np.bincount(column, minlength=10) for column in images.T])
    # Chi-squared with 9 degrees of freedom: 27.9 at p = 0.001, for each of ten elements.
    assert ((counts - 400) ** 2 / 400).sum(axis=1).max() < 30
    correlation = np.corrcoef(images[:, 0], images[:, 1])[0, 1]
    assert correlation == pytest.approx(-1 / 9, abs=0.05)


def test_a_permutation_of_a_billion_is_drawn_from_everywhere() -> None:
    images = keyed_permutation(0, "level", np.arange(20_000), 10**9)
    assert len(set(images.tolist())) == 20_000
    assert np.histogram(images, bins=20, range=(0, 10**9))[0].min() > 800
