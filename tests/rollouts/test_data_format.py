"""A reader written from docs/data_format.md alone, with h5py, JSON and SHA-256."""

import hashlib
import json
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401 (registers the Blosc filter)
import numpy as np
import pytest

from environments.game_trace import ENTITY_COLUMNS, GameTables, GameTrace
from rollouts.saved_states import pack_states
from rollouts.store import RolloutDataset, RolloutWriter


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_array(file: h5py.File, name: str) -> h5py.Dataset:
    array = file[name]
    assert isinstance(array, h5py.Dataset)
    return array


def column_bytes(file: h5py.File, name: str, dtype: str) -> bytes:
    array = read_array(file, name)
    if dtype == "string":
        return b"".join(text + b"\0" for text in array[:])
    return array[:].astype(np.dtype(dtype).newbyteorder("<")).tobytes()


def content_hash(path: Path, description: dict) -> str:
    with h5py.File(path, locking=False) as file:
        lines = []
        for group, fields in (
            ("steps", "step_fields"),
            ("ragged", "ragged_fields"),
            ("episodes", "episode_fields"),
        ):
            for field in description.get(fields, ()):
                content = column_bytes(file, f"{group}/{field['name']}", field["dtype"])
                lines.append(f"{field['name']} {sha256(content)}\n")
        assert file.attrs["content_hash"] == sha256("".join(lines).encode())
        return str(file.attrs["content_hash"])


def dataset_hash(folder: Path) -> str:
    description = json.loads((folder / "dataset.json").read_text())
    hashes = sorted(content_hash(path, description) for path in folder.glob("shard-*-*.h5"))
    identity = {k: v for k, v in description.items() if k not in ("provenance", "agent_file")}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return sha256("\n".join([text, *hashes]).encode())


def test_a_reader_made_from_the_documentation(write_rollouts, make_rollout, make_metadata):
    rollouts = [make_rollout(i, 5 + i, simulated=True, twin_of=i) for i in range(6)]
    row_bytes = make_metadata(simulated=True).row_bytes
    dataset = write_rollouts(rollouts, shard_bytes=row_bytes * 15)
    description = json.loads((dataset.folder / "dataset.json").read_text())
    paths = sorted(dataset.folder.glob("shard-*-*.h5"))
    assert len(paths) > 1

    found = []
    for path in paths:
        with h5py.File(path, locking=False) as file:
            steps = file["steps"]
            assert isinstance(steps, h5py.Group)
            assert set(steps) == {field["name"] for field in description["step_fields"]}
            offsets = read_array(file, "episodes/offset")[:]
            lengths = read_array(file, "episodes/length")[:]
            obs = read_array(file, "steps/obs")
            found += [obs[o : o + n] for o, n in zip(offsets, lengths, strict=True)]
    for frames, rollout in zip(found, rollouts, strict=True):
        np.testing.assert_array_equal(frames, rollout.obs)

    assert dataset.hash == dataset_hash(dataset.folder)


TABLES = GameTables(variables=("step", "coin_dx"))


def make_trace(seed: int, length: int) -> GameTrace:
    """Any game states: between one and four entities, up to three changes of a small grid."""
    rng = np.random.default_rng(seed)
    num_entities = rng.integers(1, 5, length).astype(np.int32)
    num_changes = rng.integers(0, 4, length).astype(np.int32)
    num_changes[0] = 0
    height, width = 2 + seed, 3
    cells = rng.integers([height, width, 9], size=(num_changes.sum(), 3)).astype(np.int32)
    return GameTrace(
        variables=rng.normal(size=(length, len(TABLES.variables))).astype(np.float32),
        camera=rng.normal(size=(length, len(TABLES.camera_columns))).astype(np.float32),
        num_entities=num_entities,
        entities=rng.normal(size=(num_entities.sum(), len(ENTITY_COLUMNS))).astype(np.float32),
        num_grid_changes=num_changes,
        grid_changes=cells,
        grid=rng.integers(9, size=(height, width)).astype(np.int32),
    )


