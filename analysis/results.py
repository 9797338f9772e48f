"""Result files: labelled arrays with their provenance, written whole or not at all.

A result file is netCDF 4 (HDF5 underneath). Its attributes are `kind`, `schema_version`,
`provenance` (JSON) and `input_hashes` (JSON). Figures and the panel read nothing else.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5netcdf
import hdf5plugin
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, DTypeLike, NDArray
from xarray.backends import CachingFileManager, H5NetCDFStore

from experiment.errors import UserError
from experiment.files import atomic_file
from experiment.provenance import Provenance
from rollouts.hdf5_objects import KeepingFile

RESULT_SCHEMA_VERSION = 1

PRODUCERS = {
    "behaviour_clusters": "python analysis/combined_agent_env_hx_analysis_precompute.py",
    "jacobians": "python analysis/jacobian_analysis_precompute.py",
    "xcorr_and_xcaus": "python xcorr_and_xcaus_plots.py",
    "xcorr_both": "python xcorr_and_xcaus_plots.py --states both",
    "xcorr_environment": "python xcorr_and_xcaus_plots.py --states environment",
    "consistency": "python analysis/dynamics_grads_consistency_plots.py",
    "act_and_val_weights": "python plot_value_and_action_weights.py",
    "hx_overlap": "python analysis/show_hx_overlap.py",
    "bottleneck_vec_analysis": "python analysis/bottleneck_vec_analysis_precompute.py",
    "env_h_analysis": "python analysis/env_h_analysis_precompute.py",
    "hidden_analysis": "python analysis/hidden_analysis_precompute.py",
    "probe_analysis": "python analysis/probe_analysis_precompute.py",
    "intervention_effects": "python analysis/intervention_effects_precompute.py",
    "saliency": "python saliency_experiments.py",
    "saliency_trust": "python analysis/saliency_trust_precompute.py",
    "sample_trust": "python analysis/sample_trust_precompute.py",
    "statement_effects": "python analysis/statement_effects_precompute.py",
    "sml_analysis": "python analysis/sml_analysis_precompute.py",
    "simulator_fidelity": "python analysis/simulator_fidelity_precompute.py",
    "target_functions": "python analysis/target_functions_precompute.py",
}
"""Which command makes each kind of result file; named when one is missing."""

BOTTLENECK_ANALYSIS_NAME = "bottleneck_vec_analysis.nc"
ENV_H_ANALYSIS_NAME = "env_h_analysis.nc"
HIDDEN_ANALYSIS_NAME = "hidden_analysis.nc"
OVERLAP_NAME = "hx_overlap.nc"
PROBE_ANALYSIS_NAME = "probe_analysis.nc"
READOUT_NAME = "act_and_val_weights.nc"
SALIENCY_NAME = "saliency.nc"
BEHAVIOUR_NAME = "behaviour_clusters.nc"
JACOBIAN_NAME = "jacobians.nc"
CROSS_NAME = "xcorr_and_xcaus.nc"
CONSISTENCY_NAME = "consistency.nc"
INTERVENTION_EFFECTS_NAME = "intervention_effects.nc"
STATEMENT_EFFECTS_NAME = "statement_effects.nc"
SML_ANALYSIS_NAME = "sml_analysis.nc"
TARGET_FUNCTIONS_NAME = "target_functions.nc"
SALIENCY_TRUST_NAME = "saliency_trust.nc"
SAMPLE_TRUST_NAME = "sample_trust.nc"

SOURCES = ("real", "simulated")
"""What the values of a `source` variable stand for."""

COMPRESSED_FROM_BYTES = 64 * 1024
"""Smaller variables stay uncompressed, so that they open without the compression plugin."""


@dataclass(frozen=True)
class StreamedVariable:
    """A variable that is declared first and filled in pieces."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: DTypeLike
    attrs: Mapping[str, Any]
    chunks: tuple[int, ...] | None = None


class ResultStream:
    """Fills the streamed variables of a result file that is being written."""

    def __init__(self, file: h5netcdf.File) -> None:
        self._file = file

    def write(self, name: str, start: int, values: ArrayLike) -> None:
        """Write `values` at positions `start, start + 1, ...` of the first dimension."""
        values = np.asarray(values)
        self._file.variables[name][start : start + len(values)] = values

    def set_attribute(self, name: str, value: str | float | int) -> None:
        """Set a global attribute that is known only at the end."""
        self._file.attrs[name] = value


def write_results(
    path: Path | str, dataset: xr.Dataset, provenance: Provenance, kind: str | None = None
) -> None:
    """Write `dataset` as a result file, atomically.

    Args:
        path: file to write; an earlier one is replaced.
        dataset: named dims; each variable documents itself by attributes.
        provenance: recorded as JSON, its input hashes also on their own.
        kind: what the file is, for `read_results`; by default the stem of `path`.
    """
    with streamed_results(path, dataset, {}, provenance, kind):
        pass


