"""Counter-based random numbers: every draw is a pure function of its key.

A draw is keyed by (seed, stream, id, t), never by call order, batch size or rank, so that twins
and branches share their noise, and a resumed, sharded or larger run draws the same numbers.

The generator is Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
SC 2011), vectorised over keys.
"""

import random
import zlib

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW_32_BITS = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_FEISTEL_ROUNDS = 6


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Ten rounds of Philox4x32.

    Args:
        counter: (4, ...) words of 32 bits, held in uint64.
        key: two words of 32 bits.

    Returns:
        (4, ...) random words of 32 bits, held in uint64.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _32) ^ c1 ^ np.uint64(k0),
            product1 & _LOW_32_BITS,
            (product0 >> _32) ^ c3 ^ np.uint64(k1),
            product0 & _LOW_32_BITS,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def keyed_uniform(
    seed: int, stream: str, ids: ArrayLike, t: ArrayLike = 0, size: int = 1
) -> NDArray[np.float64]:
    """Uniform draws in [0, 1) with 32 random bits each.

    Args:
        seed: the run's seed.
        stream: what the draw is for, e.g. `"action"`; streams are independent.
        ids: (...) non-negative episode or sample ids below 2^63.
        t: (...) row index within the episode, broadcast against `ids`; below 2^32.
        size: number of draws per key.

    Returns:
        (..., size) draws.
    """
    ids, t = np.broadcast_arrays(np.asarray(ids, np.uint64), np.asarray(t, np.uint64))
    num_blocks = -(-size // 4)
    block = np.arange(num_blocks, dtype=np.uint64)
    shape = (*ids.shape, num_blocks)
    counter = np.stack(
        [
            np.broadcast_to(block, shape),
            np.broadcast_to(t[..., None], shape),
            np.broadcast_to((ids & _LOW_32_BITS)[..., None], shape),
            np.broadcast_to((ids >> _32)[..., None], shape),
        ]
    )
    key = (seed & 0xFFFFFFFF, zlib.crc32(stream.encode()) ^ (seed >> 32 & 0xFFFFFFFF))
    words = np.moveaxis(philox4x32(counter, key), 0, -1)
    return words.reshape(*ids.shape, num_blocks * 4)[..., :size] / 2.0**32


def keyed_normal(
    seed: int, stream: str, ids: ArrayLike, t: ArrayLike = 0, size: int = 1
) -> NDArray[np.float64]:
    """Standard normal draws; arguments and shapes as for `keyed_uniform`."""
    # Half a step of the 32-bit grid keeps the quantile finite at 0.
    return ndtri(keyed_uniform(seed, stream, ids, t, size) + 2.0**-33)


def keyed_permutation(
    seed: int, stream: str, positions: ArrayLike, size: int, number: ArrayLike = 0
) -> NDArray[np.int64]:
    """Where permutations of `range(size)` send some of its elements, without the rest being made.

    A Feistel network over the two halves of an element's bits (Luby and Rackoff, "How to construct
    pseudorandom permutations from pseudorandom functions", SIAM J. Comput. 1988) with Philox as its
    rounds; what leaves the range goes through it again until it is back (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002).

    Args:
        seed: the run's seed.
        stream: what the permutation is for.
        positions: (...) elements, at least 0 and below `size`.
        size: at most 2^32.
        number: (...) which of the permutations, below 2^31; broadcast against `positions`.

    Returns:
        (...) their images.
    """
    positions, number = np.broadcast_arrays(
        np.asarray(positions, np.int64), np.asarray(number, np.int64)
    )
    half = max(1, -(-int(size - 1).bit_length() // 2))
    images, outside = positions.copy(), np.ones(positions.shape, bool)
    while outside.any():
        left, right = images[outside] >> half, images[outside] & (2**half - 1)
        for turn in range(_FEISTEL_ROUNDS):
            ids = number[outside] << 32 | right
            mask = np.floor(2**half * keyed_uniform(seed, stream, ids, turn)[..., 0])
            left, right = right, left ^ mask.astype(np.int64)
        images[outside] = left << half | right
        outside = images >= size
    return images


def sample_categorical(
    probabilities: NDArray[np.floating], uniform: NDArray[np.floating]
) -> NDArray[np.int64]:
    """Invert the cumulative distribution.

    Args:
        probabilities: (..., num_classes), rows sum to one.
        uniform: (...) draws in [0, 1).

    Returns:
        (...) class indices; a class of probability zero is never drawn.
    """
    cumulative = np.cumsum(probabilities, axis=-1, dtype=np.float64)
    # Scaling by the last entry keeps the draw in range when rounding leaves the sum below one.
    threshold = uniform[..., None] * cumulative[..., -1:]
    return np.asarray(np.sum(cumulative <= threshold, axis=-1), np.int64)


def seed_everything(seed: int) -> None:
    """Seed torch, numpy's global generator and `random`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries draw from the global generator)
    random.seed(seed)
