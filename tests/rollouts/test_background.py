"""Rollouts written in a thread: the same ones, in bounded memory, and no failure goes unseen."""

import itertools
import threading

import pytest

from experiment.errors import UserError
from rollouts import background
from rollouts.background import write_in_background
from rollouts.chunk_writer import ChunkWriter
from rollouts.description import METADATA_FILE
from rollouts.sealing import list_shards
from rollouts.store import RolloutDataset, RolloutWriter, verify_dataset


def test_the_dataset_is_the_one_written_directly(
    tmp_path, make_metadata, make_rollout, write_rollouts
):
    rollouts = [make_rollout(i, 1 + 7 * i % 30) for i in range(40)]
    size = make_metadata().row_bytes * 50
    direct = write_rollouts(rollouts, "direct", shard_bytes=size)
    with RolloutWriter(tmp_path / "data", make_metadata(), shard_bytes=size) as writer:
        assert write_in_background(writer, iter(rollouts), 60.0) == direct.num_rows
    assert RolloutDataset(tmp_path / "data").hash == direct.hash


def test_shards_are_sealed_now_and_then(tmp_path, make_metadata, make_rollout):
    with RolloutWriter(tmp_path, make_metadata()) as writer:
        write_in_background(writer, (make_rollout(i, 3) for i in range(4)), -1.0)
    assert len(list_shards(tmp_path)) == 4


def test_a_failure_ends_the_making_and_keeps_sealed_shards(tmp_path, make_metadata, make_rollout):
    num_made, metadata = 0, make_metadata()

    def make_many():
        nonlocal num_made
        for number in range(10**6):
            num_made += 1
            yield make_rollout(number if number != 7 else 2, 10)

    size = metadata.row_bytes * 10
    with (
        pytest.raises(UserError, match="episode_id 2 exists"),
        RolloutWriter(tmp_path, metadata, shard_bytes=size) as writer,
    ):
        write_in_background(writer, make_many(), 60.0)
    assert num_made < 2 * background.MAX_WAITING_ROWS / 10
    assert set(range(7)) <= set(RolloutDataset(tmp_path).episodes["episode_id"])
    assert not any(thread.name.startswith("writer") for thread in threading.enumerate())


def test_what_a_compressing_thread_runs_into_ends_the_making(
    tmp_path, monkeypatch, make_metadata, make_rollout
):
    encode, num_encoded = ChunkWriter._encode, itertools.count()

    def encode_or_fail(self, chunk):
        if next(num_encoded) == 400:
            raise MemoryError("no room to compress")
        return encode(self, chunk)

    monkeypatch.setattr(ChunkWriter, "_encode", encode_or_fail)
    threads_before, metadata = set(threading.enumerate()), make_metadata()
    with (
        pytest.raises(MemoryError, match="no room to compress"),
        RolloutWriter(tmp_path, metadata, shard_bytes=metadata.row_bytes * 600) as writer,
    ):
        write_in_background(writer, (make_rollout(i, 600) for i in range(1000)), 60.0)
    sealed = RolloutDataset(tmp_path)
    assert 0 < sealed.num_episodes < 1000
    assert verify_dataset(tmp_path) == []
    assert {*tmp_path.iterdir()} == {tmp_path / METADATA_FILE, *sealed.shard_paths}
    begun = set(threading.enumerate()) - threads_before
    assert not any(thread.name.startswith("compressor") for thread in begun)


def test_who_makes_faster_than_the_disk_takes_waits(
    tmp_path, monkeypatch, make_metadata, make_rollout
):
    monkeypatch.setattr(background, "MAX_WAITING_ROWS", 100)
    lock, num_written, most_ahead = threading.Lock(), 0, 0
    write = RolloutWriter.write

    def write_and_count(self, rollout):
        nonlocal num_written
        write(self, rollout)
        with lock:
            num_written += 1

    def make():
        nonlocal most_ahead
        for number in range(60):
            with lock:
                most_ahead = max(most_ahead, number - num_written)
            yield make_rollout(number, 10)

    monkeypatch.setattr(RolloutWriter, "write", write_and_count)
    with RolloutWriter(tmp_path, make_metadata()) as writer:
        write_in_background(writer, make(), 60.0)
    assert num_written == 60
    assert most_ahead <= 11
