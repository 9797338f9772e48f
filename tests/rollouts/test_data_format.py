"""A reader written from docs/data_format.md alone, with h5py, JSON and SHA-256."""

import hashlib
import json
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401 (registers the Blosc filter)
import numpy as np


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
        for group, fields in (("steps", "step_fields"), ("episodes", "episode_fields")):
            for field in description[fields]:
                content = column_bytes(file, f"{group}/{field['name']}", field["dtype"])
                lines.append(f"{field['name']} {sha256(content)}\n")
        assert file.attrs["content_hash"] == sha256("".join(lines).encode())
        return str(file.attrs["content_hash"])


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

    hashes = sorted(content_hash(path, description) for path in paths)
    identity = {k: v for k, v in description.items() if k not in ("provenance", "agent_file")}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    assert dataset.hash == sha256("\n".join([text, *hashes]).encode())
