import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiment.errors import UserError
from rollouts.__main__ import describe, verify
from rollouts.merge import merge_datasets
from rollouts.store import RolloutDataset


def lines_of(dataset: RolloutDataset) -> dict[str, str]:
    lines = describe(dataset).splitlines()
    return {line[:10].strip(): line[11:] for line in lines}


def test_info_tells_what_the_episodes_are(write_rollouts, make_rollout):
    kinds = [{"level_seed": 30, "level_complete": True}, {"level_seed": 7}, {"level_seed": 7}]
    rollouts = [make_rollout(i, 4 + 2 * i, cut=i == 2, **kind) for i, kind in enumerate(kinds)]
    dataset = write_rollouts(rollouts)
    found = lines_of(dataset)
    returns = [rollout.reward.sum(dtype=np.float64) for rollout in rollouts]
    assert found["kind"] == "real rollouts of fake"
    assert found["options"] == "distribution_mode=easy"
    assert found["agent"] == "agent (agents/model_1)"
    assert found["episodes"] == "3, 18 rows"
    assert found["length"] == "mean 6.00, standard deviation 1.63, 4 to 8"
    assert found["return"].startswith(f"mean {np.mean(returns):.2f}, ")
    assert found["return"].endswith(f"{min(returns):.2f} to {max(returns):.2f}")
    assert (found["complete"], found["cut"]) == ("1 episodes, 33.3%", "1 episodes, 33.3%")
    assert found["levels"] == "2 different, 7 to 30"
    assert found["seed"] == "3"
    size = dataset.shard_paths[0].stat().st_size
    assert found["shards"].startswith(f"1, {size / 1e6:.1f} MB, ")
    assert "merged of" not in found


def test_info_tells_where_simulated_and_merged_episodes_are_from(
    tmp_path, write_rollouts, make_rollout
):
    folders = [
        write_rollouts([make_rollout(i, 4, simulated=True)], str(i)).folder for i in range(2)
    ]
    found = lines_of(merge_datasets(tmp_path / "out", folders))
    assert found["kind"] == "simulated rollouts of fake, informed"
    assert "levels" not in found
    assert found["merged of"] == f"{folders[0]}, {folders[1]}"


def test_verify_names_every_damaged_shard(write_rollouts, make_rollout):
    """Shards that cannot even be opened included, which no dataset can be made of."""
    dataset = write_rollouts([make_rollout(i, 10) for i in range(4)], shard_bytes=1)
    for path in (dataset.shard_paths[0], dataset.shard_paths[2]):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError) as refusal:
        verify(dataset.folder)
    found = [path.name in str(refusal.value) for path in dataset.shard_paths]
    assert found == [True, False, True, False]


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
