"""Interventions along directions of the agent's hidden state.

With h̃ the state that the agent proposes, h' the modified state of the step before,
s = P (h − origin) the coordinates and M = ∂h/∂s (so that P M = I), every intervention here is an
affine change of coordinates,

    s* − s = D s + b,    h' ← h̃ + M (s* − s),

which leaves the residual, what the coordinates do not see, untouched. It acts on *states*, where
s = P (h̃ − origin), or on *updates*, where P (h̃ − h') stands in its place. The rules differ in D
and b alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiment.errors import UserError
from projections.coordinates import LinearCoordinates
from projections.directions import Directions, directions_from_description
from projections.steps import ALL_STEPS, Steps, steps_from_description

ActsOn = Literal["updates", "states"]
"""What a step adds to the state, or the state itself."""
AmountUnit = Literal["deviation", "coordinate"]
"""Standard deviations of a coordinate over the states that a projection was fitted on, or the
coordinate's own unit."""


@dataclass(frozen=True, eq=False)
class AffineChange:
    """s* − s = D s + b."""

    matrix: NDArray[np.float64]
    """(K, K) D."""
    offset: NDArray[np.float64]
    """(K,) b."""
    acts_on: ActsOn


@dataclass(frozen=True)
class Swap:
    """Redirects or drops directions.

    All sources of s are set to 0, then s_i is added to s_j for each pair i → j; i → None only
    drops. A pair redirects one way; an exchange needs both pairs.

    Raises:
        UserError: as many sources as targets are expected.
    """

    kind: ClassVar[str] = "swap"
    sources: tuple[int, ...]
    targets: tuple[int | None, ...]
    acts_on: ActsOn = "updates"

    def __post_init__(self) -> None:
        _require_pairs("swap_directions_from", self.sources, "swap_directions_to", self.targets)

    def change(self, coordinates: LinearCoordinates) -> AffineChange:
        """D and b; raises `UserError` for a direction that does not exist."""
        count = coordinates.num_directions
        _require_directions("swap_directions_from", self.sources, count)
        received = [target for target in self.targets if target is not None]
        _require_directions("swap_directions_to", received, count)
        matrix = np.zeros((count, count))
        matrix[list(set(self.sources)), list(set(self.sources))] = -1.0
        for source, target in zip(self.sources, self.targets, strict=True):
            if target is not None:
                matrix[target, source] += 1.0
        return AffineChange(matrix, np.zeros(count), self.acts_on)


@dataclass(frozen=True)
class Scale:
    """Multiplies s_i by a factor.

    Raises:
        UserError: a direction named twice, or without a finite factor of its own.
    """

    kind: ClassVar[str] = "scale"
    directions: tuple[int, ...]
    factors: tuple[float, ...]
    acts_on: ActsOn = "updates"

    def __post_init__(self) -> None:
        _require_amounts("scale_directions", self.directions, "scale_factors", self.factors)

    def change(self, coordinates: LinearCoordinates) -> AffineChange:
        """D and b; raises `UserError` for a direction that does not exist."""
        diagonal = _spread(self.directions, np.array(self.factors) - 1.0, coordinates, "scale")
        return AffineChange(np.diag(diagonal), np.zeros(len(diagonal)), self.acts_on)


@dataclass(frozen=True)
class Add:
    """Adds a constant to s_i at every step at which it acts.

    Raises:
        UserError: a direction named twice, or without a finite amount of its own.
    """

    kind: ClassVar[str] = "add"
    directions: tuple[int, ...]
    amounts: tuple[float, ...]
    unit: AmountUnit = "deviation"

    def __post_init__(self) -> None:
        _require_amounts("add_directions", self.directions, "add_amounts", self.amounts)

    def change(self, coordinates: LinearCoordinates) -> AffineChange:
        """D and b; raises `UserError` for a direction that does not exist or has no such unit."""
        offset = _spread(self.directions, np.array(self.amounts), coordinates, "add")
        if self.unit == "deviation":
            offset *= _deviations(self.directions, coordinates, "add_directions")
        return AffineChange(np.zeros((len(offset), len(offset))), offset, "states")


@dataclass(frozen=True)
class Clamp:
    """Holds s_i at a value; in standard deviations, at so many of them from the mean.

    Raises:
        UserError: a direction named twice, or without a finite value of its own.
    """

    kind: ClassVar[str] = "clamp"
    directions: tuple[int, ...]
    values: tuple[float, ...]
    unit: AmountUnit = "deviation"

    def __post_init__(self) -> None:
        _require_amounts("clamp_directions", self.directions, "clamp_values", self.values)

    def change(self, coordinates: LinearCoordinates) -> AffineChange:
        """D and b; raises `UserError` for a direction that does not exist or has no such unit."""
        is_held = _spread(self.directions, np.ones(len(self.directions)), coordinates, "clamp")
        offset = _spread(self.directions, np.array(self.values), coordinates, "clamp")
        if self.unit == "deviation":
            offset *= _deviations(self.directions, coordinates, "clamp_directions")
            if coordinates.statistics is not None:
                offset += is_held * coordinates.statistics.mean
        return AffineChange(-np.diag(is_held), offset, "states")


Rule = Swap | Scale | Add | Clamp
RULES: dict[str, type[Rule]] = {rule.kind: rule for rule in (Swap, Scale, Add, Clamp)}


