"""Windows of fixed length drawn from a dataset, as a pure function of seed and step."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiment.errors import UserError
from rollouts.field_cache import DEFAULT_CACHE_BYTES, FieldCache
from rollouts.store import RolloutDataset
from rollouts.types import WindowBatch

_FEISTEL_ROUNDS = 8


class WindowSampler:
    """Draws batches of windows of `num_init_steps + num_sim_steps − 1` rows.

    A window may start at every row of an episode that leaves `num_init_steps` real rows, each
    such start being equally likely; what lies behind the episode's end is padding. An epoch
    visits every start once, in an order keyed by (seed, epoch). `batch(step)` depends on nothing
    but the constructor's arguments and `step`: a resumed training goes on with the batches it
    would have had. Windows are dealt out to ranks one by one, so that all ranks together have the
    windows that a single one with the whole batch has, and each its share of the first of them.

    Args:
        dataset: real or simulated rollouts.
        num_init_steps: rows that set up the simulator, at least 2.
        num_sim_steps: simulated steps, at least 1; step 0 reconstructs the last initial row.
        batch_size: windows per batch and rank.
        seed: keys the order.
        rank: index of this process.
        world_size: number of processes that draw from the dataset together.
        cache_bytes: memory for the fields other than frames; it changes the speed only.

    Raises:
        UserError: no episode is long enough to initialise a window.
    """

    def __init__(
        self,
        dataset: RolloutDataset,
        num_init_steps: int,
        num_sim_steps: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ):
        _check_sizes(num_init_steps, num_sim_steps, batch_size, rank, world_size)
        self.dataset = dataset
        self._small_fields = FieldCache(dataset, cache_bytes)
        self.num_init_steps = num_init_steps
        self.num_rows = num_init_steps + num_sim_steps - 1
        self.batch_size = batch_size
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._lengths = dataset.episodes["length"].to_numpy(np.int64)
        self._offsets = dataset.episodes["offset"].to_numpy(np.int64)
        self._episode_ids = dataset.episodes["episode_id"].to_numpy(np.int64)
        self._truncated = dataset.episodes["truncated"].to_numpy(np.bool_)
        self._start_counts = np.cumsum(np.maximum(self._lengths - num_init_steps + 1, 0))
        if self.num_windows == 0:
            raise UserError(
                f"{dataset.folder}: no episode has the {num_init_steps} rows that initialise a "
                f"window (num_initializing_steps); the longest has {self._lengths.max()}"
            )

    @property
    def num_windows(self) -> int:
        """Number of rows at which a window can start."""
        return int(self._start_counts[-1])

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one rank that make about one epoch, at least 1."""
        return max(1, self.num_windows // (self.batch_size * self._world_size))

    def window_numbers(self, step: int) -> NDArray[np.int64]:
        """(B,) numbers of the windows of `batch(step)`, counted through all steps and ranks."""
        own = self._rank + self._world_size * np.arange(self.batch_size, dtype=np.int64)
        return step * self.batch_size * self._world_size + own

    def batch(self, step: int) -> WindowBatch:
        """The batch of training step `step`, from 0 on."""
        positions = self.window_numbers(step)
        epochs = positions // self.num_windows
        starts = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            within = positions[chosen] % self.num_windows
            starts[chosen] = permute(within, self.num_windows, self._seed, int(epoch))
        episodes = np.searchsorted(self._start_counts, starts, side="right")
        counts_before = np.concatenate([[0], self._start_counts])[episodes]
        return self.windows_at(episodes, starts - counts_before)

    def prefetch(self, start_step: int, stop_step: int, depth: int = 2) -> Iterator[WindowBatch]:
        """The batches of `start_step .. stop_step-1`, read ahead by a background thread."""
        with ThreadPoolExecutor(1, thread_name_prefix="windows") as reader:
            pending: deque[Future[WindowBatch]] = deque()
            for step in range(start_step, stop_step):
                pending.append(reader.submit(self.batch, step))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def windows_at(self, episode_indices: ArrayLike, start_rows: ArrayLike) -> WindowBatch:
        """Windows of one's own choice.

        Args:
            episode_indices: (B,) indices into `dataset.episodes`.
            start_rows: (B,) row of the episode that is row 0 of the window.

        Raises:
            UserError: a window would not hold `num_init_steps` real rows.
        """
        episodes = np.atleast_1d(np.asarray(episode_indices, np.int64))
        rows = np.atleast_1d(np.asarray(start_rows, np.int64))
        self._check_windows(episodes, rows)
        num_real = np.minimum(self._lengths[episodes] - rows, self.num_rows)
        valid = np.arange(self.num_rows)[:, None] < num_real
        first_rows = self._offsets[episodes] + rows
        done = self._gather("done", first_rows, num_real)
        action = self._gather("action", first_rows, num_real).astype(np.int64)
        action[~valid] = self.dataset.metadata.environment.null_action
        return WindowBatch(
            obs=self._gather("obs", first_rows, num_real),
            agent_hidden=self._gather("agent_hidden", first_rows, num_real),
            action=action,
            reward=self._gather("reward", first_rows, num_real),
            terminal=done & ~self._truncated[episodes],
            valid=valid,
            episode_id=self._episode_ids[episodes],
            start_row=rows,
            num_init_steps=self.num_init_steps,
        )

    def _gather(
        self, name: str, first_rows: NDArray[np.int64], num_real: NDArray[np.int64]
    ) -> NDArray[Any]:
        """(num_rows, B, ...) rows of one field, zero behind the real ones."""
        spec = self.dataset.step_field(name)
        is_frame = name == "obs" and self.dataset.metadata.environment.shows_images
        read_rows = self.dataset.read_rows if is_frame else self._small_fields.read_rows
        windows = np.empty((self.num_rows, len(first_rows), *spec.row_shape), spec.dtype)
        # HDF5 is a hundred times slower when it scatters into the strided batch by itself.
        buffer = np.empty((self.num_rows, *spec.row_shape), spec.dtype)
        # In the order of the files, which disks like.
        for index in np.argsort(first_rows):
            count = num_real[index]
            read_rows(name, int(first_rows[index]), buffer[:count])
            windows[:count, index] = buffer[:count]
            windows[count:, index] = 0
        return windows

    def _check_windows(self, episodes: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        if episodes.shape != rows.shape or episodes.ndim != 1:
            raise ValueError("windows_at: one start row per episode index is expected")
        if np.any((episodes < 0) | (episodes >= len(self._lengths))):
            raise UserError(f"{self.dataset.folder}: it has only {len(self._lengths)} episodes")
        bad = (rows < 0) | (rows + self.num_init_steps > self._lengths[episodes])
        if bad.any():
            index = int(np.argmax(bad))
            raise UserError(
                f"{self.dataset.folder}: a window at row {rows[index]} of episode "
                f"{self._episode_ids[episodes[index]]} does not have {self.num_init_steps} "
                f"initial rows, the episode has {self._lengths[episodes[index]]}"
            )


def _check_sizes(
    num_init_steps: int, num_sim_steps: int, batch_size: int, rank: int, world_size: int
) -> None:
    for name, value, least in (
        ("num_initializing_steps", num_init_steps, 2),
        ("num_sim_steps", num_sim_steps, 1),
        ("batch_size", batch_size, 1),
    ):
        if value < least:
            raise UserError(f"{name}: found {value}, expected at least {least}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not below world_size {world_size}")


def permute(positions: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Image of `positions` under a pseudo-random permutation of `0 .. size-1`.

    Computed point by point, without the permutation's table: a balanced Feistel network (Luby
    and Rackoff, "How to construct pseudorandom permutations", SIAM J. Comput. 1988) permutes the
    next power of four, and images outside the range are mapped again until they lie within
    ("cycle walking": Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

    Args:
        positions: (N,) numbers in `0 .. size-1`.
        size: at most 2^62.
        seed: keys the permutation, together with `epoch`.
        epoch: from 0 on.
    """
    sequence = np.random.SeedSequence([seed % 2**64, epoch])
    keys = np.asarray(sequence.generate_state(_FEISTEL_ROUNDS, np.uint64), np.uint64)
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    images = _feistel(positions.astype(np.uint64), half_bits, keys)
    while (outside := images >= size).any():
        images[outside] = _feistel(images[outside], half_bits, keys)
    return images.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], half_bits: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014): every bit of the input reaches every bit of the output."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
