"""What an intervention is compared with: changes as large, in other directions.

A control asks the tested intervention what change δ it would make to the control's own state, and
makes another change of the same size in its place. So its effects are those of pushing the hidden
state about as much and as often, but not along the directions in question.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment.randomness import keyed_normal
from projections.directions import Directions
from projections.intervention import MovableIntervention, descriptions_of
from projections.interventions import replace_hidden

ControlType = Literal["none", "sign_flip", "random", "random_like_states"]
"""What stands in place of the tested intervention: nothing, its change with the sign reversed, or
a change along random directions, drawn evenly or as the hidden states themselves vary."""


@dataclass(frozen=True)
class MeasuredNorm:
    """How large the changes of a recorded intervention are."""

    mean: float
    """Mean Euclidean norm of the change of the hidden state, over the rows that were changed."""
    dataset_hash: str
    """Of the recording."""


@dataclass(frozen=True, eq=False)
class Spared:
    """Coordinates that a control leaves where they are."""

    directions: Directions
    """Define the coordinates, those of the intervention."""
    indices: tuple[int, ...]

    def take_from(self, changes: NDArray[np.float64]) -> NDArray[np.float64]:
        """(H, N) changes of the hidden state → the same without what they do to these coordinates.

        All other coordinates, and the residual, stay as they are: h − M_S P_S h.
        """
        coordinates, chosen = self.directions.coordinates, list(self.indices)
        return changes - coordinates.directions[:, chosen] @ (coordinates.linear[chosen] @ changes)

    def describe(self) -> dict[str, Any]:
        """Plain values that tell the same coordinates again."""
        return {"indices": list(self.indices), "of_directions": self.directions.describe()}


class SignFlip:
    """The tested change the other way round: h' = h̃ − δ.

    Args:
        tested: the intervention.
    """

    def __init__(self, tested: MovableIntervention) -> None:
        self.tested = tested

    def to(self, device: torch.device | str) -> Self:
        """Move to a device, in place."""
        self.tested.to(device)
        return self

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        """(B, state_dim) previous modified and proposed state → (B, state_dim) to carry on."""
        return proposed - (self.tested(previous, proposed, step) - proposed)

    def describe(self) -> dict[str, Any]:
        """Plain values that make the same control again."""
        return {"kind": "sign_flip", "of": list(descriptions_of(self.tested))}


class RandomDirections:
    """The tested change turned to random directions: h' = h̃ + n Q δ / ‖Q δ‖.

    The random matrix Q is fixed. So a tested direction is replaced by one random direction
    throughout, and what alternates in sign along it alternates along the other. Q = F Z with Z
    standard normal: Q m, for a unit vector m, is a draw from the normal distribution with the
    covariance F Fᵀ. That is the identity (*random*), or that of the hidden states
    (*random_like_states*): the first also points where states never vary.

    n is ‖δ‖, so that each change is as large as the one that the tested intervention would make
    to the same state; or a number given. The second is for interventions like a clamp, which
    makes small changes once the coordinate is held: the control never gets there.

    *Spared* coordinates do not change: what Q δ would do to them is taken away before it gets its
    norm. So a control can be compared with the tested change by what happens to a coordinate
    afterwards, which it has not itself moved.

    Args:
        tested: the intervention.
        hidden_slice: the part of the flat state that holds the hidden state, of H units.
        seed: of Q.
        principal_components: all of the hidden states', for *random_like_states*.
        norm: n, where it was measured.
        spared: what stays; None for nothing.
    """

    def __init__(
        self,
        tested: MovableIntervention,
        hidden_slice: slice,
        seed: int = 0,
        principal_components: Directions | None = None,
        norm: MeasuredNorm | None = None,
        spared: Spared | None = None,
    ) -> None:
        self.tested = tested
        self.hidden_slice = slice(hidden_slice.start or 0, hidden_slice.stop)
        self.seed = seed
        self.norm = norm
        self.spared = spared
        self._components = principal_components
        hidden_dim = self.hidden_slice.stop - self.hidden_slice.start
        factor = None if principal_components is None else principal_components.coordinates
        num_draws = hidden_dim if factor is None else factor.num_directions
        mixing = keyed_normal(seed, "control_directions", range(num_draws), size=hidden_dim)
        if factor is not None:
            mixing = factor.directions @ mixing
        if spared is not None:
            mixing = spared.take_from(mixing)
        self._mixing = torch.tensor(mixing, dtype=torch.float32)

    def to(self, device: torch.device | str) -> Self:
        """Move to a device, in place."""
        self.tested.to(device)
        self._mixing = self._mixing.to(device)
        return self

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        """(B, state_dim) previous modified and proposed state → (B, state_dim) to carry on."""
        tested = self.tested(previous, proposed, step)
        if tested is proposed:
            return proposed
        hidden = proposed[..., self.hidden_slice]
        change = tested[..., self.hidden_slice] - hidden
        turned = change @ self._mixing.T
        norm = change.norm(dim=-1, keepdim=True)
        if self.norm is not None:
            norm = self.norm.mean * (norm > 0)
        # Nothing turned is nothing: 0 / smallest number.
        smallest = torch.finfo(turned.dtype).tiny
        turned = turned * (norm / turned.norm(dim=-1, keepdim=True).clamp_min(smallest))
        return replace_hidden(proposed, hidden + turned, self.hidden_slice)

    def describe(self) -> dict[str, Any]:
        """Plain values that make the same control again."""
        components = self._components
        spared = {} if self.spared is None else {"spared": self.spared.describe()}
        return {
            "kind": "random_directions",
            "of": list(descriptions_of(self.tested)),
            "seed": self.seed,
            "norm": None if self.norm is None else asdict(self.norm),
            "hidden_slice": [self.hidden_slice.start, self.hidden_slice.stop],
            "principal_components": None if components is None else components.describe(),
            **spared,
        }
