import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
import pytest

from experiment.errors import UserError
from rollouts import sealing
from rollouts.schema import ContentHash, SchemaError
from rollouts.sealing import list_shards
from rollouts.store import RolloutDataset, RolloutWriter, verify_dataset
from rollouts.types import Rollout

SCRIPT = Path(__file__).with_name("write_episodes.py")


def start_writer(*arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.fixture
def real_rollouts(make_rollout) -> list[Rollout]:
    kinds = [
        {"level_seed": 2**31 - 1, "level_complete": True},
        {"truncated": True},
        {"cut": True, "interventions": ({"kind": "swap", "pairs": [[1, None]]}, {"ü": 1.5})},
        {"twin_of": 10},
    ]
    lengths = [1, 40, 17, 16]
    return [
        make_rollout(10 + i, length, **kind)
        for i, (length, kind) in enumerate(zip(lengths, kinds, strict=True))
    ]


def test_real_rollouts_come_back_bit_by_bit(write_rollouts, assert_same_rollouts, real_rollouts):
    dataset = write_rollouts(real_rollouts)
    assert dataset.num_episodes == 4
    assert dataset.num_rows == 1 + 40 + 17 + 16
    for index, rollout in enumerate(real_rollouts):
        assert_same_rollouts(dataset.read_episode(index), rollout)


def test_simulated_rollouts_come_back_bit_by_bit(
    write_rollouts, assert_same_rollouts, make_rollout
):
    rollouts = [
        make_rollout(i, 5, simulated=True, simulator_hash="s", source_episode_id=7, source_row=i)
        for i in range(3)
    ]
    dataset = write_rollouts(rollouts)
    for index, rollout in enumerate(rollouts):
        assert_same_rollouts(dataset.read_episode(index), rollout)
    np.testing.assert_array_equal(
        dataset.read_episode_field("latent"), np.stack([r.info.latent for r in rollouts])
    )


def test_a_return_stops_at_the_predicted_end(write_rollouts, make_rollout):
    rollout = make_rollout(0, 5, simulated=True)
    ends = replace(rollout, done=np.array([False, True, False, True, False]))
    goes_on = replace(make_rollout(1, 5, simulated=True), done=np.zeros(5, bool))
    found = write_rollouts([ends, goes_on]).episodes["return"]
    assert found[0] == pytest.approx(rollout.reward[:2].sum(dtype=np.float64))
    assert found[1] == pytest.approx(goes_on.reward.sum(dtype=np.float64))


def test_metadata_come_back(write_rollouts, make_rollout, make_metadata):
    assert write_rollouts([make_rollout(0, 2)], "real").metadata == make_metadata()
    simulated = write_rollouts([make_rollout(0, 2, simulated=True)], "simulated")
    assert simulated.metadata == make_metadata(simulated=True)


def test_fields_over_all_rows_and_shards(write_rollouts, make_rollout, make_metadata):
    rollouts = [make_rollout(i, 3 + i) for i in range(9)]
    dataset = write_rollouts(rollouts, shard_bytes=make_metadata().row_bytes * 12)
    assert len(dataset.shard_paths) > 2
    for name in ("obs", "agent_hidden", "done"):
        expected = np.concatenate([getattr(r, name) for r in rollouts])
        np.testing.assert_array_equal(dataset.read_field(name), expected)
        np.testing.assert_array_equal(dataset.read_field(name, 5, 31), expected[5:31])
        np.testing.assert_array_equal(np.concatenate([*dataset.iter_field(name, 7)]), expected)
    offsets = dataset.episodes["offset"].to_numpy()
    np.testing.assert_array_equal(offsets, np.cumsum([0, *map(len, rollouts[:-1])]))
    np.testing.assert_allclose(
        dataset.episodes["return"], [r.reward.sum(dtype=np.float64) for r in rollouts]
    )
    np.testing.assert_array_equal(
        dataset.read_episode_field("agent_initial_state"),
        np.stack([r.info.agent_initial_state for r in rollouts]),
    )
    assert [dataset.index_of(i) for i in (8, 0, 3)] == [8, 0, 3]
    with pytest.raises(UserError, match="no episode with episode_id 9"):
        dataset.index_of(9)
    with pytest.raises(UserError, match="no step field 'latent'"):
        dataset.read_field("latent")
    with pytest.raises(UserError, match="no episode 9"):
        dataset.read_episode(9)


def spoil(name: str, change) -> object:
    return pytest.param(name, change, id=name)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        spoil("obs", lambda r: {"obs": r.obs.astype(np.float32)}),
        spoil("agent_hidden", lambda r: {"agent_hidden": r.agent_hidden[:-1]}),
        spoil("action_logits", lambda r: {"action_logits": r.action_logits[:, :-1]}),
        spoil("value", lambda r: {"value": r.value[:, None]}),
        spoil("reward", lambda r: {"reward": r.reward.astype(np.float64)}),
        spoil("action", lambda r: {"action": r.action + np.int32(4)}),
        spoil("behaviour_log_prob", lambda r: {"behaviour_log_prob": list(r.value)}),
        spoil("done", lambda r: {"done": np.ones(len(r), np.bool_)}),
        spoil("cut", lambda r: {"done": np.zeros(len(r), np.bool_)}),
        spoil("env_deter", lambda r: {"env_deter": r.value[:, None]}),
        spoil("agent_initial_state", lambda r: info(r, agent_initial_state=np.zeros(5))),
        spoil("agent_hash", lambda r: info(r, agent_hash="another")),
        spoil("episode_id", lambda r: info(r, episode_id=-1)),
        spoil("initialisation", lambda r: info(r, initialisation="random")),
    ],
)
def test_bad_rollouts_are_refused_by_field_name(
    name, change, tmp_path, make_metadata, make_rollout, assert_same_rollouts
):
    good, bad = make_rollout(0, 6), make_rollout(1, 6)
    with RolloutWriter(tmp_path, make_metadata()) as writer:
        writer.write(good)
        with pytest.raises(SchemaError, match=f"^{name}: "):
            writer.write(replace(bad, **change(bad)))
    dataset = RolloutDataset(tmp_path)
    assert dataset.num_rows == 6
    assert_same_rollouts(dataset.read_episode(0), good)


