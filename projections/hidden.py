"""The fitted linear map between hidden states and the directions that analyses speak of.

One object is fitted once, on inliers of real rollouts, and used everywhere: for states, for
gradients, for interventions. Its one set of statistics serves `fit` and `transform` alike.

With z = (h − mean) / scale, PCA finds the rows C of the rotation, ICA (Hyvärinen and Oja,
"Independent component analysis: algorithms and applications", 2000) the rotation W of the first K
standardised principal components. So the coordinates are s = P (h − mean), with

    P = W diag(1/sd) C_K diag(1/scale),    M = ∂h/∂s = diag(scale) C_Kᵀ diag(sd) W⁻¹,    P M = I.

NMF (Lee and Seung, 1999) factorises h − min ≈ s F instead; there M = Fᵀ and P is its
pseudo-inverse.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import NMF, PCA, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from experiment.errors import UserError
from experiment.files import atomic_folder, hash_bytes, read_json, write_json
from experiment.provenance import Provenance, to_plain
from projections.coordinates import CoordinateStatistics, LinearCoordinates
from projections.outliers import inlier_mask

Method = Literal["ica", "pca", "nmf"]

SCHEMA_VERSION = 1
_ARRAYS_FILE = "projection.safetensors"
_METADATA_FILE = "projection.json"
_ARRAYS = (
    "mean_",
    "scale_",
    "components_",
    "component_deviations_",
    "explained_variance_ratio_",
    "origin_",
    "linear_",
    "directions_",
)
_FACTS = ("n_samples_", "n_inliers_", "n_iter_", "converged_", "data_hash_")
_RELATIVE_RANK_TOLERANCE = 1e-6
_ROWS_IN_CACHE = 4096


class HiddenProjection(TransformerMixin, BaseEstimator):
    """Standardise → PCA → ICA, or NMF, of hidden states; a scikit-learn estimator.

    Args:
        method: `ica`; `pca` for standardised principal components; `nmf`.
        n_components: K. When the data have a lower rank, the rank is used, with a warning.
        max_iter: limit on the iterations of ICA or NMF.
        tol: when ICA counts as converged.
        random_state: seed of the start of ICA or NMF.

    Attributes:
        mean_: (H,) mean of the inliers.
        scale_: (H,) their standard deviation, 1 for a unit that never varies.
        components_: (R, H) principal components of the standardised states, in rows.
        component_deviations_: (R,) standard deviation of each component's scores.
        explained_variance_ratio_: (R,) share of the total standardised variance.
        origin_: (H,) the state whose coordinates are all zero.
        linear_: (K, H) P, with P M = I.
        directions_: (H, K) M = ∂h/∂s.
        n_components_: K after all.
        n_samples_: how many states were given.
        n_inliers_: how many of them were fitted on.
        n_iter_: iterations that ICA or NMF took; 0 for PCA.
        converged_: whether it converged within `max_iter`.
        data_hash_: hash of the states and of the mask that chose the inliers.
        provenance_: where a loaded projection comes from; None before it is saved.
    """

    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]
    components_: NDArray[np.float64]
    component_deviations_: NDArray[np.float64]
    explained_variance_ratio_: NDArray[np.float64]
    origin_: NDArray[np.float64]
    linear_: NDArray[np.float64]
    directions_: NDArray[np.float64]
    n_samples_: int
    n_inliers_: int
    n_iter_: int
    converged_: bool
    data_hash_: str
    provenance_: dict[str, Any] | None

    def __init__(
        self,
        method: Method = "ica",
        n_components: int = 16,
        max_iter: int = 8000,
        tol: float = 0.02,
        random_state: int = 0,
    ) -> None:
        self.method: Method = method
        self.n_components = n_components
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(
        self, states: ArrayLike, y: None = None, *, inliers: ArrayLike | None = None
    ) -> "HiddenProjection":
        """Fit on the inliers among (N, H) hidden states.

        Args:
            states: (N, H) hidden states of real rollouts.
            y: ignored, as scikit-learn's conventions want.
            inliers: (N,) true for the states to fit on; `inlier_mask(states)` when not given.

        Raises:
            UserError: too few inliers, or states that are not finite.
        """
        states = np.asarray(states)
        if states.ndim != 2 or not np.isfinite(states).all():
            raise UserError(f"hidden states: expected finite (N, H), found shape {states.shape}")
        mask = inlier_mask(states) if inliers is None else np.asarray(inliers, np.bool_)
        chosen = states[mask].astype(np.float64)
        if len(chosen) < 2:
            raise UserError(f"hidden states: {len(chosen)} inliers are too few for a projection")
        self.provenance_ = None
        self.n_samples_, self.n_inliers_ = len(states), len(chosen)
        self.data_hash_ = hash_bytes(np.ascontiguousarray(states).tobytes(), mask.tobytes())
        self._fit_principal_components(chosen)
        self._fit_directions(chosen)
        return self

    def _fit_principal_components(self, states: NDArray[np.float64]) -> None:
        self.mean_ = states.mean(axis=0)
        deviation = states.std(axis=0)
        # What rounding leaves of a constant is no variance.
        is_constant = deviation <= 1e-12 * np.maximum(np.abs(self.mean_), 1.0)
        self.scale_ = np.where(is_constant, 1.0, deviation)
        pca: Any = PCA(svd_solver="covariance_eigh")
        pca.fit((states - self.mean_) / self.scale_)
        sample_to_population = (len(states) - 1) / len(states)
        deviations = np.sqrt(pca.explained_variance_ * sample_to_population)
        rank = int(np.sum(deviations > _RELATIVE_RANK_TOLERANCE * max(deviations[0], 1e-12)))
        if rank == 0:
            raise UserError("hidden states: all are the same, so they have no directions")
        self.components_ = pca.components_[:rank].copy()
        self.components_[:, is_constant] = 0.0
        self.component_deviations_ = deviations[:rank]
        self.explained_variance_ratio_ = pca.explained_variance_ratio_[:rank]

    def _fit_directions(self, states: NDArray[np.float64]) -> None:
        num_directions = min(self.n_components, len(self.components_))
        if num_directions < self.n_components:
            warnings.warn(
                f"the hidden states have rank {num_directions}: using {num_directions} components "
                f"instead of {self.n_components}",
                stacklevel=3,
            )
        if self.method == "nmf":
            self._fit_nmf(states, num_directions)
            return
        whitened = self._principal_coordinates(num_directions)
        unmixing = np.eye(num_directions)
        self.n_iter_, self.converged_ = 0, True
        if self.method == "ica":
            scores = (states - self.mean_) @ whitened.linear.T
            unmixing = self._unmix(scores)
        self.origin_ = self.mean_
        self.linear_ = unmixing @ whitened.linear
        self.directions_ = whitened.directions @ np.linalg.inv(unmixing)

    def _principal_coordinates(self, num_directions: int) -> LinearCoordinates:
        components = self.components_[:num_directions]
        deviations = self.component_deviations_[:num_directions]
        return LinearCoordinates(
            linear=components / deviations[:, None] / self.scale_,
            directions=self.scale_[:, None] * components.T * deviations,
            origin=self.mean_,
        )

    def _unmix(self, whitened: NDArray[np.float64]) -> NDArray[np.float64]:
        ica = FastICA(
            whiten=False,  # type: ignore[arg-type] (the stub knows only the strings)
            fun="logcosh",
            max_iter=self.max_iter,
            tol=self.tol,
            random_state=self.random_state,
        )
        self._record_convergence(ica, whitened)
        return np.asarray(ica.components_, np.float64)

    def _fit_nmf(self, states: NDArray[np.float64], num_directions: int) -> None:
        nmf = NMF(
            num_directions,  # type: ignore[arg-type] (the stub knows only the strings)
            init="random",
            max_iter=self.max_iter,
            random_state=self.random_state,
        )
        self.origin_ = states.min(axis=0)
        self._record_convergence(nmf, states - self.origin_)
        self.directions_ = nmf.components_.T
        self.linear_ = np.asarray(np.linalg.pinv(self.directions_), np.float64)

    def _record_convergence(self, estimator: FastICA | NMF, data: NDArray[np.float64]) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            estimator.fit(data)
        self.n_iter_ = int(estimator.n_iter_)
        self.converged_ = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        if not self.converged_:
            warnings.warn(
                f"{self.method.upper()} did not converge in {self.n_iter_} iterations: its "
                "directions may change with the seed",
                ConvergenceWarning,
                stacklevel=5,
            )

    @property
    def n_components_(self) -> int:
        """K, the number of directions."""
        return len(self.linear_)

    @property
    def directions(self) -> NDArray[np.float64]:
        """(H, K) M = ∂h/∂s; column k is direction k in hidden space."""
        return self.directions_

    @property
    def data_hash(self) -> str:
        """Hash of the data that the projection was fitted on."""
        return self.data_hash_

    @property
    def mean_residual_(self) -> NDArray[np.float64]:
        """(H,) what the coordinates leave of the mean state."""
        return np.asarray(self.residual(self.mean_), np.float64)

    def transform(self, states: ArrayLike) -> NDArray[np.floating]:
        """(..., H) hidden states → (..., K) coordinates, in the same precision.

        A state has the same coordinates, to the last bit, whatever else is in the array.
        """
        states = self._check_hidden(states)
        flat = states.reshape(-1, states.shape[-1])
        coordinates = _multiply_row_by_row(flat, self.origin_, self.linear_)
        return _like(states, coordinates.reshape(*states.shape[:-1], self.n_components_))

    def inverse_transform(
        self, coordinates: ArrayLike, residual: ArrayLike | None = None
    ) -> NDArray[np.floating]:
        """(..., K) coordinates → (..., H) hidden states.

        Args:
            coordinates: (..., K)
            residual: (..., H) part that the coordinates leave out, as `residual` gives it; the
                mean state's by default.
        """
        coordinates = self._check_coordinates(coordinates)
        rest = self.mean_residual_ if residual is None else np.asarray(residual)
        return _like(coordinates, self.origin_ + coordinates @ self.directions_.T + rest)

    def residual(self, states: ArrayLike) -> NDArray[np.floating]:
        """(..., H) hidden states → (..., H) the part that the coordinates leave out."""
        states = self._check_hidden(states)
        offset = states - self.origin_
        return _like(states, offset - (offset @ self.linear_.T) @ self.directions_.T)

    def pullback(self, gradients: ArrayLike) -> NDArray[np.floating]:
        """(..., H) gradients ∂y/∂h → (..., K) ∂y/∂s, the residual held fixed."""
        gradients = self._check_hidden(gradients)
        return _like(gradients, gradients @ self.directions_)

    def principal_components(self, states: ArrayLike) -> NDArray[np.floating]:
        """(..., H) hidden states → (..., R) scores on the principal components."""
        states = self._check_hidden(states)
        return _like(states, ((states - self.mean_) / self.scale_) @ self.components_.T)

    def coordinates(self, direction_type: Method) -> LinearCoordinates:
        """The linear map for components of one type, with their statistics.

        `pca` gives all principal components, standardised to unit variance. `ica` and `nmf` exist
        only in a projection fitted by that method.

        Raises:
            UserError: the projection has no such directions.
        """
        check_is_fitted(self)
        if direction_type == "pca":
            return self.with_statistics(self._principal_coordinates(len(self.components_)))
        if direction_type != self.method:
            raise UserError(
                f"--direction_type {direction_type}: the projection was fitted by {self.method}"
            )
        return self.with_statistics(LinearCoordinates(self.linear_, self.directions_, self.origin_))

    def with_statistics(self, coordinates: LinearCoordinates) -> LinearCoordinates:
        """Tell mean and standard deviation, over the inliers, of any coordinates of these states.

        The principal components are all kept, so the states' covariance is F Fᵀ with the columns
        of F = ∂h/∂(standardised components), and that of the coordinates P F Fᵀ Pᵀ.
        """
        check_is_fitted(self)
        factor = self._principal_coordinates(len(self.components_)).directions
        statistics = CoordinateStatistics(
            mean=coordinates.linear @ (self.mean_ - coordinates.origin),
            deviation=np.linalg.norm(coordinates.linear @ factor, axis=1),
        )
        return replace(coordinates, statistics=statistics)

    def _check_hidden(self, states: ArrayLike) -> NDArray[np.floating]:
        check_is_fitted(self)
        return _floats_of_width(states, len(self.mean_))

    def _check_coordinates(self, coordinates: ArrayLike) -> NDArray[np.floating]:
        check_is_fitted(self)
        return _floats_of_width(coordinates, self.n_components_)

    def save(self, folder: Path | str, provenance: Provenance | None = None) -> None:
        """Write the projection as a folder, atomically: safetensors and JSON.

        Without `provenance`, a loaded projection keeps the one that it came with.
        """
        check_is_fitted(self)
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        metadata = {
            "kind": "hidden_projection",
            "schema_version": SCHEMA_VERSION,
            "parameters": self.get_params(),
            "n_components": self.n_components_,
            "facts": {name: getattr(self, name) for name in _FACTS},
            "provenance": to_plain(provenance) if provenance else self.provenance_,
        }
        with atomic_folder(folder) as temporary:
            save_file(arrays, temporary / _ARRAYS_FILE)
            write_json(temporary / _METADATA_FILE, metadata)

    @classmethod
    def load(cls, folder: Path | str) -> "HiddenProjection":
        """Read what `save` wrote.

        Raises:
            UserError: the folder holds no projection, or one of an unknown version.
        """
        folder = Path(folder)
        metadata = read_json(folder / _METADATA_FILE)
        if metadata.get("kind") != "hidden_projection":
            raise UserError(f"{folder}: not a projection of hidden states")
        if metadata["schema_version"] != SCHEMA_VERSION:
            raise UserError(
                f"{folder}: projection schema {metadata['schema_version']} is unknown, "
                f"expected {SCHEMA_VERSION}"
            )
        projection = cls(**metadata["parameters"])
        for name, value in {**_load_arrays(folder), **metadata["facts"]}.items():
            setattr(projection, name, value)
        projection.provenance_ = metadata["provenance"]
        return projection


def has_projection(folder: Path | str) -> bool:
    """Whether a fitted projection lies in `folder`."""
    return (Path(folder) / _METADATA_FILE).exists()


def load_fitting_projection(
    folder: Path | str, hidden_slice: slice, flag: str = "--projection"
) -> HiddenProjection:
    """The projection in `folder`, which must be of hidden states of the agent's size.

    Args:
        folder: as `HiddenProjection.save` wrote it.
        hidden_slice: of the agent's state.
        flag: that named the folder.

    Raises:
        UserError: no projection in the folder, or one for another hidden size.
    """
    if not has_projection(folder):
        raise UserError(
            f"{flag} {folder}: no such projection; make it with: "
            "python analysis/hidden_analysis_precompute.py"
        )
    projection = HiddenProjection.load(folder)
    num_units, hidden_dim = len(projection.mean_), hidden_slice.stop - (hidden_slice.start or 0)
    if num_units != hidden_dim:
        raise UserError(
            f"{flag} {folder}: fitted on {num_units} hidden units, the agent has {hidden_dim}"
        )
    return projection


def _floats_of_width(values: ArrayLike, width: int) -> NDArray[np.floating]:
    values = np.asarray(values)
    if values.ndim == 0 or values.shape[-1] != width:
        raise ValueError(f"expected (..., {width}), found {values.shape}")
    return values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float64)


def _multiply_row_by_row(
    states: NDArray[np.floating], origin: NDArray[np.float64], linear: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N, H) states → (N, K) P (h − origin), summed over H in one fixed order.

    BLAS sums in an order that depends on N, so that a file written in pieces would differ in its
    last bits from the whole.
    """
    result = np.empty((len(states), len(linear)))
    for start in range(0, len(states), _ROWS_IN_CACHE):
        rows = slice(start, start + _ROWS_IN_CACHE)
        # Rows in the last dimension: the inner loops of numpy are then long and contiguous.
        offsets = np.ascontiguousarray((states[rows] - origin).T)
        total = np.zeros((len(linear), offsets.shape[1]))
        for weights, offset in zip(linear.T, offsets, strict=True):
            total += weights[:, None] * offset
        result[rows] = total.T
    return result


