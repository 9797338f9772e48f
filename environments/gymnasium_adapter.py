"""Gymnasium environments with images or vectors behind the vector-environment protocol.

A level is a reset seed. Gymnasium environments cannot be saved in general, so a saved state is
the reset seed and the actions since, and restoring replays them: exact for every environment that
its seed and actions determine.
"""

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from environments.protocol import TRAINING_LEVELS, EnvironmentSpec, Transition
from experiment.errors import UserError
from experiment.randomness import keyed_uniform

GYMNASIUM_PREFIX = "gymnasium:"


def gymnasium_spec(name: str) -> EnvironmentSpec:
    """Describe the Gymnasium environment with the id `name`.

    Raises:
        UserError: unknown id, observations that are neither uint8 (H, W, C) images nor vectors of
            floating-point numbers, or actions that are not discrete.
    """
    env = _make_env(name)
    observation_space, action_space = env.observation_space, env.action_space
    time_limit = env.spec.max_episode_steps if env.spec else None
    action_names = _action_names(env)
    env.close()
    shape = tuple(observation_space.shape or ())
    dtype = np.dtype(observation_space.dtype or object)
    is_image = dtype == np.uint8 and len(shape) == 3 and shape[-1] in (1, 3)
    is_vector = np.issubdtype(dtype, np.floating) and len(shape) == 1
    if not is_image and not is_vector:
        raise UserError(
            f"--env_name {GYMNASIUM_PREFIX}{name}: observations are {observation_space}, "
            "expected uint8 images (H, W, C) with 1 or 3 channels, or floating-point vectors"
        )
    if not hasattr(action_space, "n") or getattr(action_space, "start", 0) != 0:
        raise UserError(
            f"--env_name {GYMNASIUM_PREFIX}{name}: actions are {action_space}, "
            "expected Discrete actions that start at 0"
        )
    num_actions = int(getattr(action_space, "n"))  # noqa: B009 (pyright: Space has no n)
    names = action_names or tuple(f"action{action}" for action in range(num_actions))
    return EnvironmentSpec(
        adapter="gymnasium",
        name=name,
        obs_shape=shape,
        num_actions=num_actions,
        action_names=names,
        null_action=next((i for i, n in enumerate(names) if n.lower() in ("noop", "null")), 0),
        time_limit=time_limit,
    )


def _action_names(env: Any) -> tuple[str, ...] | None:
    """Names that Atari environments and their kin tell by `get_action_meanings`."""
    meanings: Any = getattr(env.unwrapped, "get_action_meanings", None)
    return None if meanings is None else tuple(str(name).lower() for name in meanings())


def _make_env(name: str) -> Any:
    try:
        import gymnasium
    except ModuleNotFoundError:
        raise UserError(
            f"--env_name {GYMNASIUM_PREFIX}{name}: gymnasium is not installed; "
            "in the project's folder, pip install -e '.[gymnasium]'"
        ) from None
    try:
        env = gymnasium.make(name, disable_env_checker=True)
        if "rgb_array" in env.metadata.get("render_modes", ()):
            env.close()
            env = gymnasium.make(name, disable_env_checker=True, render_mode="rgb_array")
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise UserError(f"--env_name {GYMNASIUM_PREFIX}{name}: {error}") from None
    return env


@dataclass
class _Slot:
    """What a saved state of one slot holds: everything but the environment itself."""

    seed: int
    """With `stream`, the slot's number, and `episode` it keys the draw of the next level."""
    stream: int
    lowest_level: int
    num_levels: int
    episode: int = 0
    level_seed: int = -1
    actions: list[int] = field(default_factory=list)
    reward: float = 0.0
    first: bool = True
    level_complete: bool = False
    truncated: bool = False


