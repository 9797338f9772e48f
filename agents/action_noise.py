"""Exploration noise while recording: a flatter policy, shaped for the game where one knows it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from environments.protocol import EnvironmentSpec
from experiment.errors import UserError


@dataclass(frozen=True)
class ActionNoise:
    """Logits are scaled, then clipped, then some are replaced."""

    scale: float = 0.7
    """Factor of the clean logits; below 1 it flattens the policy."""
    lowest: float = -1.8
    """Scaled logits below it are raised to it."""
    highest: float = 0.8
    """Scaled logits above it are lowered to it."""
    fixed_logits: tuple[tuple[int, float], ...] = ()
    """Actions whose logit does not depend on the policy, each with that logit."""

    def apply(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., num_actions) clean logits → logits of the policy that acts."""
        noised = np.clip(logits * self.scale, self.lowest, self.highest)
        for action, logit in self.fixed_logits:
            noised[..., action] = logit
        return noised


_RIGHT, _SPECIAL_ACTIONS = 7, range(9, 15)
ACTION_NOISE = {
    "coinrun": ActionNoise(
        fixed_logits=((_RIGHT, 0.1), *((action, -3.0) for action in _SPECIAL_ACTIONS))
    )
}
"""By game. CoinRun's is the reference system's: `right` stays probable, the keys that do nothing
there stay rare. In other games these keys may fire, so that their noise only flattens."""


def noise_of_environment(environment: EnvironmentSpec) -> ActionNoise:
    """The noise of `--action_noise` in an environment.

    Raises:
        UserError: a game of that name without the actions that its noise is made for.
    """
    noise = ACTION_NOISE.get(environment.name, ActionNoise())
    num_needed = 1 + max((action for action, _ in noise.fixed_logits), default=0)
    if environment.num_actions < num_needed:
        raise UserError(
            f"--action_noise: that of {environment.name} is made for {num_needed} actions, this "
            f"environment has {environment.num_actions}"
        )
    return noise
