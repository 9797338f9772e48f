"""Interventions that redirect what the agent writes along directions of its hidden state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from experiment.errors import UserError
from projections.hidden import DirectionType, HiddenProjection, LinearCoordinates

SwapOn = Literal["updates", "states"]


class DirectionSwap:
    """Redirects or drops chosen directions of the hidden state, inside the recurrence.

    With h̃ the state that the agent proposes, h' the modified state before it, s = P (h − origin)
    and M = ∂h/∂s: on *updates*, Δs = P (h̃ − h'); the `source` entries of Δs are set to 0 and
    then Δs_i is added to Δs_j for each pair i → j (i → None only drops), which makes Δs*. The
    state carried on is h̃ + M (Δs* − Δs): the residual is untouched. On *states*, the same rule
    applies to s itself. A pair redirects one way; an exchange needs both pairs. Without pairs
    the proposed state is returned as it is.

    Args:
        coordinates: the linear map between states and directions.
        sources: direction i of each pair.
        targets: direction j of each pair, None to drop i.
        hidden_slice: the part of the flat state that holds the hidden state.
        swap_on: `updates` or `states`.
        labels: further plain values for `describe`: where the directions come from.

    Raises:
        UserError: lists of different lengths, or a direction that does not exist.
    """

    def __init__(
        self,
        coordinates: LinearCoordinates,
        sources: Sequence[int],
        targets: Sequence[int | None],
        hidden_slice: slice,
        swap_on: SwapOn = "updates",
        labels: dict[str, Any] | None = None,
    ) -> None:
        _check_lengths(sources, targets)
        _check_range(sources, targets, coordinates.num_directions)
        self.sources = tuple(sources)
        self.targets = tuple(targets)
        self.hidden_slice = hidden_slice
        self.swap_on: SwapOn = swap_on
        self._labels = labels or {}
        self._linear = torch.tensor(coordinates.linear, dtype=torch.float32)
        self._directions = torch.tensor(coordinates.directions, dtype=torch.float32)
        self._origin = torch.tensor(coordinates.origin, dtype=torch.float32)
        self._change = _change_of_coordinates(sources, targets, coordinates.num_directions)

    def to(self, device: torch.device | str) -> "DirectionSwap":
        """Move to a device, in place."""
        for name in ("_linear", "_directions", "_origin", "_change"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        """(B, state_dim) previous modified and proposed state → (B, state_dim) to carry on."""
        if not self.sources:
            return proposed
        start, stop, _ = self.hidden_slice.indices(proposed.shape[-1])
        hidden = proposed[..., start:stop]
        before = previous[..., start:stop] if self.swap_on == "updates" else self._origin
        coordinates = (hidden - before) @ self._linear.T
        modified = hidden + (coordinates @ self._change) @ self._directions.T
        return torch.cat([proposed[..., :start], modified, proposed[..., stop:]], dim=-1)

    def describe(self) -> dict[str, Any]:
        """Plain values that make the same intervention again, given the projection named."""
        return {
            "kind": "direction_swap",
            "swap_on": self.swap_on,
            "from": list(self.sources),
            "to": list(self.targets),
            "hidden_slice": [self.hidden_slice.start, self.hidden_slice.stop],
            **self._labels,
        }


def _check_lengths(sources: Sequence[int], targets: Sequence[int | None]) -> None:
    if len(sources) != len(targets):
        raise UserError(
            f"--swap_directions_from has {len(sources)} directions, --swap_directions_to "
            f"{len(targets)}: expected as many"
        )


def _check_range(sources: Sequence[int], targets: Sequence[int | None], count: int) -> None:
    for flag, directions in (("from", sources), ("to", targets)):
        for direction in directions:
            if direction is not None and not 0 <= direction < count:
                raise UserError(
                    f"--swap_directions_{flag} {direction}: expected a direction from 0 to "
                    f"{count - 1}"
                )


def _change_of_coordinates(
    sources: Sequence[int], targets: Sequence[int | None], count: int
) -> Tensor:
    """(K, K) D with s* − s = s D."""
    change = torch.zeros(count, count)
    for source in set(sources):
        change[source, source] = -1.0
    for source, target in zip(sources, targets, strict=True):
        if target is not None:
            change[source, target] += 1.0
    return change


def make_direction_swap(
    projection_folder: Path | str,
    sources: Sequence[int],
    targets: Sequence[int | None],
    hidden_slice: slice,
    direction_type: DirectionType = "ica",
    swap_on: SwapOn = "updates",
) -> DirectionSwap:
    """Make the intervention that `--swap_directions_from` and `--swap_directions_to` ask for.

    Raises:
        UserError: no projection in the folder, one for another hidden size, or unusable pairs.
    """
    _check_lengths(sources, targets)
    if not Path(projection_folder).is_dir():
        raise UserError(
            f"--projection {projection_folder}: no such projection; make it with: "
            "python analysis/hidden_analysis_precompute.py"
        )
    projection = HiddenProjection.load(projection_folder)
    hidden_dim = hidden_slice.stop - (hidden_slice.start or 0)
    if len(projection.mean_) != hidden_dim:
        raise UserError(
            f"--projection {projection_folder}: fitted on {len(projection.mean_)} hidden units, "
            f"the agent has {hidden_dim}"
        )
    labels = {
        "direction_type": direction_type,
        # Whoever repeats the intervention may stand in another folder.
        "projection": str(Path(projection_folder).resolve()),
        "projection_data_hash": projection.data_hash,
    }
    coordinates = projection.coordinates(direction_type)
    return DirectionSwap(coordinates, sources, targets, hidden_slice, swap_on, labels)


def swap_from_description(description: dict[str, Any]) -> DirectionSwap:
    """Make the intervention that `DirectionSwap.describe` described.

    Raises:
        UserError: the projection it names is gone, or was fitted on other data since.
    """
    folder, expected = description["projection"], description["projection_data_hash"]
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: the projection that defines the intervention is gone")
    found = HiddenProjection.load(folder).data_hash
    if found != expected:
        raise UserError(
            f"{folder}: fitted on other data ({found[:12]}) than the intervention's projection "
            f"({expected[:12]})"
        )
    return make_direction_swap(
        folder,
        description["from"],
        description["to"],
        slice(*description["hidden_slice"]),
        description["direction_type"],
        description["swap_on"],
    )
