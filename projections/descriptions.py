"""Interventions made again from what a recording says about them."""

from collections.abc import Sequence
from typing import Any

from experiment.errors import UserError
from projections.controls import MeasuredNorm, RandomDirections, SignFlip, Spared
from projections.directions import directions_from_description
from projections.intervention import InterventionChain, MovableIntervention
from projections.interventions import RULES, direction_intervention_from_description


def interventions_from_descriptions(
    descriptions: Sequence[dict[str, Any]],
) -> MovableIntervention | None:
    """The intervention that `descriptions_of` described; None where there was none.

    Raises:
        UserError: what defines its directions is gone, or defines others by now; or it is of a
            kind that acts on something else than the agent's state.
    """
    links = [_make(description) for description in descriptions]
    if not links:
        return None
    return links[0] if len(links) == 1 else InterventionChain(links)


def _make(description: dict[str, Any]) -> MovableIntervention:
    kind = description["kind"]
    if kind in RULES:
        return direction_intervention_from_description(description)
    if kind == "sign_flip":
        return SignFlip(_tested(description))
    if kind == "random_directions":
        return _make_random_directions(description)
    known = ", ".join((*RULES, "sign_flip", "random_directions"))
    raise UserError(
        f"an intervention of kind {kind!r} cannot be made again: expected one of {known}; what an "
        "earlier version recorded must be recorded again"
    )


def _make_random_directions(description: dict[str, Any]) -> RandomDirections:
    hidden_slice = slice(*description["hidden_slice"])
    hidden_dim = hidden_slice.stop - hidden_slice.start
    components = description["principal_components"]
    if components is not None:
        components = directions_from_description(components, hidden_dim)
    norm, spared = description["norm"], description.get("spared")
    if spared is not None:
        directions = directions_from_description(spared["of_directions"], hidden_dim)
        spared = Spared(directions, tuple(spared["indices"]))
    return RandomDirections(
        _tested(description),
        hidden_slice,
        description["seed"],
        components,
        None if norm is None else MeasuredNorm(**norm),
        spared,
    )


def _tested(description: dict[str, Any]) -> MovableIntervention:
    tested = interventions_from_descriptions(description["of"])
    if tested is None:
        raise UserError("a control of no intervention cannot be made again")
    return tested