def info(rollout: Rollout, **changes: object) -> dict[str, object]:
    return {"info": replace(rollout.info, **changes)}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        spoil("env_stoch", lambda r: {"env_stoch": r.env_stoch + np.uint8(11)}),
        spoil("terminal_prob", lambda r: {"terminal_prob": None}),
        spoil("latent", lambda r: info(r, latent=None)),
    ],
)
def test_bad_simulated_rollouts_are_refused(name, change, tmp_path, make_metadata, make_rollout):
    rollout = make_rollout(0, 6, simulated=True)
    with (
        RolloutWriter(tmp_path, make_metadata(simulated=True)) as writer,
        pytest.raises(SchemaError, match=f"^{name}: "),
    ):
        writer.write(replace(rollout, **change(rollout)))


def test_appending_continues_a_dataset(tmp_path, make_metadata, make_rollout):
    for first in (0, 3):
        with RolloutWriter(tmp_path, make_metadata()) as writer:
            assert writer.episode_ids == set(range(first))
            for episode_id in range(first, first + 3):
                writer.write(make_rollout(episode_id, 4))
    dataset = RolloutDataset(tmp_path)
    assert dataset.episodes["episode_id"].tolist() == [0, 1, 2, 3, 4, 5]
    assert [path.name for path in dataset.shard_paths] == ["shard-0-00000.h5", "shard-0-00001.h5"]


def test_an_episode_id_is_written_once(tmp_path, make_metadata, make_rollout, write_rollouts):
    with RolloutWriter(tmp_path, make_metadata()) as writer:
        writer.write(make_rollout(4, 4))
        with pytest.raises(UserError, match="episode_id 4 exists already"):
            writer.write(make_rollout(4, 4))
    with (
        RolloutWriter(tmp_path, make_metadata(), "b") as writer,
        pytest.raises(UserError, match="episode_id 4 exists already"),
    ):
        writer.write(make_rollout(4, 4))


def test_writers_that_gave_one_id_twice_are_told_apart_on_opening(
    tmp_path, make_metadata, make_rollout
):
    with (
        RolloutWriter(tmp_path, make_metadata(), "a") as a,
        RolloutWriter(tmp_path, make_metadata(), "b") as b,
    ):
        a.write(make_rollout(4, 4))
        b.write(make_rollout(4, 4))
    with pytest.raises(UserError, match="episode_id 4 occurs more than once"):
        RolloutDataset(tmp_path)


