"""Saliency results as the page sees them: raw signed gradients, one sample and view at a time."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.results import input_hashes, read_results
from experiment.errors import UserError
from panel.fingerprint import fingerprint
from panel.provenance import result_provenance
from panel.rollout_source import UnknownItemError

GRADIENT = "gradient_frame"
ACTIVATION, COMPONENT_GRADIENT = "activation", "gradient_component"
VIEW_DIMS = ("target", "target_step", "environment_gradient")
"""What tells the gradients of one sample apart: a *view* is one choice of all three."""


class SaliencySource:
    """Reads single samples from a result file that may be larger than memory."""

    def __init__(self, path: Path) -> None:
        self.content_hash = fingerprint(path)
        self._lock = threading.Lock()
        self._results: xr.Dataset = read_results(path)
        self._check(path)
        self._labels = [
            [str(label) for label in self._results[dim].to_numpy().tolist()] for dim in VIEW_DIMS
        ]
        self._positions = {
            int(sample): position
            for position, sample in enumerate(self._results["sample_id"].to_numpy())
            if sample >= 0
        }
        self.input_hashes = frozenset(dict(input_hashes(self._results)).values())

    @property
    def provenance(self) -> dict[str, Any]:
        """What the file says of its making."""
        return result_provenance(self._results)

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        targets, steps, gradients = self._labels
        return {
            "hash": self.content_hash,
            "targets": targets,
            "target_steps": steps,
            "environment_gradients": gradients,
            "sample_ids": sorted(self._positions),
            "num_components": self._num_components,
        }

    def signed_map(self, sample_id: int, view: tuple[str, str, str]) -> dict[str, NDArray]:
        """`saliency` (T, H, W), gradient of a target by the frames, mean over the channels.

        Args:
            sample_id: episode id of the simulated rollout.
            view: labels of target, target step and environment gradient.

        Raises:
            UnknownItemError: no such sample or view, or the target is undefined there.
        """
        gradient = self._read_view(GRADIENT, sample_id, view)
        return {"saliency": gradient.mean(axis=-1)}

    def components(self, sample_id: int, view: tuple[str, str, str]) -> dict[str, NDArray]:
        """`activation` (T, K) of one sample, and `gradient` (T, K) of a target with respect to it.

        The gradient is that of the hidden state pulled back onto the components: the change of the
        target per unit of a component, the rest of the state held fixed.

        Args:
            sample_id: episode id of the simulated rollout.
            view: as in `signed_map`.

        Raises:
            UnknownItemError: as in `signed_map`, or saliency was computed without components.
        """
        if self._num_components == 0:
            raise UnknownItemError(
                "saliency was computed without --projection: it has no components"
            )
        gradient = self._read_view(COMPONENT_GRADIENT, sample_id, view)
        with self._lock:
            activation = self._results[ACTIVATION][self._positions[sample_id]].to_numpy()
        return {"activation": activation, "gradient": gradient}

    @property
    def _num_components(self) -> int:
        has_both = ACTIVATION in self._results and COMPONENT_GRADIENT in self._results
        return int(self._results.sizes["component"]) if has_both else 0

    def _read_view(
        self, name: str, sample_id: int, view: tuple[str, str, str]
    ) -> NDArray[np.float32]:
        """(T, ...) rows of one gradient of one sample."""
        if sample_id not in self._positions:
            raise UnknownItemError(f"no saliency was computed for sample {sample_id}")
        indexers = {"sample": self._positions[sample_id]}
        for dim, label, known in zip(VIEW_DIMS, view, self._labels, strict=True):
            if label not in known:
                raise UnknownItemError(f"{dim}: the file has {', '.join(known)}")
            indexers[dim] = known.index(label)
        with self._lock:
            gradient = self._results[name].isel(indexers).transpose("step", ...).to_numpy()
        if not np.isfinite(gradient).all():
            raise UnknownItemError(f"target {view[0]} is undefined at step {view[1]}")
        return gradient.astype(np.float32, copy=False)

    def _check(self, path: Path) -> None:
        missing = [
            name
            for name in ("sample_id", GRADIENT, *VIEW_DIMS)
            if name not in self._results.variables
        ]
        if missing:
            raise UserError(f"{path.name}: {', '.join(missing)} missing")
