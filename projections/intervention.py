"""What an intervention is: a change of the agent's state inside its recurrence."""

from typing import Any, Protocol

from torch import Tensor


class Intervention(Protocol):
    """Modifies the agent's new state before the heads read it and before it is carried on."""

    def __call__(self, previous: Tensor, proposed: Tensor, step: int) -> Tensor:
        """The state to carry on.

        Args:
            previous: (B, state_dim) modified state h' of the step before.
            proposed: (B, state_dim) state that the agent computed from it and the observation.
            step: row of the rollout.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values that make the same intervention again."""
        ...
