"""Which actions simulated samples take: the agent's own, the recorded ones, or given ones."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from environments.protocol import EnvironmentSpec
from generative.sample_starts import InformedStarts, Starts

EACH = "each"


class ActionSource(Protocol):
    """Gives every sample the actions it takes in place of the agent's own."""

    @property
    def copies_per_start(self) -> int:
        """Samples that share a start, one after the other, and differ in their actions."""
        ...

    def actions(
        self, sample_ids: NDArray[np.int64], starts: Starts, num_steps: int
    ) -> NDArray[np.int64]:
        """(K, B) actions of the given (B,) samples."""
        ...


@dataclass(frozen=True)
class RecordedActions:
    """What was done after the window; the null action from the episode's end on."""

    windows: InformedStarts
    environment: EnvironmentSpec

    @property
    def copies_per_start(self) -> int:
        """One: there is no choice."""
        return 1

    def actions(
        self, sample_ids: NDArray[np.int64], starts: Starts, num_steps: int
    ) -> NDArray[np.int64]:
        """(K, B)"""
        return self.windows.recorded_actions(starts, num_steps, self.environment.null_action)


@dataclass(frozen=True)
class ListedActions:
    """The same actions for every sample; the last one is held."""

    listed: tuple[int, ...]

    @property
    def copies_per_start(self) -> int:
        """One: there is no choice."""
        return 1

    def actions(
        self, sample_ids: NDArray[np.int64], starts: Starts, num_steps: int
    ) -> NDArray[np.int64]:
        """(K, B)"""
        steps = np.minimum(np.arange(num_steps), len(self.listed) - 1)
        return np.broadcast_to(np.array(self.listed)[steps, None], (num_steps, len(sample_ids)))


@dataclass(frozen=True)
class HeldActions:
    """Copies of each start, each of which holds another action throughout."""

    held: tuple[int, ...]

    @property
    def copies_per_start(self) -> int:
        """One per action."""
        return len(self.held)

    def actions(
        self, sample_ids: NDArray[np.int64], starts: Starts, num_steps: int
    ) -> NDArray[np.int64]:
        """(K, B)"""
        held = np.array(self.held)[sample_ids % len(self.held)]
        return np.broadcast_to(held, (num_steps, len(sample_ids)))


def manual_actions(words: tuple[str, ...], environment: EnvironmentSpec) -> ActionSource:
    """What `--manual_actions` asks for: `each`, or names and numbers of actions.

    Raises:
        UserError: an action that does not exist.
    """
    if words == (EACH,):
        return HeldActions(distinct_actions(environment))
    numbers = (environment.action_number(word, "manual_actions", EACH) for word in words)
    return ListedActions(tuple(numbers))


def distinct_actions(environment: EnvironmentSpec) -> tuple[int, ...]:
    """Actions that differ: of those that do nothing, the null action alone. Procgen has nine."""
    return tuple(
        action
        for action, name in enumerate(environment.action_names)
        if action == environment.null_action or not name.startswith("null")
    )