class GymnasiumEnvironment:
    """N copies of one Gymnasium environment; see `VectorEnvironment` for the methods.

    `level_complete` is the `is_success` entry of the environment's info, where there is one.
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
        self.spec = spec
        self.num_envs = num_envs
        self._envs = [_make_env(spec.name) for _ in range(num_envs)]
        self._slots = [
            _Slot(seed, stream, start_level, num_levels or TRAINING_LEVELS)
            for stream in range(num_envs)
        ]
        self._obs = np.zeros((num_envs, *spec.obs_shape), spec.obs_dtype)
        self._pool = ThreadPoolExecutor(max(min(num_threads, num_envs), 1))
        self._running: list[Future[None]] = []
        for index in range(num_envs):
            self._begin(index, self._next_level(index))

    def observe(self) -> Transition:
        """See `VectorEnvironment.observe`."""
        self._finish_step()
        slots = self._slots
        return Transition(
            obs=self._obs.copy(),
            reward=np.array([slot.reward for slot in slots], np.float32),
            first=np.array([slot.first for slot in slots], bool),
            level_seed=np.array([slot.level_seed for slot in slots], np.int64),
            level_complete=np.array([slot.level_complete for slot in slots], bool),
            truncated=np.array([slot.truncated for slot in slots], bool),
        )

    def send(self, actions: NDArray[np.integer]) -> None:
        """See `VectorEnvironment.send`."""
        self._finish_step()
        self._running = [
            self._pool.submit(self._step, index, int(action))
            for index, action in enumerate(actions)
        ]

    def start_level(self, indices: Sequence[int], level_seeds: Sequence[int]) -> None:
        """See `VectorEnvironment.start_level`."""
        self._finish_step()
        for index, level_seed in zip(indices, level_seeds, strict=True):
            slot = self._slots[index]
            slot.reward, slot.level_complete, slot.truncated = 0.0, False, False
            self._begin(index, int(level_seed))

    def get_state(self, indices: Sequence[int] | None = None) -> list[bytes]:
        """See `VectorEnvironment.get_state`; grows with the length of the episode."""
        self._finish_step()
        slots = self._slots if indices is None else [self._slots[index] for index in indices]
        return [json.dumps(asdict(slot)).encode() for slot in slots]

    def set_state(self, states: Sequence[bytes | None]) -> None:
        """See `VectorEnvironment.set_state`; takes as long as playing the episode so far."""
        self._finish_step()
        if len(states) != self.num_envs:
            raise ValueError(f"{len(states)} states for {self.num_envs} environments")
        for index, state in enumerate(states):
            if state is not None:
                self._replay(index, _Slot(**json.loads(state)))

    def render(self, index: int) -> NDArray[np.uint8]:
        """Frame of the environment's own renderer, or what the agent sees if it has none.

        Raises:
            UserError: neither is an image.
        """
        self._finish_step()
        frame = self._envs[index].render() if self._envs[index].render_mode else None
        if frame is not None:
            return np.asarray(frame, np.uint8)
        self.spec.require_images(f"a picture of {self.spec.name}")
        return np.asarray(self._obs[index], np.uint8)

    def close(self) -> None:
        """See `VectorEnvironment.close`."""
        self._finish_step()
        self._pool.shutdown()
        for env in self._envs:
            env.close()

    def _finish_step(self) -> None:
        for future in self._running:
            future.result()
        self._running = []

    def _step(self, index: int, action: int) -> None:
        slot = self._slots[index]
        obs, reward, terminated, truncated, info = self._envs[index].step(action)
        self._obs[index] = obs
        slot.actions.append(action)
        slot.reward, slot.first = float(reward), bool(terminated or truncated)
        slot.level_complete = bool(terminated and info.get("is_success", False))
        slot.truncated = bool(truncated and not terminated)
        if slot.first:
            self._begin(index, self._next_level(index))

    def _begin(self, index: int, level_seed: int) -> None:
        slot = self._slots[index]
        slot.level_seed, slot.actions, slot.first = level_seed, [], True
        self._obs[index] = self._envs[index].reset(seed=level_seed)[0]

    def _next_level(self, index: int) -> int:
        slot = self._slots[index]
        uniform = keyed_uniform(slot.seed, "gymnasium-next-level", slot.stream, slot.episode)
        slot.episode += 1
        return slot.lowest_level + int(uniform[0] * slot.num_levels)

    def _replay(self, index: int, slot: _Slot) -> None:
        obs = self._envs[index].reset(seed=slot.level_seed)[0]
        for action in slot.actions:
            obs = self._envs[index].step(action)[0]
        self._obs[index] = obs
        self._slots[index] = slot
