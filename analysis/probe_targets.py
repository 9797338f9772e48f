"""What probes are asked for: the game's own variables, where the agent can see what they are of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from environments.game_steps import Variable

OFFSETS = ("_dx", "_dy")
"""Endings of a thing's distance from the agent along x and along y."""
IN_SIGHT = "_in_sight"
"""Ending of the variables that this module adds."""


@dataclass(frozen=True, eq=False)
class ProbeTargets:
    """Values of V variables at N rows."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    values: NDArray[np.float64]
    """(N, V) NaN where there is no such thing, or it is out of sight."""
    is_binary: NDArray[np.bool_]
    """(V,) which of them are answers to a yes-or-no question."""

    def keep(self, chosen: NDArray[np.bool_]) -> "ProbeTargets":
        """Only the variables for which (V,) `chosen` is true."""
        indices = np.flatnonzero(chosen).tolist()
        return ProbeTargets(
            tuple(self.names[i] for i in indices),
            tuple(self.units[i] for i in indices),
            self.values[:, chosen],
            self.is_binary[chosen],
        )


def probe_targets(
    variables: NDArray[np.floating], table: dict[str, Variable], max_distance: float
) -> ProbeTargets:
    """Variables of the game, with those of things out of sight left out.

    A thing is what has a variable `<thing>_dx`. All of its variables are NaN where it is further
    than `max_distance` along x or y: frames cannot tell them there. A variable `<thing>_in_sight`
    is added for each.

    Args:
        variables: (N, number of the game's variables), NaN where there is no such thing.
        table: the game's variables by name, in the order of the columns.
        max_distance: how far the frame reaches from the agent, in cells.
    """
    column = {name: variables[:, i].astype(np.float64) for i, name in enumerate(table)}
    units = {name: variable.unit for name, variable in table.items()}
    for thing in _things(table):
        is_in_sight = _is_in_sight(column, thing, max_distance)
        for name in table:
            if name.startswith(f"{thing}_"):
                column[name] = np.where(is_in_sight, column[name], np.nan)
        column[thing + IN_SIGHT] = is_in_sight.astype(np.float64)
        units[thing + IN_SIGHT] = "0 or 1"
    return ProbeTargets(
        names=tuple(column),
        units=tuple(units.values()),
        values=np.stack(list(column.values()), axis=1),
        is_binary=np.array([_has_two_answers(values) for values in column.values()]),
    )


def _things(table: dict[str, Variable]) -> list[str]:
    ending = OFFSETS[0]
    return [name.removesuffix(ending) for name in table if name.endswith(ending)]


def _is_in_sight(
    column: dict[str, NDArray[np.float64]], thing: str, max_distance: float
) -> NDArray[np.bool_]:
    offsets = [column[thing + ending] for ending in OFFSETS if thing + ending in column]
    return np.all([np.abs(offset) <= max_distance for offset in offsets], axis=0)


def _has_two_answers(values: NDArray[np.float64]) -> bool:
    known = values[np.isfinite(values)]
    return bool(np.isin(known, (0.0, 1.0)).all())
