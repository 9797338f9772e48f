"""Procgen (Cobbe et al. 2020) behind the vector-environment protocol.

A saved state is Procgen's own bytes behind a small prefix: the number of decisions of the running
episode and whether the time limit ended the one before, which Procgen does not tell.
"""

import contextlib
import struct
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from environments.protocol import TRAINING_LEVELS, EnvironmentSpec, Transition
from experiment.errors import UserError

FRAME_SHAPE = (64, 64, 3)
NULL_ACTION = 4
MOVES = ("downleft", "left", "upleft", "down", "null", "up", "downright", "right", "upright")

DEFAULT_TIME_LIMIT = 1000
TIME_LIMITS = {"bigfish": 6000, "bossfight": 4000, "leaper": 500, "maze": 500, "plunder": 4000}
"""Decisions after which Procgen ends an episode, where it is not `DEFAULT_TIME_LIMIT`."""

_SHOOTERS = ("bossfight", "caveflyer", "dodgeball", "fruitbot", "plunder")
SPECIAL_ACTIONS: dict[str, dict[int, str]] = {
    **{game: {9: "fire"} for game in _SHOOTERS},
    "ninja": {
        **{9: "throw", 10: "throw_upward", 11: "throw_up", 12: "throw_down"},
        **{13: "throw13", 14: "throw14"},
    },
    "starpilot": {
        **{9: "fire", 10: "fire_back"},
        **{11: "fire11", 12: "fire12", 13: "fire13", 14: "fire14"},
    },
}
"""Actions from 9 on that do something, found by comparing their frames with those of the null
action; a number marks those that equal the first. All others are no-ops."""

ALL_GAMES = (
    "bigfish",
    "bossfight",
    "caveflyer",
    "chaser",
    "climber",
    "coinrun",
    "dodgeball",
    "fruitbot",
    "heist",
    "jumper",
    "leaper",
    "maze",
    "miner",
    "ninja",
    "plunder",
    "starpilot",
)

DISTRIBUTION_MODES: dict[str, tuple[str, ...]] = {
    "easy": ALL_GAMES,
    "hard": ALL_GAMES,
    "extreme": ("chaser", "dodgeball", "leaper", "starpilot"),
    "memory": ("caveflyer", "dodgeball", "heist", "jumper", "maze", "miner"),
}
"""Games that know each mode; Procgen kills the process when asked for another combination."""

MAX_LEVEL_SEED = 2**31 - 1
_MAX_STATE_BYTES = 2**20
_PREFIX = struct.Struct("<i?")
_INT = struct.Struct("<i")


def procgen_spec(name: str, options: dict[str, Any]) -> EnvironmentSpec:
    """Describe a Procgen game; raises `UserError` for an unknown game, mode or combination."""
    if name not in ALL_GAMES:
        raise UserError(
            f"--env_name: {name!r} is no Procgen game; known are {', '.join(ALL_GAMES)}"
        )
    mode = options["distribution_mode"]
    if name not in DISTRIBUTION_MODES.get(mode, ()):
        known = ", ".join(m for m, games in DISTRIBUTION_MODES.items() if name in games)
        raise UserError(f"--distribution_mode: {name} has no mode {mode!r}, only {known}")
    special = SPECIAL_ACTIONS.get(name, {})
    return EnvironmentSpec(
        adapter="procgen",
        name=name,
        obs_shape=FRAME_SHAPE,
        num_actions=15,
        action_names=MOVES + tuple(special.get(a, f"null{a}") for a in range(9, 15)),
        null_action=NULL_ACTION,
        time_limit=_time_limit(name, mode),
        options=dict(options),
    )


def _time_limit(name: str, mode: str) -> int:
    if (name, mode) == ("jumper", "memory"):
        return 2000
    return TIME_LIMITS.get(name, DEFAULT_TIME_LIMIT)


