"""Named variables of every Procgen game, as a table with a row per step.

CoinRun has a table of its own (`coinrun_variables`). Every other game has the agent's motion and,
for each kind of thing that matters in it, how many there are and where the nearest is. Which number
stands for what follows Procgen's source (Cobbe et al. 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from environments.coinrun_variables import VARIABLES, coinrun_columns
from environments.game_steps import (
    GameSteps,
    Variable,
    nearest_entity,
    offsets_from_agent,
)
from environments.procgen_state import FLAG_TAILS


@dataclass(frozen=True)
class Kind:
    """Things of one name: entities, or cells of the grid."""

    types: tuple[int, ...]
    """Their types, as an entity's `type` or the grid has them."""
    is_cell: bool = False
    moves: bool = False


KINDS: dict[str, dict[str, Kind]] = {
    "bigfish": {"fish": Kind((2,), moves=True)},
    "bossfight": {
        "boss": Kind((2,), moves=True),
        "shield": Kind((3,)),
        "bullet": Kind((4,), moves=True),
        "reflected_bullet": Kind((6,), moves=True),
        "barrier": Kind((7,)),
    },
    "caveflyer": {
        "goal": Kind((1,)),
        "obstacle": Kind((2,)),
        "target": Kind((3,)),
        "enemy": Kind((5,), moves=True),
        "wall": Kind((8,), is_cell=True),
    },
    "chaser": {
        "large_orb": Kind((2,)),
        "egg": Kind((4,)),
        "enemy": Kind((6,), moves=True),
        "orb": Kind((1002,), is_cell=True),
    },
    "climber": {"coin": Kind((1,)), "enemy": Kind((5,), moves=True)},
    "dodgeball": {
        "wall": Kind((1,)),
        "ball": Kind((3,), moves=True),
        "enemy": Kind((4,), moves=True),
        "door": Kind((5, 7)),
        "enemy_ball": Kind((6,), moves=True),
    },
    "fruitbot": {
        "barrier": Kind((1,)),
        "bad_food": Kind((4,)),
        "good_food": Kind((7,)),
        "door": Kind((10,)),
        "lock": Kind((11,)),
        "present": Kind((12,)),
    },
    "heist": {"door": Kind((1,)), "key": Kind((2,)), "exit": Kind((9,))},
    "jumper": {"goal": Kind((1,)), "spike": Kind((2,))},
    "leaper": {
        "log": Kind((1,), moves=True),
        "car": Kind((4,), moves=True),
        "finish": Kind((5,)),
    },
    "maze": {"goal": Kind((2,), is_cell=True)},
    "miner": {
        "boulder": Kind((1, 3), is_cell=True),
        "diamond": Kind((2, 4), is_cell=True),
        "dirt": Kind((9,), is_cell=True),
        "exit": Kind((6,)),
    },
    "ninja": {
        "goal": Kind((1,)),
        "bomb": Kind((6,), is_cell=True),
        "star": Kind((7,), moves=True),
    },
    "plunder": {
        "cannonball": Kind((1,), moves=True),
        "ship": Kind((7,), moves=True),
    },
    "starpilot": {
        "own_bullet": Kind((1,), moves=True),
        "enemy_bullet": Kind((2, 3), moves=True),
        "flyer": Kind((4, 8), moves=True),
        "meteor": Kind((5,), moves=True),
        "cloud": Kind((6,), moves=True),
        "turret": Kind((7,), moves=True),
        "finish": Kind((9,)),
    },
}
"""What the tables of the games name, by game; CoinRun's is made otherwise."""

_AGENT = {
    "step": Variable("steps", "decisions taken in this episode before this frame"),
    "agent_x": Variable("cells", "agent's centre, from the level's left edge"),
    "agent_y": Variable("cells", "agent's centre, from the level's lower edge"),
    "agent_vx": Variable("cells/step", "agent's velocity to the right"),
    "agent_vy": Variable("cells/step", "agent's velocity upwards"),
    "agent_rotation": Variable("radians", "how far the agent is turned"),
    "agent_width": Variable("cells", "agent's width"),
}
_SUPPORT = {
    "had_support": Variable("0 or 1", "the agent stood on something before the last step"),
    "facing_right": Variable("0 or 1", "the last action with a side pointed to the right"),
}


