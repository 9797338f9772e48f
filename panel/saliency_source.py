"""Saliency results as the page sees them: raw signed gradients, one sample and view at a time."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panel.result_source import ResultSource
from panel.rollout_source import UnknownItemError

GRADIENT = "gradient_frame"
INTEGRATED, INTEGRATED_LATENT = "integrated_frame", "integrated_latent"
ACTIVATION, COMPONENT_GRADIENT = "activation", "gradient_component"
VIEW_DIMS = ("target", "target_step", "environment_gradient")
"""What tells the gradients of one sample apart: a *view* is one choice of all three."""
INTEGRATED_DIMS = ("target", "target_step", "baseline")
"""What tells the integrated gradients of one sample apart."""


class SaliencySource(ResultSource):
    """Reads single samples from a result file that may be larger than memory."""

    REQUIRED = ("sample_id", GRADIENT, *VIEW_DIMS)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._labels = [self._texts(dim) for dim in VIEW_DIMS]
        self._positions = {
            int(sample): position
            for position, sample in enumerate(self._read("sample_id"))
            if sample >= 0
        }

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        targets, steps, gradients = self._labels
        return {
            "hash": self.content_hash,
            "projection_hash": self.hash_of_input.get("projection_data"),
            "targets": targets,
            "target_steps": steps,
            "environment_gradients": gradients,
            "baselines": self._texts("baseline") if INTEGRATED in self._results else [],
            "has_integrated_latents": INTEGRATED_LATENT in self._results,
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

    def integrated_map(self, sample_id: int, view: tuple[str, str, str]) -> dict[str, NDArray]:
        """`saliency` (T, H, W), integrated gradient of a target over the frames, sum over the
        channels; the (1,) `difference` of the target between sample and baseline, which it has to
        sum to; the (1,) `delta` that it misses; and `met`, (1,) int32, 1 where that is within the
        tolerance of the computation and 0 where it is not.

        Args:
            sample_id: episode id of the simulated rollout.
            view: labels of target, target step and baseline.

        Raises:
            UnknownItemError: as in `signed_map`, or nothing was integrated over frames.
        """
        if INTEGRATED not in self._results:
            raise UnknownItemError("saliency was computed without --integrate frames")
        attribution = self._read_view(INTEGRATED, sample_id, view, INTEGRATED_DIMS)
        at = self._at(sample_id, view, INTEGRATED_DIMS)
        told = {name: self._read(f"{INTEGRATED}_{name}", **at) for name in ("difference", "delta")}
        return {
            "saliency": attribution.sum(axis=-1),
            **{name: np.reshape(value, 1) for name, value in told.items()},
            "met": self._read(f"{INTEGRATED}_met", **at).reshape(1).astype(np.int32),
        }

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
        self._require_components()
        gradient = self._read_view(COMPONENT_GRADIENT, sample_id, view)
        with self._lock:
            activation = self._results[ACTIVATION][self._positions[sample_id]].to_numpy()
        return {"activation": activation, "gradient": gradient}

    def component_gradients(self, view: tuple[str, str, str]) -> dict[str, NDArray]:
        """(N,) `sample_id`, and `gradient` (N, T, K) of a target with respect to the components of
        every sample; NaN where the target is undefined.

        Args:
            view: as in `signed_map`.

        Raises:
            UnknownItemError: no such view, or saliency was computed without components.
        """
        self._require_components()
        order = sorted(self._positions)
        rows = [self._positions[sample] for sample in order]
        indexers = self._indexers(view)
        with self._lock:
            chosen = self._results[COMPONENT_GRADIENT].isel(indexers)
            gradient = chosen.transpose("sample", "step", "component").to_numpy()
        return {
            "sample_id": np.array(order, np.int64),
            "gradient": gradient[rows].astype(np.float32, copy=False),
        }

    def _require_components(self) -> None:
        if self._num_components == 0:
            raise UnknownItemError(
                "saliency was computed without --projection: it has no components"
            )

    @property
    def _num_components(self) -> int:
        has_both = ACTIVATION in self._results and COMPONENT_GRADIENT in self._results
        return int(self._results.sizes["component"]) if has_both else 0

    def _read_view(
        self,
        name: str,
        sample_id: int,
        view: tuple[str, str, str],
        dims: tuple[str, ...] = VIEW_DIMS,
    ) -> NDArray[np.float32]:
        """(T, ...) rows of one gradient of one sample."""
        indexers = self._at(sample_id, view, dims)
        with self._lock:
            gradient = self._results[name].isel(indexers).transpose("step", ...).to_numpy()
        if not np.isfinite(gradient).all():
            raise UnknownItemError(f"target {view[0]} is undefined at step {view[1]}")
        return gradient.astype(np.float32, copy=False)

    def _at(
        self, sample_id: int, view: tuple[str, str, str], dims: tuple[str, ...]
    ) -> dict[str, int]:
        """Where the values of one sample and view lie."""
        if sample_id not in self._positions:
            raise UnknownItemError(f"no saliency was computed for sample {sample_id}")
        return {"sample": self._positions[sample_id], **self._indexers(view, dims)}

    def _indexers(
        self, view: tuple[str, str, str], dims: tuple[str, ...] = VIEW_DIMS
    ) -> dict[str, int]:
        return {dim: self._position(dim, label) for dim, label in zip(dims, view, strict=True)}
