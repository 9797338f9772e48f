"""One analysis as the page sees it: one point per row, served column by column."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from experiment.errors import UserError
from panel.point_tables import POINT_KINDS
from panel.result_source import ResultSource
from panel.rollout_source import UnknownItemError

COORDINATE_SETS = ("pca", "ica", "nmf", "embedding")
"""Variables of dims (row, component): candidates for the axes."""
ROW_VARIABLES = (
    "source",
    "episode_id",
    "step",
    "value",
    "mean_value",
    "entropy",
    "action",
    "greedy_action",
    "reward",
    "done",
    "ever_done",
    "cluster",
    "behaviour",
    "purity",
)
LAYOUT_SECTIONS = ("layout", "clusters")
"""Sections of a command's configuration that may name the method of the embedding."""
REQUIRED_VARIABLES = ("source", "episode_id", "step")


class AnalysisSource(ResultSource):
    """Holds one result file; its content is small (some hundred bytes a row)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        kind = POINT_KINDS[path.name]
        self.title = kind.title
        self._points: xr.Dataset = kind.tabulate(self._results)
        self._check(path)
        sources = _read_sources(self._points["source"])
        self.source_names = sources.names
        self._source_codes = sources.codes
        self._episode_ids: NDArray[np.int64] = self._points["episode_id"].to_numpy()
        self._steps: NDArray[np.int64] = self._points["step"].to_numpy()

    def hashes_of(self, source: str) -> frozenset[str]:
        """Hashes of the datasets that rows of a source can be from."""
        named = self.hash_of_input.get(source)
        return frozenset(self.hash_of_input.values() if named is None else (named,))

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        sets = {
            name: int(self._points[name].shape[1])
            for name in COORDINATE_SETS
            if name in self._points and self._points[name].ndim == 2
        }
        columns = [name for name in ROW_VARIABLES if self._is_column(name)]
        return {
            "hash": self.content_hash,
            "title": self.title,
            "projection_hash": self._results.attrs.get("projection_data_hash"),
            "num_rows": len(self._source_codes),
            "coordinate_sets": sets,
            "columns": columns,
            "source_names": self.source_names,
            "embedding_method": self._embedding_method,
        }

    @property
    def _embedding_method(self) -> str | None:
        """Name of the layout's method, as the command was told it; None where nothing says."""
        config = self.provenance.get("config", {})
        sections = (config, *(config.get(name, {}) for name in LAYOUT_SECTIONS))
        methods = (one.get("embedding") for one in sections if isinstance(one, dict))
        return next((method for method in methods if isinstance(method, str)), None)

    def column(self, name: str, component: int | None) -> NDArray:
        """(rows,) one variable, or one component of a coordinate set.

        `source` comes as positions in `source_names`.

        Raises:
            UnknownItemError: no such variable or component.
        """
        if name == "source" and component is None:
            return self._source_codes
        if component is None and self._is_column(name):
            with self._lock:
                return self._points[name].to_numpy()
        if name in COORDINATE_SETS and name in self._points and component is not None:
            values = self._points[name]
            if 0 <= component < values.shape[1]:
                with self._lock:
                    return values[:, component].to_numpy()
        label = name if component is None else f"component {component} of {name}"
        raise UnknownItemError(f"the analysis has no {label}")

    def episode(self, source: str, episode_id: int) -> dict[str, NDArray]:
        """Rows of one episode in the order of time: `step` (n,) and each coordinate set (n, K).

        None of an episode that the analysis leaves out, as many do with most.

        Raises:
            UnknownItemError: no such source.
        """
        if source not in self.source_names:
            raise UnknownItemError(f"the analysis has {', '.join(self.source_names)}")
        is_own = self._episode_ids == episode_id
        rows = np.flatnonzero(is_own & (self._source_codes == self.source_names.index(source)))
        rows = rows[np.argsort(self._steps[rows], kind="stable")]
        first, last = (int(rows.min()), int(rows.max())) if len(rows) else (0, -1)
        with self._lock:
            sets = {
                name: self._points[name][first : last + 1].to_numpy()[rows - first]
                for name in self.describe()["coordinate_sets"]
            }
        return {"step": self._steps[rows], **sets}

    def _is_column(self, name: str) -> bool:
        return name in ROW_VARIABLES and name in self._points and self._points[name].ndim == 1

    def _check(self, path: Path) -> None:
        missing = [name for name in REQUIRED_VARIABLES if not self._is_column(name)]
        if missing:
            raise UserError(
                f"{path.name}: {', '.join(missing)} missing, one value per row expected"
            )


@dataclass(frozen=True)
class _Sources:
    """Where each row comes from."""

    names: list[str]
    """Those that rows come from, sorted."""
    codes: NDArray[np.int32]
    """(rows,) positions in `names`."""


def _read_sources(source: xr.DataArray) -> _Sources:
    """Sources that a file holds as text, or as codes with `flag_meanings`."""
    values = source.to_numpy()
    meanings = str(source.attrs.get("flag_meanings", "")).split()
    if not (meanings and values.dtype.kind in "iu"):
        names, codes = np.unique(values.astype(str), return_inverse=True)
        return _Sources(names.tolist(), codes.astype(np.int32))
    if values.size and not 0 <= values.min() <= values.max() < len(meanings):
        raise UserError(f"source: codes beyond its {len(meanings)} flag_meanings")
    # By code: a million names would have to be made and sorted else.
    present = np.flatnonzero(np.bincount(values))
    names = sorted(meanings[code] for code in present)
    position = np.zeros(len(meanings), np.int32)
    position[present] = [names.index(meanings[code]) for code in present]
    return _Sources(names, position[values])
