"""What a rollout is, whether the real environment or the simulator made it.

Row `t` is one decision. The agent sees `obs[t]`; this moves its recurrent state from
`agent_hidden[t-1]` (`agent_initial_state` at t = 0) to `agent_hidden[t]`; from that come
`action_logits[t]` and `value[t]`; `action[t]` is drawn; the environment answers with `reward[t]`
and `done[t]`. `obs[t+1]` is the next frame of the same episode. An episode of T decisions has T
frames: Procgen never shows the last one.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from environments.game_trace import GameTrace

Initialisation = Literal["real", "informed", "random", "interpolated", "given", "branched"]
"""How an episode began: in the real environment, at a level's first frame (`real`) or at a row of a
recorded episode (`branched`); or in the simulator from a latent that was encoded from a window,
drawn at random, interpolated between two others, or read from a file (`given`)."""

REAL_INITIALISATIONS: tuple[Initialisation, ...] = ("real", "branched")
"""Those of the real environment."""


@dataclass(frozen=True, eq=False)
class EpisodeInfo:
    """What is known of an episode as a whole."""

    episode_id: int
    """Unique within the dataset; with the seed it keys every random draw of the episode."""
    agent_hash: str
    """Hash of the agent that played it."""
    agent_initial_state: NDArray[np.float32]
    """(state_dim,) recurrent state before the first row."""
    level_seed: int = -1
    """Level of a real episode; −1 where there is none."""
    level_complete: bool = False
    truncated: bool = False
    """The environment ended it by its time limit."""
    cut: bool = False
    """The recorder stopped it; the environment had not ended it."""
    initialisation: Initialisation = "real"
    source_episode_id: int = -1
    """Simulated: the real episode whose window set up the simulator. Branched: the episode that it
    branches from. −1 without one."""
    source_row: int = -1
    """The row of the source episode that is row 0 here: in simulated rollouts a reconstruction."""
    simulator_hash: str = ""
    latent: NDArray[np.float32] | None = None
    """Simulated: (latent_dim,) bottleneck vector."""
    interventions: tuple[dict[str, Any], ...] = ()
    """Descriptions of the interventions applied, `Intervention.describe()` of each."""
    twin_of: int = -1
    """Episode id of the unmodified twin that shares its start and its noise; −1 without one."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """One episode of T decisions; every array has T rows."""

    obs: NDArray[np.uint8] | NDArray[np.float32]
    """(T, H, W, C) uint8 frames, or (T, D) float32 vectors, as the agent saw them."""
    agent_hidden: NDArray[np.float32]
    """(T, state_dim) recurrent state after seeing `obs[t]`."""
    action_logits: NDArray[np.float32]
    """(T, num_actions) logits of the clean policy."""
    value: NDArray[np.float32]
    """(T,)"""
    action: NDArray[np.int32]
    """(T,)"""
    behaviour_log_prob: NDArray[np.float32]
    """(T,) log-probability of `action` under the policy that acted, exploration noise included."""
    reward: NDArray[np.float32]
    """(T,) raw, as the game pays; predicted, in a simulated rollout."""
    done: NDArray[np.bool_]
    """(T,) the environment ended the episode at this row; predicted, `terminal_prob > 0.5`, in a
    simulated rollout, which goes on to the length that was asked for."""
    info: EpisodeInfo
    env_deter: NDArray[np.float32] | None = None
    """Simulated: (T, deter_dim) deterministic part of the environment state."""
    env_stoch: NDArray[np.uint8] | None = None
    """Simulated: (T, num_categoricals) class index of each categorical of the stochastic part."""
    terminal_prob: NDArray[np.float32] | None = None
    """Simulated: (T,) predicted probability that the episode ends at this row."""
    game: GameTrace | None = None
    """What the game itself knew when it showed each frame; None where that was not recorded."""
    saved_states: NDArray[np.uint8] | None = None
    """(sum of their bytes,) saved states of the environment, one after the other; None where they
    are not kept."""
    saved_state_table: NDArray[np.int64] | None = None
    """(number of saved states, 3) row, number of bytes and CRC-32 of each."""

    def __len__(self) -> int:
        """Number of decisions T."""
        return len(self.obs)

    @property
    def is_simulated(self) -> bool:
        """Whether the simulator made it."""
        return self.info.initialisation not in REAL_INITIALISATIONS


GAME_PREFIX = "game_"
"""What names of arrays of `Rollout.game` begin with in a dataset."""


def array_of(rollout: Rollout, name: str) -> Any:
    """The array that a dataset calls `name`; None where the rollout has not got it."""
    if not name.startswith(GAME_PREFIX):
        return getattr(rollout, name)
    if rollout.game is None:
        return None
    array = getattr(rollout.game, name.removeprefix(GAME_PREFIX))
    # Grids have a shape of their own in every episode.
    return array.reshape(-1) if name == "game_grid" else array


def rollout_of_arrays(
    arrays: dict[str, Any], info: EpisodeInfo, grid_shape: NDArray[np.int64] | None
) -> Rollout:
    """Inverse of `array_of` for all arrays of an episode.

    Args:
        arrays: by their names in a dataset.
        info: of the episode.
        grid_shape: (2,) height and width of the game's grid; None without game states.
    """
    own = {name: rows for name, rows in arrays.items() if not name.startswith(GAME_PREFIX)}
    if grid_shape is None:
        return Rollout(**own, info=info)
    game = {name.removeprefix(GAME_PREFIX): arrays[name] for name in arrays if name not in own}
    game["grid"] = game["grid"].reshape(tuple(grid_shape.tolist()))
    return Rollout(**own, info=info, game=GameTrace(**game))


SIMULATED_STEP_FIELDS = ("env_deter", "env_stoch", "terminal_prob")
"""Per-step fields that simulated rollouts add."""


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """B windows of `init + sim − 1` rows, time first.

    Rows `0 .. init-1` initialise the simulator. Simulated step k is row `init − 1 + k`; step 0,
    the last frame given, is a reconstruction. The latent decodes to the state at row `init − 2`.
    Rows past the end of an episode are padding: `valid` is false, `action` is the null action,
    everything else is zero.
    """

    obs: NDArray[np.uint8] | NDArray[np.float32]
    """(T, B, H, W, C) uint8 frames, or (T, B, D) float32 vectors."""
    agent_hidden: NDArray[np.float32]
    """(T, B, state_dim)"""
    action: NDArray[np.int64]
    """(T, B)"""
    reward: NDArray[np.float32]
    """(T, B)"""
    terminal: NDArray[np.bool_]
    """(T, B) `done and not truncated`; on the last real row of an episode, which is valid."""
    valid: NDArray[np.bool_]
    """(T, B)"""
    episode_id: NDArray[np.int64]
    """(B,)"""
    start_row: NDArray[np.int64]
    """(B,) row of the episode that is row 0 of the window."""
    num_init_steps: int
