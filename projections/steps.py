"""At which steps an intervention acts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiment.errors import UserError

_EXAMPLES = "steps, e.g. 2 5, or a range that excludes its end, e.g. 2 to 5 or 2 to end"


@dataclass(frozen=True)
class StepRange:
    """The steps from `start` on, `stop` excluded."""

    start: int = 0
    stop: int | None = None
    """None for all that follow."""

    def __contains__(self, step: int) -> bool:
        return self.start <= step and (self.stop is None or step < self.stop)

    @property
    def first(self) -> int:
        """The earliest of them."""
        return self.start

    def describe(self) -> dict[str, Any]:
        """Plain values, for `steps_from_description`."""
        return {"start": self.start, "stop": self.stop}


@dataclass(frozen=True)
class StepList:
    """Single steps."""

    steps: tuple[int, ...]

    def __contains__(self, step: int) -> bool:
        return step in self.steps

    @property
    def first(self) -> int:
        """The earliest of them."""
        return min(self.steps)

    def describe(self) -> list[int]:
        """Plain values, for `steps_from_description`."""
        return list(self.steps)


Steps = StepRange | StepList
"""Rows of the rollout: simulated step k is row k, a branch's first decision row 0."""

ALL_STEPS = StepRange()


def parse_steps(words: Sequence[str], flag: str) -> Steps:
    """Steps from `2 5`, `2 to 5` (which excludes 5) or `2 to end`; all steps from no words.

    Raises:
        UserError: anything else, a negative or repeated step, an empty range.
    """
    if not words:
        return ALL_STEPS
    is_range = len(words) == 3 and words[1] == "to"
    numbers = [words[0], words[2]] if is_range else list(words)
    if is_range and numbers[1] == "end":
        numbers.pop()
    if not all(number.isdecimal() for number in numbers):
        raise UserError(f"{flag} {' '.join(words)}: expected {_EXAMPLES}")
    steps = [int(number) for number in numbers]
    if not is_range:
        if len(set(steps)) < len(steps):
            raise UserError(f"{flag} {' '.join(words)}: a step is named twice")
        return StepList(tuple(steps))
    chosen = StepRange(*steps)
    if chosen.start not in chosen:
        raise UserError(f"{flag} {' '.join(words)}: holds no step")
    return chosen


def steps_from_description(description: dict[str, Any] | list[int]) -> Steps:
    """The steps that `describe` described."""
    if isinstance(description, dict):
        return StepRange(**description)
    return StepList(tuple(description))
