"""Minari reads what is exported, pixel by pixel, and it comes back bit by bit."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import minari
import numpy as np
import pytest

from environments.game_steps import CAMERA_COLUMNS
from environments.game_trace import ENTITY_COLUMNS, GameTables, GameTrace
from experiment.errors import UserError
from rollouts import __main__ as command
from rollouts.minari_format import REPEATED_FRAME, export_minari, import_minari
from rollouts.store import RolloutDataset, RolloutWriter, verify_dataset

KINDS = [
    {"level_seed": 2**31 - 1, "level_complete": True},
    {"truncated": True},
    {"cut": True, "interventions": ({"kind": "swap", "pairs": [[1, None]]}, {"ü": 1.5})},
    {"twin_of": 1},
]


@pytest.mark.parametrize("simulated", [False, True])
def test_rollouts_come_back_bit_by_bit(
    simulated, tmp_path, write_rollouts, make_rollout, make_metadata, assert_same_rollouts
):
    rollouts = [
        make_rollout(7 * i, length, simulated=simulated, **kind)
        for i, (length, kind) in enumerate(zip([1, 40, 17, 16], KINDS, strict=True))
    ]
    dataset = write_rollouts(rollouts, shard_bytes=make_metadata().row_bytes * 30)
    export_minari(dataset, tmp_path / "exported")
    again = import_minari(tmp_path / "exported", tmp_path / "again")
    assert again.num_episodes == len(rollouts)
    for index, rollout in enumerate(rollouts):
        assert_same_rollouts(again.read_episode(index), rollout)
    assert again.metadata == dataset.metadata
    assert verify_dataset(again.folder) == []


def make_trace(length: int, num_changes: int) -> GameTrace:
    rng = np.random.default_rng(length)
    counts = rng.integers(1, 4, length, dtype=np.int32)
    changes = np.zeros(length, np.int32)
    changes[-1] = num_changes
    variables = rng.normal(size=(length, 2)).astype(np.float32)
    variables[0, 1] = np.nan
    return GameTrace(
        variables=variables,
        camera=rng.normal(size=(length, len(CAMERA_COLUMNS))).astype(np.float32),
        num_entities=counts,
        entities=rng.normal(size=(counts.sum(), len(ENTITY_COLUMNS))).astype(np.float32),
        num_grid_changes=changes,
        grid_changes=rng.integers(9, size=(num_changes, 3), dtype=np.int32),
        grid=rng.integers(9, size=(4, length), dtype=np.int32),
    )


def test_game_states_come_back_bit_by_bit(tmp_path, make_metadata, make_rollout):
    metadata = replace(make_metadata(), game=GameTables(variables=("a", "b")))
    traces = [make_trace(5, num_changes=0), make_trace(9, num_changes=3)]
    with RolloutWriter(tmp_path / "data", metadata) as writer:
        for number, trace in enumerate(traces):
            writer.write(replace(make_rollout(number, len(trace.camera)), game=trace))
    dataset = RolloutDataset(tmp_path / "data")
    export_minari(dataset, tmp_path / "out")
    again = import_minari(tmp_path / "out", tmp_path / "again")
    assert again.hash == dataset.hash
    for index, trace in enumerate(traces):
        found = again.read_episode(index).game
        assert found is not None
        for field in fields(GameTrace):
            array, expected = getattr(found, field.name), getattr(trace, field.name)
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected, err_msg=field.name)


def test_large_frames_are_not_compressed_as_images(tmp_path, make_metadata, make_rollout):
    shape = (64, 64, 3)
    metadata = make_metadata()
    metadata = replace(metadata, environment=replace(metadata.environment, obs_shape=shape))
    noise = np.random.default_rng(0).integers(256, size=(5, *shape), dtype=np.uint8)
    with RolloutWriter(tmp_path / "data", metadata) as writer:
        writer.write(replace(make_rollout(0, 5), obs=noise))
    export_minari(RolloutDataset(tmp_path / "data"), tmp_path / "out")
    found = import_minari(tmp_path / "out", tmp_path / "again").read_episode(0)
    np.testing.assert_array_equal(found.obs, noise)


def test_minari_finds_what_its_standard_asks_for(
    tmp_path, monkeypatch, write_rollouts, make_rollout
):
    rollouts = [make_rollout(10 + i, 3 + i, **kind) for i, kind in enumerate(KINDS)]
    export_minari(write_rollouts(rollouts), tmp_path / "coinrun-agent-v3")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("coinrun-agent-v3")
    assert (dataset.total_episodes, dataset.total_steps) == (4, sum(map(len, rollouts)))
    for episode, rollout in zip(dataset.iterate_episodes(), rollouts, strict=True):
        num_rows = len(rollout)
        assert all(dataset.observation_space.contains(frame) for frame in episode.observations)
        np.testing.assert_array_equal(episode.observations[:-1, 0], rollout.obs)
        np.testing.assert_array_equal(episode.observations[-1, 0], rollout.obs[-1])
        flags = episode.infos[REPEATED_FRAME]
        assert flags.tolist() == [False] * num_rows + [True]
        assert not episode.terminations[:-1].any()
        assert not episode.truncations[:-1].any()
        assert episode.truncations[-1] == (rollout.info.cut or rollout.info.truncated)
        assert episode.terminations[-1] != episode.truncations[-1]
        np.testing.assert_array_equal(episode.rewards, rollout.reward)
        np.testing.assert_array_equal(episode.infos["agent_hidden"][:-1], rollout.agent_hidden)
    metadata = list(dataset.storage.get_episode_metadata(range(4)))
    assert [row["level_seed"] for row in metadata] == [2**31 - 1, -1, -1, -1]
    assert [bool(row["cut"]) for row in metadata] == [False, False, True, False]


def test_a_dataset_is_written_to_a_relative_path(
    tmp_path, monkeypatch, write_rollouts, make_rollout
):
    dataset = write_rollouts([make_rollout(0, 4)])
    monkeypatch.chdir(tmp_path)
    export_minari(dataset, Path("out"))
    assert import_minari(Path("out"), Path("again")).hash == dataset.hash


def test_all_or_nothing_is_written(tmp_path, write_rollouts, make_rollout):
    dataset = write_rollouts([make_rollout(0, 4)])
    for out, complaint in ((dataset.folder, "exists already"), (tmp_path / "a b", "a name of")):
        with pytest.raises(UserError, match=complaint):
            export_minari(dataset, out)
    export_minari(dataset, tmp_path / "out")
    path = tmp_path / "out" / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    for key, value, complaint in (
        ("total_episodes", 2, "not an export"),
        ("dreamscope_dataset", None, "did not write"),
    ):
        path.write_text(json.dumps({**metadata, key: value}))
        with pytest.raises(UserError, match=complaint):
            import_minari(tmp_path / "out", tmp_path / "again")
        path.write_text("{")
    with pytest.raises(UserError, match="not a Minari dataset"):
        import_minari(tmp_path / "out", tmp_path / "again")
    with pytest.raises(UserError, match="not a Minari dataset"):
        import_minari(tmp_path / "none", tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_a_missing_minari_is_named_with_the_command(
    tmp_path, monkeypatch, write_rollouts, make_rollout
):
    dataset = write_rollouts([make_rollout(0, 4)])
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match=r"minari is not installed.*pip install .*\[minari\]"):
        export_minari(dataset, tmp_path / "out")
    with pytest.raises(UserError, match="pip install"):
        import_minari(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "out").exists()


def test_commands_export_and_import(tmp_path, monkeypatch, capsys, write_rollouts, make_rollout):
    folder = write_rollouts([make_rollout(i, 4) for i in range(2)]).folder

    def run(*arguments: object) -> None:
        monkeypatch.setattr("sys.argv", ["rollouts", *map(str, arguments)])
        command.main()

    run("export", folder, "--format", "minari", "--out", tmp_path / "x")
    run("import", tmp_path / "x", "--format", "minari", "--out", tmp_path / "y")
    assert "2, 8 rows" in capsys.readouterr().out
    assert RolloutDataset(tmp_path / "y").hash == RolloutDataset(folder).hash