def test_a_dataset_of_other_metadata_is_refused_by_key(tmp_path, make_metadata, make_rollout):
    with RolloutWriter(tmp_path, make_metadata()) as writer:
        writer.write(make_rollout(0, 4))
    content = (tmp_path / "dataset.json").read_bytes()
    with pytest.raises(UserError, match=r"`environment.options.distribution_mode`.*'easy'.*'hard'"):
        RolloutWriter(tmp_path, make_metadata(distribution_mode="hard"))
    with pytest.raises(UserError, match="`agent_hash`: found 'agent', expected 'other'"):
        RolloutWriter(tmp_path, replace(make_metadata(), agent_hash="other"))
    with pytest.raises(UserError, match=r"differs in `(episode_fields|simulated)"):
        RolloutWriter(tmp_path, make_metadata(simulated=True))
    RolloutWriter(tmp_path, replace(make_metadata(), agent_file="moved", provenance={"seed": 4}))
    assert (tmp_path / "dataset.json").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.json", "shard-0-00000.h5"]


def test_unknown_schema_versions_are_refused(write_rollouts, make_rollout, make_metadata, tmp_path):
    shard = write_rollouts([make_rollout(0, 4)]).shard_paths[0]
    with h5py.File(shard, "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(UserError, match=f"{shard.name}: schema version 99 is unknown"):
        RolloutDataset(tmp_path / "data")
    description = tmp_path / "data" / "dataset.json"
    values = json.loads(description.read_text())
    description.write_text(json.dumps({**values, "schema_version": 5}))
    with pytest.raises(UserError, match="schema version 5 is unknown"):
        RolloutDataset(tmp_path / "data")
    with pytest.raises(UserError, match="schema version 5 is unknown"):
        RolloutWriter(tmp_path / "data", make_metadata())


def test_what_is_no_dataset_is_refused(tmp_path, make_metadata):
    with pytest.raises(UserError, match="not a rollout dataset"):
        RolloutDataset(tmp_path / "nowhere")
    (tmp_path / "dataset.json").write_text('{"some": "json"}')
    with pytest.raises(UserError, match="not the description of a rollout dataset"):
        RolloutDataset(tmp_path)
    with RolloutWriter(tmp_path / "empty", make_metadata()):
        pass
    with pytest.raises(UserError, match="the dataset is empty"):
        RolloutDataset(tmp_path / "empty")


def test_half_written_shards_are_never_read(tmp_path, write_rollouts, make_rollout, make_metadata):
    dataset = write_rollouts([make_rollout(0, 4)])
    folder, shard = dataset.folder, dataset.shard_paths[0]
    for writer in ("0", "1"):
        (folder / f"shard-{writer}-00007.h5.partial").write_bytes(shard.read_bytes()[:900])
    assert RolloutDataset(folder).hash == dataset.hash
    RolloutWriter(folder, make_metadata(), "0")
    left = {path.name for path in folder.glob("*.partial")}
    assert left == {"shard-1-00007.h5.partial"}, "a writer removes its own leavings only"


def test_an_exception_drops_the_open_shard(tmp_path, make_metadata, make_rollout):
    def fail() -> None:
        with RolloutWriter(tmp_path, make_metadata()) as writer:
            writer.write(make_rollout(0, 4))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_a_truncated_shard_is_named(write_rollouts, make_rollout):
    shard = write_rollouts([make_rollout(0, 4)]).shard_paths[0]
    shard.write_bytes(shard.read_bytes()[:-500])
    with pytest.raises(UserError, match=rf"{shard.name}: not a readable shard"):
        RolloutDataset(shard.parent)


def remove_attribute(file: h5py.File, name: str) -> None:
    del file.attrs[name]


def set_attribute(file: h5py.File, name: str, value: object) -> None:
    file.attrs[name] = value


def remove_array(file: h5py.File, name: str) -> None:
    del file[name]


def replace_array(file: h5py.File, name: str, values: list[object]) -> None:
    del file[name]
    file[name] = values


@pytest.mark.parametrize(
    ("spoil_file", "complaint"),
    [
        (lambda f: remove_attribute(f, "content_hash"), "content_hash"),
        (lambda f: remove_attribute(f, "num_rows"), "num_rows"),
        (lambda f: remove_attribute(f, "num_episodes"), "num_episodes"),
        (lambda f: set_attribute(f, "content_hash", 3), "content_hash is not a string"),
        (lambda f: set_attribute(f, "num_rows", "many"), "many"),
        (lambda f: remove_array(f, "episodes"), "episodes"),
        (lambda f: remove_array(f, "episodes/twin_of"), "twin_of"),
        (lambda f: remove_array(f, "steps/reward"), "reward"),
        (lambda f: replace_array(f, "episodes/agent_hash", [1, 2]), "string"),
        (lambda f: replace_array(f, "episodes/cut", [True]), r"cut has shape \(1,\)"),
        (lambda f: replace_array(f, "steps/value", [1.0] * 8), r"steps/value has shape \(8,\)"),
        (lambda f: replace_array(f, "episodes/length", [4, 6]), "do not make up its 9 rows"),
        (lambda f: replace_array(f, "episodes/offset", [0, 3]), "do not make up its 9 rows"),
    ],
)
def test_a_malformed_shard_is_named(
    spoil_file, complaint, write_rollouts, make_rollout, make_metadata
):
    shard = write_rollouts([make_rollout(0, 4), make_rollout(1, 5)]).shard_paths[0]
    with h5py.File(shard, "r+") as file:
        spoil_file(file)
    expected = rf"^\S*{shard.name}: malformed shard \([^\n]*{complaint}"
    with pytest.raises(UserError, match=expected):
        RolloutDataset(shard.parent)
    with pytest.raises(UserError, match=expected):
        RolloutWriter(shard.parent, make_metadata())


def test_verify_finds_one_changed_number(write_rollouts, make_rollout):
    shard = write_rollouts([make_rollout(0, 40), make_rollout(1, 9)]).shard_paths[0]
    assert verify_dataset(shard.parent) == []
    with h5py.File(shard, "r+") as file:
        value = file["steps/value"]
        assert isinstance(value, h5py.Dataset)
        value[30] = value[30] + 1
    assert verify_dataset(shard.parent) == [
        f"{shard.name}: the content differs from the hash taken when it was sealed"
    ]


def test_hash_depends_on_content_alone(make_rollout, write_rollouts, make_metadata):
    rollouts = [make_rollout(i, 5) for i in range(4)]
    a = write_rollouts(rollouts, "a")
    b = write_rollouts(rollouts, "b", writer="another")
    changed = replace(rollouts[3], value=rollouts[3].value + np.float32(1e-6))
    c = write_rollouts([*rollouts[:3], changed], "c")
    d = write_rollouts([replace(r, info=replace(r.info, twin_of=1)) for r in rollouts], "d")
    assert a.hash == b.hash
    assert len({a.hash, c.hash, d.hash}) == 3


def test_a_killed_writer_loses_its_open_shard_only(
    tmp_path, make_metadata, make_rollout, assert_same_rollouts
):
    process = start_writer(tmp_path, "0", 0, -1)
    assert process.stdout is not None
    # Shards are of three episodes: the kill comes while the third is open or being sealed.
    for _ in range(8):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    dataset = RolloutDataset(tmp_path)
    assert dataset.num_episodes >= 6
    assert dataset.num_episodes % 3 == 0
    for index, episode_id in enumerate(dataset.episodes["episode_id"]):
        assert_same_rollouts(dataset.read_episode(index), make_rollout(int(episode_id), 20))
    with RolloutWriter(tmp_path, make_metadata()) as writer:
        writer.write(make_rollout(10**6, 20))
    assert RolloutDataset(tmp_path).num_episodes == dataset.num_episodes + 1
    assert verify_dataset(tmp_path) == []
    assert not list(tmp_path.glob("*.partial"))


def test_two_processes_write_at_once(tmp_path, make_rollout, assert_same_rollouts):
    processes = [start_writer(tmp_path, "a", 0, 10), start_writer(tmp_path, "b", 100, 10)]
    for process in processes:
        _, complaint = process.communicate()
        assert process.returncode == 0, complaint
    dataset = RolloutDataset(tmp_path)
    assert sorted(dataset.episodes["episode_id"]) == [*range(10), *range(100, 110)]
    for episode_id in (0, 9, 100, 109):
        rollout = dataset.read_episode(dataset.index_of(episode_id))
        assert_same_rollouts(rollout, make_rollout(episode_id, 20))


@pytest.fixture(params=["hard links", "no hard links"])
def disk_kind(request, monkeypatch) -> str:
    """Runs a test on both kinds of disks."""

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(source))

    if request.param == "no hard links":
        monkeypatch.setattr(sealing.os, "link", refuse)
    return request.param


