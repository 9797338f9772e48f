"""Where the directions of an intervention come from, and how to know them again."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from experiment.errors import UserError
from projections.coordinates import (
    LinearCoordinates,
    coordinates_along,
    coordinates_of_units,
)
from projections.hidden import HiddenProjection, load_fitting_projection

DirectionType = Literal["ica", "pca", "nmf", "unit", "file"]
"""What a direction is: a component of a projection, a hidden unit, or a row of a file."""

_RELATIVE_RANK_TOLERANCE = 1e-6


@dataclass(frozen=True)
class DirectionChoice:
    """Which directions are meant."""

    direction_type: DirectionType = "ica"
    projection: str | None = None
    """Folder of the projection that defines them; of hidden units and of directions from a file
    it tells only the statistics, and may be absent."""
    directions_file: str | None = None
    """`.npy` of (num_directions, hidden_dim), for `file` alone."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions that have been loaded."""

    coordinates: LinearCoordinates
    choice: DirectionChoice
    """Where they came from."""

    def describe(self) -> dict[str, Any]:
        """Plain values by which the same directions are found, and known to be the same."""
        return {**asdict(self.choice), "hash": self.coordinates.hash}


def load_directions(choice: DirectionChoice, hidden_dim: int) -> Directions:
    """Load the chosen directions of hidden states with `hidden_dim` units.

    Raises:
        UserError: no projection or file where one is needed, or one that does not fit.
    """
    if choice.direction_type != "file" and choice.directions_file is not None:
        raise UserError(
            f"--directions_file {choice.directions_file}: goes with --direction_type file, "
            f"found {choice.direction_type}"
        )
    projection = None
    if choice.projection is not None:
        projection = load_fitting_projection(choice.projection, slice(hidden_dim))
    # Whoever repeats the intervention may stand in another folder.
    found_again = DirectionChoice(
        choice.direction_type, _absolute(choice.projection), _absolute(choice.directions_file)
    )
    return Directions(_coordinates(choice, projection, hidden_dim), found_again)


def directions_from_description(description: dict[str, Any], hidden_dim: int) -> Directions:
    """Load the directions that `Directions.describe` described.

    Raises:
        UserError: what defines them is gone, or defines other directions by now.
    """
    origins = [description[name] for name in ("projection", "directions_file")]
    for path in filter(None, origins):
        if not Path(path).exists():
            raise UserError(f"{path}: what defines the intervention's directions is gone")
    names = DirectionChoice.__dataclass_fields__
    choice = DirectionChoice(**{name: description[name] for name in names})
    directions = load_directions(choice, hidden_dim)
    found, expected = directions.coordinates.hash, description["hash"]
    if found != expected:
        named = " and ".join(filter(None, origins))
        raise UserError(
            f"{named}: defines other {choice.direction_type} directions ({found[:12]}) than those "
            f"of the intervention ({expected[:12]}); it has been made anew since"
        )
    return directions


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())


def _coordinates(
    choice: DirectionChoice, projection: HiddenProjection | None, hidden_dim: int
) -> LinearCoordinates:
    if choice.direction_type not in ("unit", "file"):
        if projection is None:
            raise UserError(f"--direction_type {choice.direction_type}: needs --projection")
        return projection.coordinates(choice.direction_type)
    if choice.direction_type == "unit":
        coordinates = coordinates_of_units(hidden_dim)
    else:
        coordinates = coordinates_along(_read_directions(choice.directions_file, hidden_dim))
    return coordinates if projection is None else projection.with_statistics(coordinates)


def _read_directions(file: str | None, hidden_dim: int) -> NDArray[np.float64]:
    """(num_directions, hidden_dim), finite and linearly independent."""
    if file is None:
        raise UserError("--direction_type file: needs --directions_file")
    try:
        rows = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"--directions_file {file}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--directions_file {file}: not a readable .npy file ({error})") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != hidden_dim:
        shape = getattr(rows, "shape", "an archive")
        raise UserError(
            f"--directions_file {file}: found {shape}, expected (num_directions, {hidden_dim})"
        )
    if rows.dtype.kind not in "fiu" or not np.isfinite(rows).all():
        raise UserError(f"--directions_file {file}: expected finite real numbers")
    rows = rows.astype(np.float64)
    sizes = np.linalg.svd(rows, compute_uv=False)
    rank = int(np.sum(sizes > _RELATIVE_RANK_TOLERANCE * sizes.max(initial=0.0)))
    if rank == 0 or rank < len(rows):
        raise UserError(
            f"--directions_file {file}: {len(rows)} directions of rank {rank}; expected linearly "
            "independent ones, since their coordinates are not defined otherwise"
        )
    return rows
