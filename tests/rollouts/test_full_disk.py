"""A disk that is really full: a clear error, sealed shards intact, and the dataset goes on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiment.errors import UserError
from rollouts.merge import merge_datasets
from rollouts.store import RolloutDataset, RolloutWriter, verify_dataset

SCRIPT = Path(__file__).with_name("write_episodes.py")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 kB of its own, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no disk could be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def write_until_full(folder: Path, first_id: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "0", str(first_id), "-1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.mark.medium
def test_a_full_disk_ends_the_recording_in_one_line(
    small_disk, make_metadata, make_rollout, assert_same_rollouts
):
    data = small_disk / "data"
    written = write_until_full(data, first_id=0)
    assert written.returncode == 2
    assert written.stderr.startswith(f"error: disk full while writing {data}/shard-0-")
    assert written.stderr.endswith("the sealed shards are intact\n")
    assert written.stderr.count("\n") == 1
    sealed = RolloutDataset(data)
    assert verify_dataset(data) == []
    assert sealed.num_episodes >= 3
    for index, episode_id in enumerate(sealed.episodes["episode_id"].to_list()):
        assert_same_rollouts(sealed.read_episode(index), make_rollout(episode_id, 20))
    assert not list(data.glob("*.partial"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    with RolloutWriter(data, make_metadata()) as writer:
        writer.write(make_rollout(1000, 20))
    assert RolloutDataset(data).num_episodes == sealed.num_episodes + 1
    assert verify_dataset(data) == []


@pytest.mark.medium
def test_a_merge_that_fills_the_disk_leaves_nothing(
    small_disk, tmp_path, monkeypatch, write_rollouts, make_rollout
):
    folders = [
        write_rollouts([make_rollout(10 * i + j, 40) for j in range(6)], f"d{i}").folder
        for i in range(2)
    ]
    with pytest.raises(UserError, match=r"merge: .* are needed"):
        merge_datasets(small_disk / "out", folders)
    # The check before the start knows nothing of who else fills the disk.
    monkeypatch.setattr("rollouts.merge.require_free_space", lambda *arguments: None)
    with pytest.raises(UserError, match="disk full while writing"):
        merge_datasets(small_disk / "out", folders)
    assert not list(small_disk.iterdir())