def test_writers_of_one_name_never_replace_a_sealed_shard(
    disk_kind, tmp_path, monkeypatch, make_metadata, make_rollout, assert_same_rollouts
):
    first, second = (RolloutWriter(tmp_path, make_metadata()) for _ in range(2))
    monkeypatch.setattr(sealing, "_next_number", lambda folder, writer: 0)  # both looked at once
    for episode_id, writer in enumerate((first, second, first)):
        writer.write(make_rollout(episode_id, 4 + episode_id))
        writer.seal()
    dataset = RolloutDataset(tmp_path)
    assert [path.name[-8:] for path in dataset.shard_paths] == ["00000.h5", "00001.h5", "00002.h5"]
    for episode_id in range(3):
        rollout = dataset.read_episode(episode_id)
        assert_same_rollouts(rollout, make_rollout(episode_id, 4 + episode_id))
    assert verify_dataset(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 4, "partial files and claims are gone"


def test_a_second_process_of_one_part_drops_what_the_first_has_sealed(
    disk_kind, tmp_path, make_metadata, make_rollout
):
    early, late = (RolloutWriter(tmp_path, make_metadata()) for _ in range(2))
    for writer in (early, late):
        writer.write(make_rollout(0, 4))
    late.write(make_rollout(1, 4))
    early.seal()
    with pytest.raises(UserError, match=r"shard-0-00000\.h5: another process .* episode_id 0 "):
        late.seal()
    assert RolloutDataset(tmp_path).episodes["episode_id"].tolist() == [0]
    late.write(make_rollout(2, 4))
    late.seal()
    assert RolloutDataset(tmp_path).episodes["episode_id"].tolist() == [0, 2]
    early.write(make_rollout(3, 4))
    early.seal()
    with pytest.raises(UserError, match="episode_id 2 exists already"):
        early.write(make_rollout(2, 4))
    assert verify_dataset(tmp_path) == []
    assert len(list(tmp_path.glob("*"))) == 4, "no partial file or claim is left"


def test_a_writer_survives_the_cleaning_of_another_of_its_name(
    disk_kind, tmp_path, monkeypatch, make_metadata, make_rollout
):
    writer = RolloutWriter(tmp_path, make_metadata())
    writer.write(make_rollout(0, 4))
    write_synced, cleanings = sealing.write_synced, [tmp_path]

    def write_and_clean(path: Path, content: bytes) -> None:
        write_synced(path, content)
        if cleanings:
            sealing.remove_stale_partials(cleanings.pop(), "0")

    monkeypatch.setattr(sealing, "write_synced", write_and_clean)
    writer.seal()
    assert RolloutDataset(tmp_path).episodes["episode_id"].tolist() == [0]


def test_a_claim_left_by_a_killed_writer_costs_its_number_only(
    tmp_path, monkeypatch, make_metadata, make_rollout
):
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(source))

    monkeypatch.setattr(sealing.os, "link", refuse)
    (tmp_path / ".shard-0-00000.h5.claim").touch()
    with RolloutWriter(tmp_path, make_metadata()) as writer:
        writer.write(make_rollout(0, 4))
    assert [path.name for path in list_shards(tmp_path)] == ["shard-0-00001.h5"]
    monkeypatch.setattr("rollouts.description._SECONDS_TO_WAIT_FOR_DESCRIPTION", 0.1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".dataset.json.claim").touch()
    with pytest.raises(UserError, match=r"did not finish; remove .*\.dataset\.json\.claim"):
        RolloutWriter(tmp_path / "other", make_metadata())