@cache
def game_variables(game: str) -> dict[str, Variable]:
    """Columns of a game's table, in order."""
    if game == "coinrun":
        return dict(VARIABLES)
    variables = {**_AGENT, **(_SUPPORT if game in FLAG_TAILS else {})}
    for name, kind in KINDS[game].items():
        variables |= _variables_of_kind(name, kind)
    return variables


def _variables_of_kind(name: str, kind: Kind) -> dict[str, Variable]:
    text = name.replace("_", " ")
    variables = {
        f"num_{name}": Variable("1", f"how many of {text} there are"),
        f"{name}_dx": Variable("cells", f"nearest {text}: its centre right of the agent's"),
        f"{name}_dy": Variable("cells", f"that {text}'s centre above the agent's"),
    }
    if kind.moves:
        variables[f"{name}_vx"] = Variable("cells/step", f"that {text}'s velocity to the right")
        variables[f"{name}_vy"] = Variable("cells/step", f"that {text}'s velocity upwards")
    return variables


def variable_table(steps: GameSteps) -> NDArray[np.float32]:
    """(T, number of variables) of T steps; columns by `game_variables` of their game."""
    names = game_variables(steps.game)
    columns = coinrun_columns(steps) if steps.game == "coinrun" else _generic_columns(steps)
    return np.stack([columns[name] for name in names], axis=1).astype(np.float32)


def _generic_columns(steps: GameSteps) -> dict[str, NDArray[np.float64]]:
    columns = {
        "step": steps.step.astype(np.float64),
        **{f"agent_{name}": steps.agent(name) for name in ("x", "y", "vx", "vy", "rotation")},
        "agent_width": 2 * steps.agent("rx"),
    }
    if steps.game in FLAG_TAILS:
        columns["had_support"] = steps.flag("has_support").astype(np.float64)
        columns["facing_right"] = steps.flag("facing_right").astype(np.float64)
    dx, dy = offsets_from_agent(steps)
    distance, present = np.hypot(dx, dy), steps.column("will_erase") == 0
    for name, kind in KINDS[steps.game].items():
        if kind.is_cell:
            columns |= _columns_of_cells(steps, name, kind)
        else:
            chosen = present & np.isin(steps.column("type"), kind.types)
            columns |= _columns_of_entities(steps, name, chosen, distance)
    return columns


def _columns_of_entities(
    steps: GameSteps, name: str, chosen: NDArray[np.bool_], distance: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    nearest = nearest_entity(steps, chosen, distance)
    count = np.bincount(steps.step_of_entity[chosen], minlength=len(steps))
    return {
        f"num_{name}": count.astype(np.float64),
        f"{name}_dx": nearest.dx,
        f"{name}_dy": nearest.dy,
        f"{name}_vx": nearest.vx,
        f"{name}_vy": nearest.vy,
    }


def _columns_of_cells(steps: GameSteps, name: str, kind: Kind) -> dict[str, NDArray[np.float64]]:
    """Between two changes of the grid, all steps at once."""
    values = np.full((3, len(steps)), np.nan)
    changes, grid = steps.grid_changes, steps.grid.copy()
    begins = [0, *np.unique(changes.step).tolist()]
    for begin, end in zip(begins, [*begins[1:], len(steps)], strict=True):
        for row, column, cell in changes.cell[changes.step == begin]:
            grid[row, column] = cell
        values[:, begin:end] = _nearest_cells(steps, begin, end, np.isin(grid, kind.types))
    return dict(zip((f"num_{name}", f"{name}_dx", f"{name}_dy"), values, strict=True))


def _nearest_cells(
    steps: GameSteps, begin: int, end: int, chosen: NDArray[np.bool_]
) -> Sequence[NDArray[np.float64]]:
    """Number of chosen cells, and how far right and above the nearest one is, at each step."""
    rows, columns = np.nonzero(chosen)
    count = np.full(end - begin, len(rows), np.float64)
    if not len(rows):
        return [count, np.full(end - begin, np.nan), np.full(end - begin, np.nan)]
    dx = columns[:, None] + 0.5 - steps.agent("x")[begin:end]
    dy = rows[:, None] + 0.5 - steps.agent("y")[begin:end]
    nearest = np.argmin(np.hypot(dx, dy), axis=0), np.arange(end - begin)
    return [count, dx[nearest], dy[nearest]]
