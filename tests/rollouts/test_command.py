import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def run_rollouts():
    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "rollouts", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    return run


@pytest.mark.medium
def test_info_verify_and_errors(run_rollouts, write_rollouts, make_rollout):
    dataset = write_rollouts([make_rollout(i, 10) for i in range(3)])
    info = run_rollouts("info", dataset.folder)
    assert info.returncode == 0
    assert "3, 30 rows" in info.stdout
    assert dataset.hash in info.stdout
    assert "all as they were sealed" in run_rollouts("verify", dataset.folder).stdout
    shard = dataset.shard_paths[0]
    content = bytearray(shard.read_bytes())
    content[-100:] = bytes(100)
    shard.write_bytes(content[:-300])
    damaged = run_rollouts("verify", dataset.folder)
    assert damaged.returncode == 2
    assert damaged.stderr.startswith("error: ")
    assert damaged.stderr.count("\n") == 1
    missing = run_rollouts("info", dataset.folder / "none")
    assert missing.returncode == 2
    assert "not a rollout dataset" in missing.stderr
