"""How fast episodes are recorded, beside what the network alone allows, and in how much memory.

`python benchmarks/record.py` records CoinRun with a network of full width, in turns of seconds with
the network's forward pass alone on batches of the same size (a group of environments: the others
are played meanwhile), without and with the game's states. The recording is a process of its own,
which is stopped during the network's turns: the speed of a shared machine moves within a minute, so
that a recording and a pass before or after it may have met two machines. On a CPU with several
threads the pass alone is measured in two ways: one after the other, each with all threads, and two
at a time, each with half of them, as recording plays. It prints frames per second by the wall
clock, the ratios to both, and how many times smaller than its arrays the recording is on disk. Then
it records short episodes of the fake environment in processes of their own and prints their memory,
which must not grow with the number of episodes. The agent is untrained, and its levels are those
that a dataset begins with.
"""

import multiprocessing
import os
import re
import resource
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from agents.checkpoint import LoadedAgent, hash_agent
from agents.networks import NetworkConfig, RecurrentPolicy
from agents.recorder import group_sizes, record_episodes
from agents.recording_config import RecordingConfig
from environments.factory import (
    EnvironmentConfig,
    environment_spec,
    make_environment_from_spec,
)
from environments.fake import fake_spec
from environments.protocol import EnvironmentSpec
from experiment.command_line import parse_flags
from experiment.devices import resolve_device
from experiment.errors import run_entry_point
from experiment.parent import signal_at_end_of_parent
from rollouts.store import RolloutDataset

SEED = 0
_SECONDS_BETWEEN_SAMPLES = 0.2
_FRAME_SIZE = 32
"""Of the recording whose memory is measured: it has 20 shards in 20,000 episodes."""


@dataclass(frozen=True)
class Config:
    """Size of the benchmark."""

    num_frames: int = 100_000
    """Frames of each recording. In a short one nearly all are compressed after the last step, and
    all memory is new: an untrained agent's episodes last up to 1,000 steps."""
    num_forward_frames: int = 4000
    """Frames of each measurement of the network alone, which is a turn of it."""
    seconds_per_turn: float = 6.0
    """How long a recording runs before the network's next turn."""
    num_envs: int = 96
    """Environments played side by side."""
    repetitions: int = 3
    """Recordings; that of the median ratio is printed, and all ratios."""
    use_backgrounds: bool = False
    """Draw the game's backgrounds."""
    device: str = "cpu"
    """Where the network runs."""
    memory_episodes: tuple[int, ...] = (1000, 20_000)
    """Numbers of short episodes whose recording's memory is printed; none leaves it out."""


@dataclass(frozen=True)
class Speed:
    """Frames per second of one repetition, and how small its recording is."""

    forward: float
    """Passes one after the other."""
    forward_in_pairs: float
    """Two at a time."""
    recording: float
    compression: float

    @property
    def ratio(self) -> float:
        """Share of the network's own speed that recording reaches."""
        return self.recording / self.forward

    @property
    def ratio_to_pairs(self) -> float:
        """The same of two passes at a time."""
        return self.recording / self.forward_in_pairs


@dataclass(frozen=True)
class Memory:
    """Resident memory of a recording process, in MiB."""

    peak: float
    steady: float
    """Median over its second half."""


class _Recorded(NamedTuple):
    num_frames: int
    compression: float


