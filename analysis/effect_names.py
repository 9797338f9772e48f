"""What the recordings and measures of an intervention's effects are called.

On their own, so that those who only read a result need not load what makes one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

World = Literal["simulated", "real"]
WORLDS: tuple[World, ...] = ("simulated", "real")
TESTED, TWIN, SIGN_FLIP = "tested", "twin", "sign_flip"
RANDOM_PREFIX = "random_"

VALUE, POLICY_KL, RETURN, DONE = "value", "policy_kl", "return", "done"
ACTION_PREFIX, COMPONENT_PREFIX, CLUSTER_PREFIX = "action:", "component:", "cluster:"
UNSIGNED = (POLICY_KL,)
"""Measures that cannot fall below zero, so that zero is no control of theirs."""
INTERVENTION_ATTRIBUTE = "intervention"
"""Attribute of a result file that holds the tested intervention in words."""
_UNITS = {"deviation": " standard deviations", "coordinate": ""}


def intervention_in_words(descriptions: Sequence[Mapping[str, Any]]) -> str:
    """What acts on the hidden state, as a title tells it, e.g. `Swap 3 → 5, of updates`.

    Args:
        descriptions: of each link, as `projections.intervention.descriptions_of` gives them.
    """
    told = "; ".join(_link_in_words(one) + _steps_in_words(one) for one in descriptions)
    return told[:1].upper() + told[1:]


def _link_in_words(one: Mapping[str, Any]) -> str:
    if one["kind"] == "swap":
        pairs = zip(one["sources"], one["targets"], strict=True)
        told = ", ".join(f"{i} → {'nothing' if j is None else j}" for i, j in pairs)
        return f"swap {told}, of {one['acts_on']}"
    if one["kind"] == "scale":
        pairs = zip(one["directions"], one["factors"], strict=True)
        told = ", ".join(f"{i} by {factor:g}" for i, factor in pairs)
        return f"scale {told}, of {one['acts_on']}"
    if one["kind"] == "add":
        return ", ".join(f"add {x:g}{_UNITS[one['unit']]} to {i}" for i, x in _amounts(one))
    if one["kind"] == "clamp":
        return ", ".join(f"hold {i} at {x:g}{_UNITS[one['unit']]}" for i, x in _amounts(one))
    return str(one["kind"])


def _amounts(one: Mapping[str, Any]) -> list[tuple[int, float]]:
    amounts = one["amounts"] if one["kind"] == "add" else one["values"]
    return list(zip(one["directions"], amounts, strict=True))


def _steps_in_words(one: Mapping[str, Any]) -> str:
    steps = one.get("steps")
    if isinstance(steps, list):
        return f", at rows {', '.join(map(str, steps))}"
    if not steps or (steps["start"] == 0 and steps["stop"] is None):
        return ""
    end = "on" if steps["stop"] is None else f"to {steps['stop'] - 1}"
    return f", from row {steps['start']} {end}"