@contextmanager
def streamed_results(
    path: Path | str,
    dataset: xr.Dataset,
    streamed: Mapping[str, StreamedVariable],
    provenance: Provenance,
    kind: str | None = None,
) -> Iterator[ResultStream]:
    """Write `dataset` at once and let the caller fill the `streamed` variables in pieces.

    The file appears under its name only when the block ends without an exception.
    """
    labelled = dataset.assign_attrs(
        kind=kind or Path(path).stem,
        schema_version=RESULT_SCHEMA_VERSION,
        provenance=json.dumps(asdict(provenance)),
        input_hashes=json.dumps(provenance.inputs),
    )
    with atomic_file(path) as temporary:
        labelled.to_netcdf(temporary, engine="h5netcdf", encoding=_encoding(labelled))
        with h5netcdf.File(temporary, "a") as file:
            for name, variable in streamed.items():
                _declare(file, name, variable)
            yield ResultStream(file)


def read_results(path: Path | str, kind: str | None = None) -> xr.Dataset:
    """Open a result file lazily; close it, or use it as a context manager.

    Args:
        path: the result file.
        kind: what it must be; by default the stem of `path`.

    Raises:
        UserError: it is missing, not a result file, of another kind or schema version. The line
            names the command that makes it.
    """
    path, kind = Path(path), kind or Path(path).stem
    remedy = f"make it with: {PRODUCERS[kind]}" if kind in PRODUCERS else "make it again"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    try:
        dataset = _open_quickly(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable result file ({reason}); {remedy}") from None
    found = dataset.attrs.get("kind"), dataset.attrs.get("schema_version")
    if found != (kind, RESULT_SCHEMA_VERSION):
        dataset.close()
        raise UserError(
            f"{path}: found kind {found[0]!r}, schema version {found[1]}; expected {kind!r}, "
            f"version {RESULT_SCHEMA_VERSION}; {remedy}"
        )
    return dataset


class _KeepingNetcdf(h5netcdf.File):
    """A netCDF file for reading, over one that keeps its objects at first."""

    def __init__(self, keeping: KeepingFile) -> None:
        self._keeping = keeping
        super().__init__(keeping, "r", decode_vlen_strings=True)

    def forget(self) -> None:
        """Free the memory that open objects take, 64 KiB for each array."""
        self._keeping.forget()

    def close(self) -> None:
        super().close()
        self._keeping.close()


def _open_netcdf(path: str, mode: str) -> _KeepingNetcdf:
    # First the file itself: h5netcdf stumbles over what it could not open when it is freed.
    return _KeepingNetcdf(KeepingFile(path, mode))


def _open_quickly(path: Path) -> xr.Dataset:
    """As `xr.open_dataset` does with h5netcdf, which opens each variable some thirty times to learn
    all about it; with the objects kept it takes half of the time."""
    manager = CachingFileManager(_open_netcdf, str(path), mode="r")
    store = H5NetCDFStore(manager)
    dataset = xr.open_dataset(store, engine="store", decode_times=False)
    manager.acquire().forget()
    return dataset


def input_hashes(dataset: xr.Dataset) -> dict[str, str]:
    """Hashes of the artefacts that a result was computed from, by role."""
    return json.loads(dataset.attrs["input_hashes"])


def flag_attributes(meanings: tuple[str, ...], description: str) -> dict[str, Any]:
    """Attributes of an integer variable whose value v stands for `meanings[v]` (CF conventions)."""
    return {
        "long_name": description,
        "flag_values": np.arange(len(meanings), dtype=np.int32),
        "flag_meanings": " ".join(meanings),
    }


def _compression() -> dict[str, Any]:
    # LZ4 keeps up with the disk; the shuffle is what makes floats compressible at all.
    blosc = hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE)
    return {"compression": blosc.filter_id, "compression_opts": blosc.filter_options}


def _encoding(dataset: xr.Dataset) -> dict[str, dict[str, Any]]:
    return {
        str(name): _compression()
        for name, variable in dataset.variables.items()
        if variable.dtype.kind in "biuf" and variable.nbytes >= COMPRESSED_FROM_BYTES
    }


def _declare(file: h5netcdf.File, name: str, variable: StreamedVariable) -> None:
    for dim, size in zip(variable.dims, variable.shape, strict=True):
        if dim not in file.dimensions:
            file.dimensions[dim] = size
    chunks = variable.chunks or _chunks(variable.shape, np.dtype(variable.dtype).itemsize)
    created = file.create_variable(
        name, variable.dims, np.dtype(variable.dtype), chunks=chunks, **_compression()
    )
    created.attrs.update(variable.attrs)


def _chunks(shape: tuple[int, ...], itemsize: int, target_bytes: int = 256 * 1024) -> tuple:
    row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * itemsize
    rows = min(max(1, target_bytes // max(row_bytes, 1)), max(shape[0], 1))
    return (rows, *(max(size, 1) for size in shape[1:]))


def ends_before(results: xr.Dataset) -> NDArray[np.int64]:
    """(row,) how many ends of its episode lie before each row of hidden states.

    Above 0 only in samples, which go on after the end that is predicted for them.
    """
    keys = [results["source"].values, results["episode_index"].values]
    done = pd.Series(results["done"].values.astype(np.int64))
    return (done.groupby(keys).cumsum() - done).to_numpy()