def test_writers_are_ordered_as_numbers(tmp_path, make_metadata, make_rollout):
    for number in (10, 2, 1):
        with RolloutWriter(tmp_path, make_metadata(), str(number)) as writer:
            writer.write(make_rollout(number, 2))
    assert [path.name for path in list_shards(tmp_path)] == [
        "shard-1-00000.h5",
        "shard-2-00000.h5",
        "shard-10-00000.h5",
    ]
    assert RolloutDataset(tmp_path).episodes["episode_id"].tolist() == [1, 2, 10]


def test_a_full_disk_is_one_line_and_spares_sealed_shards(tmp_path):
    complete = start_writer(tmp_path / "complete", "0", 0, 3)
    complete.communicate()
    size = list_shards(tmp_path / "complete")[0].stat().st_size
    start_writer(tmp_path / "full", "0", 0, 3).communicate()
    process = start_writer(tmp_path / "full", "0", 100, 9, size - 4096)
    _, complaint = process.communicate()
    assert process.returncode == 2
    assert complaint.startswith("error: disk full while writing")
    assert complaint.count("\n") == 1
    assert verify_dataset(tmp_path / "full") == []
    assert RolloutDataset(tmp_path / "full").episodes["episode_id"].tolist() == [0, 1, 2]
    assert not list((tmp_path / "full").glob("*.partial"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota_is_a_user_error(
    number, tmp_path, monkeypatch, make_metadata, make_rollout
):
    def fail(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(number, os.strerror(number), str(path))

    writer = RolloutWriter(tmp_path, make_metadata())
    writer.write(make_rollout(0, 4))
    monkeypatch.setattr(sealing, "write_synced", fail)
    with pytest.raises(UserError, match=r"disk full while writing .*shard-0-00000\.h5"):
        writer.seal()
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


@pytest.mark.parametrize("fails_at", [1, 3, 10])
@pytest.mark.parametrize("length", [20, 600], ids=["in sealing", "in writing"])
def test_a_shard_that_failed_is_not_sealed_later(
    fails_at, length, tmp_path, monkeypatch, make_metadata, make_rollout, assert_same_rollouts
):
    """A second try would store the rows of some fields twice, and readers refuse such a shard."""
    num_updates, update = 0, ContentHash.update

    def update_or_fail(self, name, rows):
        nonlocal num_updates
        num_updates += 1
        if num_updates == fails_at:
            raise MemoryError
        update(self, name, rows)

    writer = RolloutWriter(tmp_path, make_metadata())
    monkeypatch.setattr(ContentHash, "update", update_or_fail)
    with pytest.raises(MemoryError):  # noqa: PT012 (which of the two fails is a parameter)
        writer.write(make_rollout(0, length))
        writer.seal()
    writer.seal()
    assert not list_shards(tmp_path)
    writer.write(make_rollout(1, length))
    writer.seal()
    assert verify_dataset(tmp_path) == []
    found = RolloutDataset(tmp_path)
    assert found.num_episodes == 1
    assert_same_rollouts(found.read_episode(0), make_rollout(1, length))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, make_metadata):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"dataset: folder .*file/data is not writable"):
        RolloutWriter(tmp_path / "file" / "data", make_metadata())
    with pytest.raises(UserError, match="writer 'a-b'"):
        RolloutWriter(tmp_path / "data", make_metadata(), "a-b")
    assert not (tmp_path / "data").exists()


def send_sum(dataset: RolloutDataset, connection: Connection) -> None:
    connection.send(int(dataset.read_field("obs").sum()))


def test_a_pickled_dataset_opens_its_own_handles(write_rollouts, make_rollout):
    dataset = write_rollouts([make_rollout(i, 30) for i in range(5)])
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.read_field("obs"), dataset.read_field("obs"))


def test_forked_processes_read_with_handles_of_their_own(write_rollouts, make_rollout):
    dataset = write_rollouts([make_rollout(i, 30) for i in range(5)])
    expected = int(dataset.read_field("obs").sum())
    receiver, sender = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=send_sum, args=(dataset, sender)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [receiver.recv() for _ in workers] == [expected] * 2
    for worker in workers:
        worker.join()
    assert int(dataset.read_field("obs").sum()) == expected