class ProcgenEnvironment:
    """N slots of one Procgen game; see `VectorEnvironment` for the methods.

    A death at the very decision at which the time limit is reached counts as truncated: Procgen
    reports the two alike.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        num_envs: int,
        seed: int = 0,
        start_level: int = 0,
        num_levels: int = 0,
        num_threads: int = 4,
    ):
        require_level_range(start_level, num_levels)
        self.spec = spec
        self.num_envs = num_envs
        self._game = _make_game(
            spec,
            num=num_envs,
            rand_seed=seed % MAX_LEVEL_SEED,
            start_level=start_level,
            num_levels=num_levels or TRAINING_LEVELS,
            num_threads=min(num_threads, num_envs),
        )
        self._renderer: Any = None
        self._state_buffer = _make_state_buffer(self._game)
        self._length = np.zeros(num_envs, np.int64)
        self._truncated = np.zeros(num_envs, bool)
        # The first frame after construction ends no episode.
        self._transition: Transition | None = self._read(stepped=False)

    def observe(self) -> Transition:
        """See `VectorEnvironment.observe`."""
        if self._transition is None:
            self._transition = self._read(stepped=True)
        return self._transition

    def send(self, actions: NDArray[np.integer]) -> None:
        """See `VectorEnvironment.send`."""
        self.observe()
        self._transition = None
        self._game.act(np.ascontiguousarray(actions, np.int32))

    def _read(self, stepped: bool) -> Transition:
        """Wait for the game and advance the step counters when a step has been taken."""
        reward, obs, first = self._game.observe()
        info = self._game.get_info()
        complete = first & np.array([slot["prev_level_complete"] for slot in info], bool)
        if stepped:
            length = self._length + 1
            self._truncated = first & ~complete & (length >= (self.spec.time_limit or np.inf))
            self._length = np.where(first, 0, length)
        return Transition(
            obs=obs["rgb"],
            reward=reward,
            first=first,
            level_seed=np.array([slot["level_seed"] for slot in info], np.int64),
            level_complete=complete,
            truncated=self._truncated.copy(),
        )

    def start_level(self, indices: Sequence[int], level_seeds: Sequence[int]) -> None:
        """See `VectorEnvironment.start_level`.

        The state of a fresh single-level game is copied into the slot; the slot keeps its own
        level generator, so that the levels after this one come from the configured range.
        """
        self.observe()
        for index, level_seed in zip(indices, level_seeds, strict=True):
            require_level_range(int(level_seed), 1)
            state = _first_state(self.spec, int(level_seed))
            state = _with_level_generator(state, self._get_slot(index))
            self._set_slot(index, state, length=0, truncated=False)
        self._transition = self._read(stepped=False)

    def get_state(self, indices: Sequence[int] | None = None) -> list[bytes]:
        """See `VectorEnvironment.get_state`; about 37 kB per slot in CoinRun."""
        self.observe()
        return [
            _PREFIX.pack(self._length[index], self._truncated[index]) + self._get_slot(index)
            for index in (range(self.num_envs) if indices is None else indices)
        ]

    def set_state(self, states: Sequence[bytes | None]) -> None:
        """See `VectorEnvironment.set_state`; the state may come from another slot or instance.

        The slot goes on with the saved level generator, over later resets too.
        """
        self.observe()
        if len(states) != self.num_envs:
            raise ValueError(f"{len(states)} states for {self.num_envs} environments")
        for index, state in enumerate(states):
            if state is not None:
                length, truncated = _PREFIX.unpack_from(state)
                self._set_slot(index, state[_PREFIX.size :], length, truncated)
        self._transition = self._read(stepped=False)

    def render(self, index: int) -> NDArray[np.uint8]:
        """(512, 512, 3) frame of one slot, drawn on demand by a second game."""
        self.observe()
        if self._renderer is None:
            self._renderer = _make_game(
                self.spec, num=1, num_levels=1, num_threads=0, render_mode="rgb_array"
            )
        state = self._get_slot(index)
        self._renderer.call_c_func("set_state", 0, state, len(state))
        return self._renderer.get_info()[0]["rgb"]

    def close(self) -> None:
        """See `VectorEnvironment.close`."""
        self._game.close()
        if self._renderer is not None:
            self._renderer.close()

    def _get_slot(self, index: int) -> bytes:
        return _read_state(self._game, index, self._state_buffer)

    def _set_slot(self, index: int, state: bytes, length: int, truncated: bool) -> None:
        self._game.call_c_func("set_state", index, state, len(state))
        self._length[index] = length
        self._truncated[index] = truncated


def require_level_range(start_level: int, num_levels: int) -> None:
    """Raise `UserError` when Procgen does not have these levels; `num_levels` 0 means 10^9."""
    num_levels = num_levels or TRAINING_LEVELS
    if start_level < 0 or num_levels < 0 or start_level + num_levels > MAX_LEVEL_SEED:
        raise UserError(
            f"--start_level {start_level} --num_levels {num_levels}: "
            f"Procgen's levels are 0 to {MAX_LEVEL_SEED - 1}"
        )


def _make_game(spec: EnvironmentSpec, **settings: Any) -> Any:
    return _import_procgen().ProcgenGym3Env(env_name=spec.name, **spec.options, **settings)


def _import_procgen() -> Any:
    """Import procgen without gym's end-of-life notice and the file that procgen leaves open."""
    with contextlib.suppress(ImportError):
        from gym_notices.notices import notices

        notices.pop(metadata.version("gym"), None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        import procgen
    return procgen


def _first_state(spec: EnvironmentSpec, level_seed: int) -> bytes:
    """State at the first frame of a level; making a single-level game takes 1 to 3 ms."""
    game = _make_game(spec, num=1, rand_seed=0, start_level=level_seed, num_levels=1, num_threads=0)
    state = _read_state(game, 0, _make_state_buffer(game))
    game.close()
    return state


def _make_state_buffer(game: Any) -> Any:
    """Room for one saved state. Clearing a new one for each would take a third of the time."""
    return game._ffi.new("char[]", _MAX_STATE_BYTES)


def _read_state(game: Any, index: int, buffer: Any) -> bytes:
    # gym3's own get_state always reads all slots.
    num_bytes = game.call_c_func("get_state", index, buffer, _MAX_STATE_BYTES)
    return bytes(game._ffi.buffer(buffer, num_bytes))


def _with_level_generator(state: bytes, source: bytes) -> bytes:
    """`state`, with the level range and the level generator of `source`."""
    begin, end = _level_generator_span(state)
    source_begin, source_end = _level_generator_span(source)
    return state[:begin] + source[source_begin:source_end] + state[end:]


def _level_generator_span(state: bytes) -> tuple[int, int]:
    """Bytes of a state that decide which levels follow.

    The state begins with a version, the game's name (length, then text), 12 options and the grid
    step; then come lowest level, level bound, game type, slot number, and the level generator
    (a flag, a length, its state as text). All numbers are 32-bit.
    """
    name_length = _INT.unpack_from(state, 4)[0]
    begin = 8 + name_length + 13 * _INT.size
    text_length_at = begin + 5 * _INT.size
    return begin, text_length_at + _INT.size + _INT.unpack_from(state, text_length_at)[0]
