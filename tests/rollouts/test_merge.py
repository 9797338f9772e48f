"""Merging and exporting: every episode comes back bit by bit, or nothing is written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from experiment.errors import UserError
from rollouts import __main__ as command
from rollouts.description import read_metadata
from rollouts.export import export_npz, read_npz
from rollouts.merge import merge_datasets
from rollouts.store import RolloutDataset, RolloutWriter, verify_dataset


def test_merged_dataset_has_the_episodes_of_all(
    tmp_path, write_rollouts, make_rollout, make_metadata, assert_same_rollouts
):
    shard_bytes = make_metadata().row_bytes * 10
    a = write_rollouts([make_rollout(i, 6) for i in (0, 2, 4)], "a", shard_bytes=shard_bytes)
    b = write_rollouts([make_rollout(i, 7) for i in (1, 3)], "b")
    merged = merge_datasets(tmp_path / "new" / "out", [a.folder, b.folder])
    assert sorted(merged.episodes["episode_id"]) == [0, 1, 2, 3, 4]
    for index, episode_id in enumerate(merged.episodes["episode_id"].to_list()):
        expected = make_rollout(episode_id, 6 + episode_id % 2)
        assert_same_rollouts(merged.read_episode(index), expected)
    assert verify_dataset(merged.folder) == []
    assert merged.num_rows == a.num_rows + b.num_rows
    provenance = merged.metadata.provenance
    assert provenance["seed"] == 3
    assert [item["hash"] for item in provenance["merged_from"]] == [a.hash, b.hash]
    with RolloutWriter(merged.folder, make_metadata()) as writer:
        writer.write(make_rollout(5, 3))
    assert RolloutDataset(merged.folder).num_episodes == 6


def test_only_what_all_share_stays_in_the_provenance(tmp_path, make_metadata, make_rollout):
    configs = [{"seed": 1, "greedy": True, "a": 1}, {"seed": 2, "greedy": True}]
    for index, config in enumerate(configs):
        metadata = replace(make_metadata(), provenance={"config": config})
        with RolloutWriter(tmp_path / str(index), metadata) as writer:
            writer.write(make_rollout(index, 3))
    merge_datasets(tmp_path / "out", [tmp_path / "0", tmp_path / "1"])
    assert read_metadata(tmp_path / "out").provenance["config"] == {"greedy": True}


def test_what_does_not_belong_together_is_refused(
    tmp_path, write_rollouts, make_rollout, make_metadata
):
    a = write_rollouts([make_rollout(0, 4), make_rollout(1, 4)], "a").folder
    same_id = write_rollouts([make_rollout(1, 4)], "b").folder
    hard = tmp_path / "hard"
    with RolloutWriter(hard, make_metadata(distribution_mode="hard")) as writer:
        writer.write(make_rollout(2, 4))
    damaged = write_rollouts([make_rollout(3, 4)], "damaged").folder
    with h5py.File(damaged / "shard-0-00000.h5", "r+") as file:
        file["steps/value"][1] += 1  # type: ignore[index]
    for folders, complaint in (
        ([a, hard], r"hard: differs from .*a in `environment\.options\.distribution_mode`"),
        ([a, same_id], r"b: episode_id 1 occurs in .*a too"),
        ([a, a], r"episode_id 0 occurs"),
        ([a, damaged], r"damaged/shard-0-00000\.h5: the content differs from the hash"),
        ([a, tmp_path / "none"], "not a rollout dataset"),
        ([], "no dataset is given"),
    ):
        with pytest.raises(UserError, match=complaint):
            merge_datasets(tmp_path / "out", folders)
        assert not list(tmp_path.glob("*out*"))
    with pytest.raises(UserError, match="exists already"):
        merge_datasets(a, [same_id])


@pytest.mark.parametrize("simulated", [False, True])
def test_exported_episodes_are_the_same_when_read_back(
    simulated, tmp_path, write_rollouts, make_rollout, assert_same_rollouts
):
    kinds = [{"level_seed": 7, "interventions": ({"ü": [1, None]},)}, {"twin_of": 4}]
    rollouts = [make_rollout(i, 5 + i, simulated=simulated, **k) for i, k in enumerate(kinds)]
    dataset = write_rollouts(rollouts)
    export_npz(dataset, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["description.json", "episode-00000000.npz", "episode-00000001.npz"]
    for index, rollout in enumerate(rollouts):
        found = read_npz(tmp_path / "out" / names[1 + index], dataset.metadata)
        assert_same_rollouts(found, rollout)


def test_exported_arrays_have_the_names_of_the_format(tmp_path, write_rollouts, make_rollout):
    rollout = make_rollout(3, 5, level_seed=9)
    dataset = write_rollouts([rollout])
    export_npz(dataset, tmp_path / "out")
    description = json.loads((tmp_path / "out" / "description.json").read_text())
    fields = [f["name"] for f in (*description["step_fields"], *description["episode_fields"])]
    with np.load(tmp_path / "out" / "episode-00000003.npz", allow_pickle=False) as file:
        assert set(file.files) == set(fields) - {"offset"}
        assert file["level_seed"].shape == ()
        assert file["length"] == 5
        assert file["return"] == rollout.reward.sum(dtype=np.float64)
        assert file["interventions"].item() == "[]"


def test_export_writes_all_or_nothing(tmp_path, monkeypatch, write_rollouts, make_rollout):
    dataset = write_rollouts([make_rollout(0, 4)])
    with pytest.raises(UserError, match="exists already"):
        export_npz(dataset, dataset.folder)
    usage = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr("experiment.files.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"--out: .* are needed"):
        export_npz(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for content in ("text", "", "PK\x03\x04"):
        (tmp_path / "other.npz").write_text(content)
        with pytest.raises(UserError, match=r"other\.npz: not an exported episode"):
            read_npz(tmp_path / "other.npz", dataset.metadata)


@pytest.mark.parametrize("make", ["merge", "export"])
def test_a_folder_that_fills_up_in_the_meantime_is_left_alone(
    make, tmp_path, monkeypatch, write_rollouts, make_rollout
):
    dataset, out = write_rollouts([make_rollout(0, 4)]), tmp_path / "out"

    def fill_meanwhile(*arguments: object) -> None:
        out.mkdir()
        (out / "precious").touch()

    monkeypatch.setattr("rollouts.merge.require_free_space", fill_meanwhile)
    monkeypatch.setattr("rollouts.export.require_free_space", fill_meanwhile)
    with pytest.raises(UserError, match=r"out: another process has filled it"):
        merge_datasets(out, [dataset.folder]) if make == "merge" else export_npz(dataset, out)
    assert [path.name for path in out.iterdir()] == ["precious"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_an_exported_episode_of_another_dataset_is_refused(tmp_path, write_rollouts, make_rollout):
    dataset = write_rollouts([make_rollout(0, 4)])
    export_npz(dataset, tmp_path / "out")
    other = replace(dataset.metadata, agent_hash="another")
    with pytest.raises(UserError, match="agent_hash"):
        read_npz(tmp_path / "out" / "episode-00000000.npz", other)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> None:
    monkeypatch.setattr("sys.argv", ["rollouts", *map(str, arguments)])
    command.main()


def test_commands_merge_and_export(tmp_path, monkeypatch, capsys, write_rollouts, make_rollout):
    a, b = (write_rollouts([make_rollout(i, 4)], str(i)).folder for i in range(2))
    run_command(monkeypatch, "merge", tmp_path / "out", a, b)
    assert "2, 8 rows" in capsys.readouterr().out
    run_command(monkeypatch, "export", tmp_path / "out", "--format", "npz", "--out", tmp_path / "x")
    assert len(list((tmp_path / "x").glob("*.npz"))) == 2
    run_command(monkeypatch, "verify", tmp_path / "out")
    run_command(monkeypatch, "info", tmp_path / "out")
    for arguments in (["export", a], ["export", a, "--out", "y", "--format", "csv"], ["merge"]):
        with pytest.raises(UserError):
            run_command(monkeypatch, *arguments)
