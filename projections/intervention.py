"""What an intervention is: a change of the agent's state inside its recurrence."""

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor


class Intervention(Protocol):
    """Modifies the agent's new state before the heads read it and before it is carried on."""

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        """The state to carry on.

        Args:
            previous: (B, state_dim) modified state h' of the step before.
            proposed: (B, state_dim) state that the agent computed from it and the observation.
            step: row of the rollout that is being made; a branch's first is 0.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values that make the same intervention again."""
        ...


@runtime_checkable
class MovableIntervention(Intervention, Protocol):
    """An intervention that holds tensors."""

    def to(self, device: torch.device | str) -> Self:
        """Move to a device, in place."""
        ...


class InterventionChain:
    """Several interventions, one after the other: each changes what the one before it returned.

    Args:
        links: the interventions, in the order in which they act.
    """

    def __init__(self, links: Sequence[Intervention]) -> None:
        self.links = tuple(links)

    def to(self, device: torch.device | str) -> Self:
        """Move to a device, in place, the links that hold tensors."""
        for link in self.links:
            if isinstance(link, MovableIntervention):
                link.to(device)
        return self

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        """(B, state_dim) previous modified and proposed state → (B, state_dim) to carry on."""
        for link in self.links:
            proposed = link(previous, proposed, step)
        return proposed

    def describe(self) -> dict[str, Any]:
        """Plain values that make the same interventions again."""
        return {"kind": "chain", "links": [link.describe() for link in self.links]}


def descriptions_of(intervention: Intervention | None) -> tuple[dict[str, Any], ...]:
    """As rollouts store them: one description for each link of a chain, in order."""
    if intervention is None:
        return ()
    if isinstance(intervention, InterventionChain):
        return tuple(link.describe() for link in intervention.links)
    return (intervention.describe(),)
