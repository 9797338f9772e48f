"""Environment states kept in a dataset: through store, merge and export and back, or refused."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from experiment.errors import UserError
from rollouts.export import export_npz, read_npz
from rollouts.merge import merge_datasets
from rollouts.minari_format import export_minari, import_minari
from rollouts.saved_states import is_intact, pack_states
from rollouts.schema import DatasetMetadata, SchemaError, check_rollout
from rollouts.store import RolloutDataset, RolloutWriter, verify_dataset
from rollouts.types import Rollout

EVERY = 4
LENGTHS = (3, 4, 5, 13, 9)
"""Of the first two episodes no state is kept."""


def states_of(length: int) -> list[bytes]:
    """Some states for an episode, of different sizes, one of them empty."""
    rng = np.random.default_rng(length)
    return [rng.bytes(int(rng.integers(70_000)) * (row != 8)) for row in range(4, length, EVERY)]


def with_states(rollout: Rollout) -> Rollout:
    return replace(rollout, **vars(pack_states(states_of(len(rollout)), EVERY)))


@pytest.fixture
def folder(tmp_path: Path, make_metadata, make_rollout) -> Path:
    metadata = replace(make_metadata(), save_state_every=EVERY)
    with RolloutWriter(tmp_path / "data", metadata) as writer:
        for episode_id, length in enumerate(LENGTHS):
            writer.write(with_states(make_rollout(episode_id, length)))
            if episode_id == 2:
                writer.seal()
    return tmp_path / "data"


@pytest.fixture
def dataset(folder: Path) -> RolloutDataset:
    return RolloutDataset(folder)


def assert_complete(dataset: RolloutDataset) -> None:
    assert verify_dataset(dataset.folder) == []
    for index, length in enumerate(LENGTHS):
        assert dataset.saved_state_rows(index).tolist() == list(range(4, length, EVERY))
        for number, state in enumerate(states_of(length)):
            assert dataset.read_saved_state(index, number) == state


def assert_same_states(found: Rollout, expected: Rollout) -> None:
    for name in ("saved_states", "saved_state_table"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_states_come_back_from_store_merge_and_exports(tmp_path, dataset, make_rollout) -> None:
    assert_complete(dataset)
    assert_complete(merge_datasets(tmp_path / "merged", [dataset.folder]))
    export_npz(dataset, tmp_path / "npz")
    for index, length in enumerate(LENGTHS):
        expected = with_states(make_rollout(index, length))
        assert_same_states(dataset.read_episode(index), expected)
        path = tmp_path / "npz" / f"episode-{index:08d}.npz"
        assert_same_states(read_npz(path, dataset.metadata), expected)


def test_states_come_back_from_minari(tmp_path, dataset) -> None:
    export_minari(dataset, tmp_path / "out")
    assert_complete(import_minari(tmp_path / "out", tmp_path / "again"))


def test_only_a_dataset_with_states_says_so(dataset, make_metadata) -> None:
    said = dataset.metadata.to_dict()
    assert said["schema_version"] == 3
    assert said["save_state_every"] == EVERY
    assert DatasetMetadata.from_dict(said, "said").save_state_every == EVERY
    plain = make_metadata().to_dict()
    assert plain["schema_version"] == 1
    assert not {"save_state_every", "ragged_fields"} & set(plain)
    assert not any("saved" in field["name"] for field in plain["episode_fields"])


def test_rollouts_that_do_not_fit_are_refused(make_metadata, make_rollout) -> None:
    plain = make_rollout(0, 9)
    full = with_states(plain)
    assert full.saved_states is not None
    assert full.saved_state_table is not None
    with pytest.raises(SchemaError, match="saved_state_table: a rollout with it"):
        check_rollout(full, make_metadata())
    metadata = replace(make_metadata(), save_state_every=EVERY)
    with pytest.raises(SchemaError, match="saved_state_table: a rollout without it"):
        check_rollout(plain, metadata)
    with pytest.raises(SchemaError, match=r"found rows \[4\], expected every 4th of 9"):
        check_rollout(replace(full, saved_state_table=full.saved_state_table[:1]), metadata)
    with pytest.raises(SchemaError, match="saved_state_table: tells of"):
        check_rollout(replace(full, saved_states=full.saved_states[1:]), metadata)
    with pytest.raises(SchemaError, match="saved_states: found dtype"):
        check_rollout(replace(full, saved_states=full.saved_states.astype(np.int32)), metadata)


def saved_states_of(file: h5py.File) -> h5py.Dataset:
    states = file["ragged/saved_states"]
    assert isinstance(states, h5py.Dataset)
    return states


def test_a_damaged_state_is_named_and_verify_finds_it(folder) -> None:
    path = folder / "shard-0-00001.h5"
    with h5py.File(path, "r+") as file:
        states = saved_states_of(file)
        states[0] = states[0] ^ 1
    dataset = RolloutDataset(folder)
    with pytest.raises(UserError, match=rf"{path.name}: damaged: .* row 4 of episode_id 3 differs"):
        dataset.read_saved_state(3, 0)
    assert dataset.read_saved_state(4, 0) == states_of(9)[0]
    (problem,) = verify_dataset(folder)
    assert path.name in problem


def test_bytes_that_cannot_be_decompressed_are_named(folder) -> None:
    path = folder / "shard-0-00001.h5"
    with h5py.File(path, "r") as file:
        chunk = saved_states_of(file).id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name}: damaged"):
        RolloutDataset(folder).read_saved_state(3, 0)


def test_a_change_of_one_bit_or_of_the_length_is_seen() -> None:
    packed = pack_states([b"abc"], EVERY)
    assert is_intact(b"abc", packed.saved_state_table[0])
    assert not is_intact(b"abb", packed.saved_state_table[0])
    assert not is_intact(b"abc\0", packed.saved_state_table[0])