def main() -> None:
    """Entry point."""
    config = parse_flags(Config, "Measure the speed and the memory of recording.")
    resolve_device(config.device)
    for with_state in (False, True):
        speeds = [measure_speed(config, with_state) for _ in range(config.repetitions)]
        median = sorted(speeds, key=lambda speed: speed.ratio)[len(speeds) // 2]
        print("with game states" if with_state else "without game states")
        print(f"  forward pass    {median.forward:8,.0f} frames/s")
        print(f"  two at a time   {median.forward_in_pairs:8,.0f} frames/s")
        print(
            f"  recording       {median.recording:8,.0f} frames/s, {median.ratio:.2f} of the first "
            f"and {median.ratio_to_pairs:.2f} of the second"
        )
        print(f"  all ratios      {', '.join(f'{speed.ratio:.2f}' for speed in speeds)}")
        print(f"  smaller by      {median.compression:8.1f} times (all fields)")
    for num_episodes in config.memory_episodes:
        memory = measure_memory(num_episodes)
        print(
            f"{num_episodes:>6} episodes   {memory.peak:8,.0f} MiB at the peak, "
            f"{memory.steady:,.0f} MiB steadily"
        )


def make_agent(spec: EnvironmentSpec, network: NetworkConfig, device: str) -> LoadedAgent:
    """An untrained agent, which plays at random."""
    torch.manual_seed(SEED)
    policy = RecurrentPolicy(network).requires_grad_(False).eval().to(device)
    return LoadedAgent(policy, spec, hash_agent(policy), Path("untrained"), 0)


def make_spec(config: Config) -> EnvironmentSpec:
    """What is recorded."""
    return environment_spec(
        EnvironmentConfig(env_name="coinrun", use_backgrounds=config.use_backgrounds)
    )


def measure_speed(config: Config, with_state: bool) -> Speed:
    """Time a recording in a process of its own and, in turns with it, the network alone."""
    spec = make_spec(config)
    agent = make_agent(spec, NetworkConfig(), config.device)
    seconds_recording, forward, forward_in_pairs = 0.0, [], []
    with tempfile.TemporaryDirectory() as folder, _recorder(config, with_state, folder) as recorder:
        is_done = False
        while not is_done:
            start = time.perf_counter()
            recorder.resume()
            is_done = recorder.connection.poll(config.seconds_per_turn)
            recorder.pause()
            seconds_recording += time.perf_counter() - start
            forward.append(measure_forward(agent, spec, config, config.num_forward_frames))
            forward_in_pairs.append(measure_forward_in_pairs(agent, spec, config))
        recorded: _Recorded = recorder.connection.recv()
    return Speed(
        statistics.harmonic_mean(forward),
        statistics.harmonic_mean(forward_in_pairs),
        recorded.num_frames / seconds_recording,
        recorded.compression,
    )


@dataclass(frozen=True)
class _Recorder:
    """A recording in a process of its own, which tells of its end through `connection`."""

    process_id: int
    connection: Connection

    def resume(self) -> None:
        os.kill(self.process_id, signal.SIGCONT)

    def pause(self) -> None:
        os.kill(self.process_id, signal.SIGSTOP)


@contextmanager
def _recorder(config: Config, with_state: bool, folder: str) -> Iterator[_Recorder]:
    """A recording that has just begun, paused; its process is ended on leaving."""
    context = multiprocessing.get_context("spawn")
    connection, connection_of_child = context.Pipe()
    process = context.Process(
        target=_record, args=(config, with_state, folder, connection_of_child)
    )
    process.start()
    # As long as this process held it too, the end of a child that died would go unnoticed.
    connection_of_child.close()
    try:
        assert process.pid is not None
        recorder = _Recorder(process.pid, connection)
        connection.recv()
        recorder.pause()
        connection.send("begin")
        yield recorder
        recorder.resume()
        process.join()
    finally:
        # One that failed, or that is left before its end, may be paused for ever.
        process.kill()


def _record(config: Config, with_state: bool, folder: str, connection: Connection) -> None:
    """Say when all is ready, record once the other end says so, and tell what it was."""
    # Whoever is asked to end the benchmark would else leave this process behind, paused for ever.
    signal_at_end_of_parent(signal.SIGKILL)
    device = resolve_device(config.device)
    spec = make_spec(config)
    agent = make_agent(spec, NetworkConfig(), str(device))
    # The first environment of a process reads the game's pictures, which takes seconds once.
    make_environment_from_spec(spec, 1).close()
    recording = RecordingConfig(
        max_episodes=config.num_frames,
        max_steps=config.num_frames,
        num_envs=config.num_envs,
        seed=SEED,
        with_state=with_state,
    )
    connection.send("ready")
    connection.recv()
    record_episodes(agent, spec, folder, recording, device)
    dataset = RolloutDataset(folder)
    size = sum(path.stat().st_size for path in dataset.shard_paths)
    connection.send(_Recorded(dataset.num_rows, dataset.raw_bytes / size))


def measure_forward_in_pairs(agent: LoadedAgent, spec: EnvironmentSpec, config: Config) -> float:
    """As `measure_forward`, of two threads that compute side by side with half the cores each."""
    num_threads, num_frames = torch.get_num_threads(), config.num_forward_frames
    if torch.device(config.device).type != "cpu" or num_threads < 2:
        return measure_forward(agent, spec, config, num_frames)

    def one_half(_: int) -> float:
        # A setting of the thread that calls it.
        torch.set_num_threads(num_threads // 2)
        return measure_forward(agent, spec, config, num_frames // 2)

    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(one_half, range(2)))


def measure_forward(
    agent: LoadedAgent, spec: EnvironmentSpec, config: Config, num_frames: int
) -> float:
    """Frames per second of the policy's step on images that are there already."""
    batch_size = max(group_sizes(config.num_envs))
    height, width, channels = spec.obs_shape
    frames = torch.rand(batch_size, height, width, channels, device=config.device)
    images = frames.permute(0, 3, 1, 2)
    state = agent.policy.initial_state(batch_size).to(config.device)
    first = torch.zeros(batch_size, dtype=torch.bool, device=config.device)
    num_steps = max(1, num_frames // batch_size)
    with torch.inference_mode():
        for _ in range(3):
            agent.policy.step(images, state, first)
        _synchronise(config.device)
        start = time.perf_counter()
        for _ in range(num_steps):
            state = agent.policy.step(images, state, first).state
        _synchronise(config.device)
    return num_steps * batch_size / (time.perf_counter() - start)


def _synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def measure_memory(num_episodes: int) -> Memory:
    """Memory of a fresh process that records so many episodes of the fake environment."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_record_short_episodes, args=(num_episodes, sender.send))
    process.start()
    memory = receiver.recv()
    process.join()
    return memory


def _record_short_episodes(num_episodes: int, send: Callable[[Memory], None]) -> None:
    torch.set_num_threads(1)
    spec = fake_spec(_FRAME_SIZE)
    shape = (_FRAME_SIZE, _FRAME_SIZE, 3)
    network = NetworkConfig(width=0.25, num_features=16, obs_shape=shape)
    agent = make_agent(spec, network, "cpu")
    config = RecordingConfig(
        max_episodes=num_episodes, num_envs=256, seed=SEED, num_threads=1, shard_size=16
    )
    samples, is_done = [], threading.Event()
    sampler = threading.Thread(target=_sample_memory, args=(samples, is_done))
    sampler.start()
    with tempfile.TemporaryDirectory() as folder:
        record_episodes(agent, spec, folder, config)
    is_done.set()
    sampler.join()
    send(Memory(_peak_memory(), statistics.median(samples[len(samples) // 2 :])))


def _peak_memory() -> float:
    # Not from getrusage, whose peak begins with that of the parent process.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def _sample_memory(samples: list[float], is_done: threading.Event) -> None:
    page = resource.getpagesize()
    while True:
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        samples.append(resident_pages * page / 2**20)
        if is_done.wait(_SECONDS_BETWEEN_SAMPLES):
            return


if __name__ == "__main__":
    run_entry_point(main)
