import json

import h5netcdf
import numpy as np
import pytest
import xarray as xr

from analysis.results import (
    StreamedVariable,
    input_hashes,
    read_results,
    streamed_results,
    write_results,
)
from experiment.errors import UserError
from experiment.provenance import collect_provenance


@pytest.fixture
def provenance():
    return collect_provenance({"setting": 3}, seed=7, inputs={"dataset": "abc"})


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "pca": (("row", "component"), rng.normal(size=(5000, 8)).astype(np.float32)),
            "done": ("row", rng.random(5000) < 0.1),
        },
        coords={"component": np.arange(8)},
    )


def test_round_trip_is_exact_and_labelled(tmp_path, dataset, provenance):
    write_results(tmp_path / "hidden_analysis.nc", dataset, provenance)
    with read_results(tmp_path / "hidden_analysis.nc", "hidden_analysis") as read:
        np.testing.assert_array_equal(read.pca.values, dataset.pca.values)
        np.testing.assert_array_equal(read.done.values, dataset.done.values)
        assert read.pca.dims == ("row", "component")
        assert input_hashes(read) == {"dataset": "abc"}
        assert json.loads(read.attrs["provenance"])["seed"] == 7


def test_streamed_equals_in_memory(tmp_path, dataset, provenance):
    values = dataset.pca.values
    declared = {"pca": StreamedVariable(("row", "component"), values.shape, np.float32, {})}
    with streamed_results(
        tmp_path / "streamed.nc", dataset.drop_vars("pca"), declared, provenance
    ) as stream:
        for start in range(0, 5000, 777):
            stream.write("pca", start, values[start : start + 777])
    with read_results(tmp_path / "streamed.nc") as read:
        np.testing.assert_array_equal(read.pca.values, values)


def test_a_failure_leaves_the_earlier_file(tmp_path, dataset, provenance):
    path = tmp_path / "saliency.nc"
    write_results(path, dataset, provenance)
    before = path.read_bytes()
    with (
        pytest.raises(RuntimeError, match="stop"),
        streamed_results(path, dataset, {}, provenance),
    ):
        raise RuntimeError("stop")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["saliency.nc"]


def test_missing_file_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"no such file.*hidden_analysis_precompute\.py"):
        read_results(tmp_path / "hidden_analysis.nc", "hidden_analysis")


def test_foreign_files_are_refused(tmp_path, dataset, provenance):
    write_results(tmp_path / "saliency.nc", dataset, provenance)
    with pytest.raises(UserError, match=r"found kind 'saliency'.*expected 'hidden_analysis'"):
        read_results(tmp_path / "saliency.nc", "hidden_analysis")
    (tmp_path / "text.nc").write_text("not a netCDF file")
    with pytest.raises(UserError, match="not a readable result file"):
        read_results(tmp_path / "text.nc", "saliency")


def test_unknown_schema_version_is_refused(tmp_path, dataset, provenance):
    path = tmp_path / "saliency.nc"
    write_results(path, dataset, provenance)
    with h5netcdf.File(path, "a") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(UserError, match="schema version 99"):
        read_results(path)
