"""How fast the store writes and how fast random windows are read, on CoinRun frames.

`python benchmarks/windows.py` prints, for one process: frames written per second, the
compression, and frames read per second from the page cache: in order, frames alone, which is what
decompression allows; in random windows of 34 real rows, with all that a training batch holds; the
same without the cache of the small fields, as in a dataset beyond its budget; and in windows as
training draws them, whose padding is work but is not counted. Figures of reading are medians.
Seconds are processor time, so that other load on the machine counts less: set OMP_NUM_THREADS=1.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from environments.factory import EnvironmentConfig, make_environment
from environments.protocol import EnvironmentSpec
from experiment.command_line import parse_flags
from experiment.errors import run_entry_point
from rollouts.field_cache import DEFAULT_CACHE_BYTES
from rollouts.schema import DatasetMetadata
from rollouts.store import RolloutDataset, RolloutWriter
from rollouts.types import EpisodeInfo, Rollout, WindowBatch
from rollouts.windows import WindowSampler

NUM_ENVS = 64
EPISODE_LENGTH = 50
STATE_DIM = 64
SEED = 0


@dataclass(frozen=True)
class Config:
    """Size of the benchmark."""

    num_frames: int = 51_200
    """Frames to play, write and read."""
    num_windows: int = 2048
    """Windows to read."""
    batch_size: int = 32
    """Windows per batch."""
    repetitions: int = 5
    """Measurements of reading, of which the median is printed."""
    use_backgrounds: bool = False
    """Draw the game's backgrounds."""


class Stopwatch:
    """Processor seconds of a block."""

    seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time a block."""
        start = time.process_time()
        yield
        self.seconds = time.process_time() - start


def main() -> None:
    """Entry point."""
    config = parse_flags(Config, "Measure writing and reading of rollouts.")
    frames, spec = play_coinrun(config.num_frames, config.use_backgrounds)
    with tempfile.TemporaryDirectory() as folder:
        written = measure_writing(Path(folder), frames, spec)
        dataset = RolloutDataset(folder)
        size = sum(path.stat().st_size for path in dataset.shard_paths)
        in_order = measure_reading_in_order(dataset, config.repetitions)
        reading = {
            "windows": measure_windows(dataset, config, are_whole=True),
            "  without cache": measure_windows(dataset, config, are_whole=True, cache_bytes=0),
            "  with padding": measure_windows(dataset, config, are_whole=False),
        }
    raw_size = dataset.num_rows * dataset.metadata.row_bytes
    print(f"written           {written:10,.0f} frames/s")
    print(f"smaller by        {raw_size / size:10.1f} times (all fields)")
    print(f"frames in order   {in_order:10,.0f} frames/s")
    for name, rate in reading.items():
        print(f"{name:<17} {rate:10,.0f} frames/s, {rate / in_order:.2f} of in order")


def play_coinrun(
    num_frames: int, use_backgrounds: bool
) -> tuple[NDArray[np.uint8], EnvironmentSpec]:
    """(N, H, W, C) frames of random play, those of one environment after the other's."""
    config = EnvironmentConfig(env_name="coinrun", use_backgrounds=use_backgrounds)
    env = make_environment(config, NUM_ENVS, seed=SEED)
    rng = np.random.default_rng(SEED)
    frames = []
    for _ in range(-(-num_frames // NUM_ENVS)):
        frames.append(env.observe().obs.copy())
        # Mostly rightwards and jumping, so that the levels scroll by.
        env.send(rng.choice([7, 7, 7, 8, 5, 1], NUM_ENVS).astype(np.int32))
    env.close()
    return np.stack(frames, axis=1).reshape(-1, *env.spec.obs_shape), env.spec


def measure_writing(folder: Path, frames: NDArray[np.uint8], spec: EnvironmentSpec) -> float:
    """Frames written per second, the other fields and the hashes included."""
    metadata = DatasetMetadata(spec, "agent", "", STATE_DIM, (0, STATE_DIM), spec.num_actions)
    rollouts = [
        make_rollout(index, frames[start : start + EPISODE_LENGTH], spec.num_actions)
        for index, start in enumerate(range(0, len(frames), EPISODE_LENGTH))
    ]
    stopwatch = Stopwatch()
    with stopwatch.running(), RolloutWriter(folder, metadata) as writer:
        for rollout in rollouts:
            writer.write(rollout)
    return len(frames) / stopwatch.seconds


def make_rollout(index: int, obs: NDArray[np.uint8], num_actions: int) -> Rollout:
    """An episode of the given frames whose other fields are noise."""
    rng = np.random.default_rng([SEED, index])
    length = len(obs)
    return Rollout(
        obs=obs,
        agent_hidden=np.tanh(rng.normal(size=(length, STATE_DIM))).astype(np.float32),
        action_logits=rng.normal(size=(length, num_actions)).astype(np.float32),
        value=rng.normal(size=length).astype(np.float32),
        action=rng.integers(num_actions, size=length, dtype=np.int32),
        behaviour_log_prob=rng.normal(size=length).astype(np.float32),
        reward=np.zeros(length, np.float32),
        done=np.arange(length) == length - 1,
        info=EpisodeInfo(index, "agent", np.zeros(STATE_DIM, np.float32)),
    )


def measure_reading_in_order(dataset: RolloutDataset, repetitions: int) -> float:
    """Frames per second, `obs` alone, each chunk decompressed once."""
    seconds = []
    for _ in range(repetitions):
        stopwatch = Stopwatch()
        with stopwatch.running():
            for _ in dataset.iter_field("obs", 1600):
                pass
        seconds.append(stopwatch.seconds)
    return dataset.num_rows / statistics.median(seconds)


def measure_windows(
    dataset: RolloutDataset,
    config: Config,
    are_whole: bool,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> float:
    """Real frames per second in random windows, with all that a window holds."""
    sampler = WindowSampler(dataset, 3, 32, config.batch_size, SEED, cache_bytes=cache_bytes)
    num_batches = max(1, config.num_windows // config.batch_size)
    draw = draw_whole_windows if are_whole else WindowSampler.batch
    rates = []
    # The first round fills the caches.
    for _ in range(1 + config.repetitions):
        stopwatch = Stopwatch()
        with stopwatch.running():
            num_rows = sum(int(draw(sampler, step).valid.sum()) for step in range(num_batches))
        rates.append(num_rows / stopwatch.seconds)
    return statistics.median(rates[1:])


def draw_whole_windows(sampler: WindowSampler, step: int) -> WindowBatch:
    """Random windows without padding."""
    rng = np.random.default_rng([SEED, step])
    lengths = sampler.dataset.episodes["length"].to_numpy()
    long_enough = np.flatnonzero(lengths >= sampler.num_rows)
    episodes = rng.choice(long_enough, sampler.batch_size)
    return sampler.windows_at(episodes, rng.integers(lengths[episodes] - sampler.num_rows + 1))


if __name__ == "__main__":
    run_entry_point(main)
