"""What the rest of the project asks of an environment.

The interface follows gym3, Procgen's own: `observe` tells what the last actions led to, `send`
starts the next step and returns at once, so that stepping overlaps computation.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from experiment.errors import UserError

TRAINING_LEVELS = 10**9
"""Training levels are the level seeds below this number, held-out levels those from it on.

Procgen ignores `start_level` when `num_levels` is 0 and then draws from all seeds, so unlimited
training asks for these 10^9 levels explicitly.
"""


@dataclass(frozen=True)
class EnvironmentSpec:
    """What an environment is: part of the metadata of every agent and dataset."""

    adapter: str
    """Which adapter makes it: `procgen`, `gymnasium` or `fake`."""
    name: str
    """Name of the game, e.g. `coinrun`."""
    obs_shape: tuple[int, ...]
    """(H, W, C) of uint8 frames, or (D,) of float32 vectors."""
    num_actions: int
    action_names: tuple[str, ...]
    null_action: int
    """The action that does nothing; it pads windows."""
    time_limit: int | None
    """Decisions after which the environment ends an episode by itself; None without a limit."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options that change the game: distribution mode, backgrounds, themes, ..."""

    @property
    def shows_images(self) -> bool:
        """Whether observations are frames; otherwise they are vectors."""
        return len(self.obs_shape) == 3

    @property
    def obs_dtype(self) -> str:
        """numpy's name of the type of an observation's elements."""
        return "uint8" if self.shows_images else "float32"

    def require_images(self, purpose: str) -> None:
        """Raise `UserError` saying that `purpose` needs frames, where observations are vectors."""
        if not self.shows_images:
            raise UserError(
                f"{purpose}: needs an environment whose observations are images; those of "
                f"{self.name} are vectors of {self.obs_shape[0]} numbers"
            )

    def action_number(self, word: str, flag: str, alternative: str = "") -> int:
        """The action that a command line names, by its name or number.

        Args:
            word: as typed.
            flag: of the command line, without dashes; for the error.
            alternative: another word that the flag takes.

        Raises:
            UserError: there is no such action.
        """
        if word in self.action_names:
            return self.action_names.index(word)
        if word.isdecimal() and int(word) < self.num_actions:
            return int(word)
        other = f"`{alternative}`, " if alternative else ""
        raise UserError(
            f"--{flag} {word}: expected {other}a number from 0 to {self.num_actions - 1}, or one "
            f"of {', '.join(self.action_names)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EnvironmentSpec":
        """Inverse of `to_dict`, also after a round trip through JSON."""
        return cls(
            **{
                **values,
                "obs_shape": tuple(values["obs_shape"]),
                "action_names": tuple(values["action_names"]),
            }
        )


@dataclass(frozen=True)
class Transition:
    """What the last actions led to, one entry per environment.

    Where `first` is true the frame belongs to a new episode, while `reward`, `level_complete` and
    `truncated` belong to the episode that has just ended; its last frame does not exist.
    """

    obs: NDArray[np.uint8] | NDArray[np.float32]
    """(N, H, W, C) frames, or (N, D) vectors, to act on now."""
    reward: NDArray[np.float32]
    """(N,) raw reward paid for the last action."""
    first: NDArray[np.bool_]
    """(N,) whether `obs` is the first frame of an episode."""
    level_seed: NDArray[np.int64]
    """(N,) level of the episode that `obs` belongs to; −1 where the environment has no levels."""
    level_complete: NDArray[np.bool_]
    """(N,) whether the episode that has just ended was solved; false unless `first`."""
    truncated: NDArray[np.bool_]
    """(N,) whether the time limit ended the episode that has just ended; false unless `first`."""


class VectorEnvironment(Protocol):
    """N environments stepped together."""

    spec: EnvironmentSpec
    num_envs: int

    def observe(self) -> Transition:
        """Wait for the running step, if any, and tell what it led to. Idempotent.

        Later steps leave the arrays that it told as they are.
        """
        ...

    def send(self, actions: NDArray[np.integer]) -> None:
        """Start one step of all environments with (N,) `actions`; returns without waiting."""
        ...

    def start_level(self, indices: Sequence[int], level_seeds: Sequence[int]) -> None:
        """Put the given slots at the first frame of the given levels; `observe` shows them.

        The other slots keep their state.
        """
        ...

    def get_state(self, indices: Sequence[int] | None = None) -> list[bytes]:
        """One opaque saved state for each of the given slots, by default for all."""
        ...

    def set_state(self, states: Sequence[bytes | None]) -> None:
        """Restore saved states exactly; None leaves a slot as it is."""
        ...

    def render(self, index: int) -> NDArray[np.uint8]:
        """(H', W', 3) high-resolution frame of one environment, where it has one."""
        ...

    def close(self) -> None:
        """Free threads and memory."""
        ...
