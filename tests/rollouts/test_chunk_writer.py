"""Chunks compressed by several threads are those that HDF5 itself would have made."""

import weakref
from concurrent.futures import ThreadPoolExecutor

import h5py
import hdf5plugin
import numpy as np
import pytest

from rollouts.chunk_writer import BLOSC_CODEC, BLOSC_LEVEL, ChunkWriter

ROWS_PER_CHUNK = 8


def make_array(file: h5py.File, dtype: str, row_shape: tuple[int, ...], shuffles: bool):
    shuffle = hdf5plugin.Blosc.SHUFFLE if shuffles else hdf5plugin.Blosc.NOSHUFFLE
    return file.create_dataset(
        *("array", (0, *row_shape), dtype),
        maxshape=(None, *row_shape),
        chunks=(ROWS_PER_CHUNK, *row_shape),
        **hdf5plugin.Blosc(cname=BLOSC_CODEC, clevel=BLOSC_LEVEL, shuffle=shuffle),
    )


def stored_chunks(array: h5py.Dataset, num_rows: int) -> list[bytes]:
    starts = range(0, num_rows, ROWS_PER_CHUNK)
    others = (0,) * (array.ndim - 1)
    return [array.id.read_direct_chunk((start, *others))[1] for start in starts]


@pytest.mark.parametrize(
    ("dtype", "row_shape", "shuffles"),
    [("uint8", (16, 16, 3), False), ("<f4", (100,), True), ("bool", (200,), True)],
)
@pytest.mark.parametrize("num_rows", [0, 3, 8, 61])
def test_the_file_is_as_hdf5_would_have_made_it(tmp_path, dtype, row_shape, shuffles, num_rows):
    rng = np.random.default_rng(num_rows)
    rows = rng.integers(0, 4, (num_rows, *row_shape)).astype(dtype)
    with h5py.File(tmp_path / "ours.h5", "w") as file, ThreadPoolExecutor(3) as executor:
        writer = ChunkWriter(make_array(file, dtype, row_shape, shuffles), shuffles, executor)
        for pieces in np.array_split(rows, [1, 2, 20, 20, 53]):
            writer.append(np.array_split(pieces, 2))
        writer.finish()
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        array = make_array(file, dtype, row_shape, shuffles)
        array.resize(num_rows, axis=0)
        array[:] = rows
    with h5py.File(tmp_path / "ours.h5") as ours, h5py.File(tmp_path / "theirs.h5") as theirs:
        found, expected = ours["array"], theirs["array"]
        assert isinstance(found, h5py.Dataset)
        assert isinstance(expected, h5py.Dataset)
        np.testing.assert_array_equal(found[:], rows)
        assert stored_chunks(found, num_rows) == stored_chunks(expected, num_rows)


def test_what_cannot_be_compressed_is_read_back(tmp_path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (20, 64, 64), dtype=np.uint8)
    with h5py.File(tmp_path / "noise.h5", "w") as file, ThreadPoolExecutor(1) as executor:
        array = make_array(file, "uint8", (64, 64), shuffles=False)
        writer = ChunkWriter(array, shuffles=False, executor=executor)
        writer.append([rows])
        writer.finish()
    with h5py.File(tmp_path / "noise.h5") as file:
        array = file["array"]
        assert isinstance(array, h5py.Dataset)
        np.testing.assert_array_equal(array[:], rows)


def test_rows_come_in_any_byte_order(tmp_path) -> None:
    rows = np.random.default_rng(0).normal(size=(3 * ROWS_PER_CHUNK, 4)).astype("<f4")
    pieces = [rows[:5], rows[5:7].astype(">f4"), rows[7:].astype(">f4")]
    with h5py.File(tmp_path / "rows.h5", "w") as file, ThreadPoolExecutor(1) as executor:
        array = make_array(file, "<f4", (4,), shuffles=True)
        writer = ChunkWriter(array, shuffles=True, executor=executor)
        writer.append(pieces)
        writer.finish()
        np.testing.assert_array_equal(array[:], rows)


def test_rows_that_wait_hold_on_to_no_episode(tmp_path) -> None:
    with h5py.File(tmp_path / "rows.h5", "w") as file, ThreadPoolExecutor(1) as executor:
        writer = ChunkWriter(make_array(file, "<f4", (4,), shuffles=True), True, executor)
        episode = np.zeros((ROWS_PER_CHUNK - 1, 4), np.float32)
        watched = weakref.ref(episode)
        writer.append([episode])
        del episode
        assert watched() is None
        writer.finish()