class DirectionIntervention:
    """A rule applied inside the recurrence.

    A rule that names no direction, and every rule at a step that is not chosen, returns the
    proposed state as it is.

    Args:
        rule: what happens to the coordinates.
        directions: whose coordinates they are.
        hidden_slice: the part of the flat state that holds the hidden state; the rest (the cell
            of an LSTM, say) is left alone.
        steps: when it acts.

    Raises:
        UserError: the rule names a direction that does not exist, or an unusable number.
    """

    def __init__(
        self, rule: Rule, directions: Directions, hidden_slice: slice, steps: Steps = ALL_STEPS
    ) -> None:
        self.rule = rule
        self.hidden_slice = slice(hidden_slice.start or 0, hidden_slice.stop)
        self.steps = steps
        self._directions = directions
        coordinates = directions.coordinates
        change = rule.change(coordinates)
        self._acts_on = change.acts_on
        self._is_idle = not change.matrix.any() and not change.offset.any()
        self._read = torch.tensor(coordinates.linear, dtype=torch.float32)
        self._write = torch.tensor(coordinates.directions, dtype=torch.float32)
        self._origin = torch.tensor(coordinates.origin, dtype=torch.float32)
        self._matrix = torch.tensor(change.matrix, dtype=torch.float32)
        self._offset = torch.tensor(change.offset, dtype=torch.float32)

    def to(self, device: torch.device | str) -> Self:
        """Move to a device, in place."""
        for name in ("_read", "_write", "_origin", "_matrix", "_offset"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        """(B, state_dim) previous modified and proposed state → (B, state_dim) to carry on."""
        if self._is_idle or step not in self.steps:
            return proposed
        hidden = proposed[..., self.hidden_slice]
        before = previous[..., self.hidden_slice] if self._acts_on == "updates" else self._origin
        coordinates = (hidden - before) @ self._read.T
        change = coordinates @ self._matrix.T + self._offset
        return replace_hidden(proposed, hidden + change @ self._write.T, self.hidden_slice)

    def describe(self) -> dict[str, Any]:
        """Plain values that make the same intervention again, given what defines its directions."""
        return {
            "kind": self.rule.kind,
            **{name: _plain(value) for name, value in asdict(self.rule).items()},
            "steps": self.steps.describe(),
            "hidden_slice": [self.hidden_slice.start, self.hidden_slice.stop],
            "of_directions": self._directions.describe(),
        }


def replace_hidden(state: Tensor, hidden: Tensor, hidden_slice: slice) -> Tensor:
    """(..., state_dim), (..., H) → (..., state_dim) with the hidden part replaced."""
    start, stop, _ = hidden_slice.indices(state.shape[-1])
    return torch.cat([state[..., :start], hidden, state[..., stop:]], dim=-1)


def direction_intervention_from_description(description: dict[str, Any]) -> DirectionIntervention:
    """Make the intervention that `DirectionIntervention.describe` described.

    Raises:
        UserError: what defines its directions is gone, or defines others by now.
    """
    rule = RULES[description["kind"]]
    arguments = {field.name: _hashable(description[field.name]) for field in fields(rule)}
    hidden_slice = slice(*description["hidden_slice"])
    hidden_dim = hidden_slice.stop - hidden_slice.start
    return DirectionIntervention(
        rule(**arguments),
        directions_from_description(description["of_directions"], hidden_dim),
        hidden_slice,
        steps_from_description(description["steps"]),
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _require_pairs(
    flag: str, directions: Sequence[int], other_flag: str, others: Sequence[Any]
) -> None:
    if len(directions) != len(others):
        raise UserError(
            f"--{flag} has {len(directions)} directions, --{other_flag} {len(others)}: expected as "
            "many"
        )


def _require_directions(flag: str, directions: Sequence[int], count: int) -> None:
    for direction in directions:
        if not 0 <= direction < count:
            raise UserError(f"--{flag} {direction}: expected a direction from 0 to {count - 1}")


def _require_amounts(
    flag: str, directions: Sequence[int], amount_flag: str, amounts: Sequence[float]
) -> None:
    _require_pairs(flag, directions, amount_flag, amounts)
    for index, direction in enumerate(directions):
        if direction in directions[:index]:
            raise UserError(f"--{flag} {direction}: named twice")
    for amount in amounts:
        if not np.isfinite(amount):
            raise UserError(f"--{amount_flag} {amount}: expected a finite number")


def _spread(
    directions: Sequence[int],
    amounts: NDArray[np.float64],
    coordinates: LinearCoordinates,
    verb: str,
) -> NDArray[np.float64]:
    """(K,) the amounts at their directions, 0 elsewhere."""
    _require_directions(f"{verb}_directions", directions, coordinates.num_directions)
    result = np.zeros(coordinates.num_directions)
    result[list(directions)] = amounts
    return result


def _deviations(
    directions: Sequence[int], coordinates: LinearCoordinates, flag: str
) -> NDArray[np.float64]:
    """(K,) standard deviations of the coordinates."""
    statistics = coordinates.statistics
    if statistics is None:
        raise UserError(
            f"--{flag}: standard deviations of these directions are not known; name a --projection "
            "that tells them, or choose --amount_unit coordinate"
        )
    for direction in directions:
        if not statistics.deviation[direction] > 0:
            raise UserError(
                f"--{flag} {direction}: this coordinate never varies, so its standard deviation is "
                "no unit; choose --amount_unit coordinate"
            )
    return statistics.deviation