def parts_of(array: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(array, np.cumsum(lengths)[:-1])


def read_game_states(file: h5py.File, description: dict) -> list[dict[str, list[np.ndarray]]]:
    """For each episode of a shard its entities and its grid, row by row, as the page says."""
    ragged = {
        field["name"]: parts_of(
            read_array(file, f"ragged/{field['name']}")[:],
            read_array(file, f"episodes/{field['name']}_length")[:],
        )
        for field in description["ragged_fields"]
    }
    shapes = read_array(file, "episodes/game_grid_shape")[:]
    steps = {
        name: parts_of(read_array(file, f"steps/{name}")[:], read_array(file, "episodes/length")[:])
        for name in ("game_num_entities", "game_num_grid_changes")
    }
    episodes = []
    for i, shape in enumerate(shapes):
        entities = parts_of(ragged["game_entities"][i], steps["game_num_entities"][i])
        grid, grids = ragged["game_grid"][i].reshape(shape).copy(), []
        for changes in parts_of(ragged["game_grid_changes"][i], steps["game_num_grid_changes"][i]):
            for row, column, cell in changes:
                grid[row, column] = cell
            grids.append(grid.copy())
        episodes.append({"entities": entities, "grids": grids})
    return episodes


@pytest.fixture
def with_states(tmp_path, make_rollout, make_metadata) -> tuple[RolloutDataset, list[GameTrace]]:
    """Two shards of two episodes each."""
    traces = [make_trace(i, 4 + i) for i in range(4)]
    metadata = replace(make_metadata(), game=TABLES)
    with RolloutWriter(tmp_path, metadata) as writer:
        for i, trace in enumerate(traces):
            writer.write(replace(make_rollout(i, 4 + i), game=trace))
            if i == 1:
                writer.seal()
    return RolloutDataset(tmp_path), traces


def test_game_states_are_where_the_documentation_says(with_states):
    dataset, traces = with_states
    description = json.loads((dataset.folder / "dataset.json").read_text())
    assert description["schema_version"] == 2
    assert description["game"]["variables"] == list(TABLES.variables)
    found = []
    for path in sorted(dataset.folder.glob("shard-*-*.h5")):
        with h5py.File(path, locking=False) as file:
            found += read_game_states(file, description)
    for episode, trace in zip(found, traces, strict=True):
        for row in range(len(trace.num_entities)):
            np.testing.assert_array_equal(episode["entities"][row], trace.entities_at(row))
            np.testing.assert_array_equal(episode["grids"][row], trace.grid_at(row))
    assert dataset.hash == dataset_hash(dataset.folder)


def test_saved_states_by_a_reader_made_from_the_documentation(
    tmp_path, make_rollout, make_metadata
):
    states = [[b"one", b"three"], [], [b"0"]]
    with RolloutWriter(tmp_path, replace(make_metadata(), save_state_every=3)) as writer:
        for episode_id, (length, own) in enumerate(zip((8, 3, 4), states, strict=True)):
            packed = vars(pack_states(own, 3))
            writer.write(replace(make_rollout(episode_id, length), **packed))
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert (description["schema_version"], description["save_state_every"]) == (3, 3)
    path = tmp_path / "shard-0-00000.h5"
    content_hash(path, description)
    with h5py.File(path, locking=False) as file:
        table = read_array(file, "ragged/saved_state_table")[:]
        content = read_array(file, "ragged/saved_states")[:].tobytes()
        num_states = read_array(file, "episodes/saved_state_table_length")[:]
        num_bytes = read_array(file, "episodes/saved_states_length")[:]
    assert num_states.tolist() == [2, 0, 1]
    assert num_bytes.tolist() == [8, 0, 1]
    assert table[:, 0].tolist() == [3, 6, 3]
    stops = np.cumsum(table[:, 1])
    found = [content[stop - size : stop] for stop, size in zip(stops, table[:, 1], strict=True)]
    assert found == [b"one", b"three", b"0"]
    assert table[:, 2].tolist() == [zlib.crc32(state) for state in found]