def _like(given: NDArray[np.floating], result: NDArray[np.floating]) -> NDArray[np.floating]:
    return result.astype(given.dtype, copy=False)


def _load_arrays(folder: Path) -> dict[str, NDArray[np.float64]]:
    path = folder / _ARRAYS_FILE
    try:
        arrays = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{path}: unreadable arrays of a projection ({error})") from None
    if set(arrays) != set(_ARRAYS):
        raise UserError(f"{path}: found {sorted(arrays)}, expected {sorted(_ARRAYS)}")
    return arrays


class TorchProjection(nn.Module):
    """Differentiable copy of a fitted projection; nothing in it is trained.

    Args:
        projection: a fitted projection.
        dtype: precision of the copy.
    """

    linear: Tensor
    directions: Tensor
    origin: Tensor
    mean_residual: Tensor

    def __init__(self, projection: HiddenProjection, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        arrays = {
            "linear": projection.linear_,
            "directions": projection.directions_,
            "origin": projection.origin_,
            "mean_residual": projection.mean_residual_,
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.tensor(array, dtype=dtype))

    def transform(self, states: Tensor) -> Tensor:
        """(..., H) hidden states → (..., K) coordinates."""
        return (states - self.origin) @ self.linear.T

    def inverse_transform(self, coordinates: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., K) coordinates → (..., H) states; the residual is the mean state's by default."""
        rest = self.mean_residual if residual is None else residual
        return self.origin + coordinates @ self.directions.T + rest

    def residual(self, states: Tensor) -> Tensor:
        """(..., H) hidden states → (..., H) the part that the coordinates leave out."""
        offset = states - self.origin
        return offset - (offset @ self.linear.T) @ self.directions.T

    def pullback(self, gradients: Tensor) -> Tensor:
        """(..., H) gradients ∂y/∂h → (..., K) ∂y/∂s, the residual held fixed."""
        return gradients @ self.directions

    def forward(self, states: Tensor) -> Tensor:
        """The same as `transform`."""
        return self.transform(states)
