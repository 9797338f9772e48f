"""What a saved Procgen state says about the game (Cobbe et al. 2020), for all 16 games.

`docs/game_state.md` describes the layout and what each number means. All lengths are in cells of
the level's grid, times in steps, x grows to the right and y upwards, from the level's lower left
corner. Pixels count from the upper left corner of the frame.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from environments.procgen_adapter import ALL_GAMES, FRAME_SHAPE

ADAPTER_PREFIX_BYTES = 5
"""Bytes that `ProcgenEnvironment.get_state` puts before Procgen's own."""

STATE_VERSION = 0
END_MARKER = b"\xfe\xca\xfe\xca"
"""Last bytes of every saved state."""

FRAME_SIZE = FRAME_SHAPE[0]
"""Pixels along one side of the frame that a saved camera belongs to."""

OPTION_NAMES = (
    "paint_vel_info",
    "use_generated_assets",
    "use_monochrome_assets",
    "restrict_themes",
    "use_backgrounds",
    "center_agent",
    "debug_mode",
    "distribution_mode",
    "use_sequential_levels",
    "use_easy_jump",
    "plain_assets",
    "physics_mode",
)
"""The options in the order of the header."""

DISTRIBUTION_MODE_CODES = {0: "easy", 1: "hard", 2: "extreme", 10: "memory"}

_ENTITY_LAYOUT = (
    ("x y vx vy rx ry", "<f4"),
    ("type image_type image_theme render_z will_erase collides_with_entities", "<i4"),
    ("collision_margin rotation vrot", "<f4"),
    ("is_reflected fire_time spawn_time life_time expire_time use_abs_coords", "<i4"),
    ("friction", "<f4"),
    ("smart_step avoids_collisions auto_erase", "<i4"),
    ("alpha health theta grow_rate alpha_decay climber_spawn_x", "<f4"),
)
ENTITY_FIELDS = tuple(name for names, _ in _ENTITY_LAYOUT for name in names.split())
"""Columns of an entity table, in the order of the saved state."""
ENTITY_DTYPE = np.dtype([(name, np.float32) for name in ENTITY_FIELDS])
"""An entity: 31 float32, by name. Whole numbers stay exact, since all are far below 2^24."""
_INTEGER_COLUMNS = np.flatnonzero(
    [kind == "<i4" for names, kind in _ENTITY_LAYOUT for _ in names.split()]
)

_INT = struct.Struct("<i")
_PAIR = struct.Struct("<2i")
_HEADER = struct.Struct("<17i")
_STEP = struct.Struct("<f9if4i")
_MOTION = struct.Struct("<2i3f3i8f4i")
_CAMERA = struct.Struct("<3i6f")
_GRID = struct.Struct("<3i")
_COINRUN = struct.Struct("<f4i2f")

FLAG_TAILS = {
    "climber": {"has_support": 0, "facing_right": 1},
    "coinrun": {"has_support": 2, "facing_right": 3, "on_crate": 4},
    "jumper": {"has_support": 3, "facing_right": 4},
    "ninja": {"has_support": 0, "facing_right": 1},
}
"""Numbers of a game's tail that are 0 or 1, and at which place of it, in 4-byte words."""


class StateFormatError(ValueError):
    """Bytes that are not a whole saved state; the message says where, and what was expected."""


@dataclass(frozen=True)
class StateHeader:
    """Which game was saved."""

    game: str
    options: dict[str, int]
    """By `OPTION_NAMES`, as numbers."""
    level_start: int
    """First level seed of the range that the slot draws from."""
    level_stop: int
    """Level seed after the last of that range."""

    @property
    def distribution_mode(self) -> str:
        """Procgen's difficulty: easy, hard, extreme or memory."""
        return DISTRIBUTION_MODE_CODES[self.options["distribution_mode"]]


@dataclass(frozen=True)
class StepData:
    """What the last action led to.

    At the first frame of an episode `done` is true, and `reward` and `level_complete` belong to the
    episode before, as in `Transition`.
    """

    reward: float
    done: bool
    level_complete: bool
    action: int
    """The action taken last; Procgen's null action, 4, at the first frame of an episode."""
    time_limit: int
    """Steps after which the game ends the episode."""
    level_seed: int
    previous_level_seed: int
    """Level of the episode before; 0 without one."""
    step: int
    """Steps taken in this episode: the index of the decision that comes next."""


@dataclass(frozen=True)
class Physics:
    """How the game turns the action into the agent's motion."""

    mix_rate: float
    """Share by which a velocity moves towards its target in one step."""
    max_speed: float
    """Cells per step."""
    max_jump: float
    """Cells per step, upwards, at the start of a jump."""
    action_vx: float
    """−1, 0 or 1: what the last action asked for along x."""
    action_vy: float
    action_rotation: float


@dataclass(frozen=True)
class Camera:
    """What the 64-pixel frame shows; see `world_to_pixel`."""

    centre_x: float
    """Cells."""
    centre_y: float
    unit: float
    """Pixels per cell."""
    view: float
    """Cells along one side of the frame."""
    x_off: float
    """Pixels by which the world's left edge lies left of the frame's."""
    y_off: float
    """Pixels by which y = `view` lies below the frame's upper edge."""
    visibility: float
    min_visibility: float


@dataclass(frozen=True)
class CoinRunState:
    """What CoinRun alone keeps."""

    last_y: float
    """Height of the agent's centre at the end of the last step, in cells."""
    wall_theme: int
    has_support: bool
    """Whether the agent stood on something before the last step moved it: one step late."""
    facing_right: bool
    """Whether the last action that named a side named the right."""
    on_crate: bool
    """Whether the last step ended on a crate."""
    gravity: float
    """Cells per step, taken from the vertical velocity at each step."""
    air_control: float
    """Share of the mix rate that is left while the agent is in the air."""


class SavedParts(NamedTuple):
    """The parts of a saved state as they lie in its bytes, checked and not yet named.

    What a recorder keeps of each step is taken from here: to name all numbers takes several times
    as long as to find them.
    """

    game: str
    options: tuple[int, ...]
    """17 numbers: the options and the range of levels."""
    step: tuple[Any, ...]
    """15 numbers, of which `StepData` names eight."""
    entities: bytes
    """N entities of `ENTITY_FIELDS`, 4 bytes each; the first is the agent."""
    motion: tuple[Any, ...]
    """20 numbers, of which `Physics` names six."""
    camera: tuple[float, ...]
    """8 numbers, as `Camera` names them."""
    grid_shape: tuple[int, int]
    """(H, W)"""
    grid: bytes
    """H · W cells of 4 bytes; row 0 is the bottom, column 0 the left edge."""
    out_of_bounds_cell: int
    tail: bytes
    """What the game saves after the grid, its end marker excluded."""

    @property
    def num_steps(self) -> int:
        """Steps taken in this episode."""
        return self.step[13]

    @property
    def flags(self) -> tuple[bool, ...]:
        """What the tail says by `FLAG_TAILS`; empty for a game that is not named there."""
        places = FLAG_TAILS.get(self.game)
        if places is None:
            return ()
        return tuple([_INT.unpack_from(self.tail, 4 * p)[0] != 0 for p in places.values()])


@dataclass(frozen=True, eq=False)
class GameState:
    """One saved state, read."""

    parts: SavedParts

    @cached_property
    def header(self) -> StateHeader:
        """Which game was saved."""
        options: dict[str, int] = dict(zip(OPTION_NAMES, self.parts.options, strict=False))
        start, stop = self.parts.options[13:15]
        return StateHeader(self.parts.game, options, level_start=start, level_stop=stop)

    @cached_property
    def step(self) -> StepData:
        """What the last action led to."""
        reward, done, level_complete, *others = self.parts.step[:7]
        action, time_limit, level_seed, previous_level_seed = others
        return StepData(
            reward=reward,
            done=bool(done),
            level_complete=bool(level_complete),
            action=action,
            time_limit=time_limit,
            level_seed=level_seed,
            previous_level_seed=previous_level_seed,
            step=self.parts.num_steps,
        )

    @cached_property
    def entities(self) -> NDArray[np.void]:
        """(N,) of `ENTITY_DTYPE`; the first is the agent. `entity_rows` gives plain numbers."""
        return entity_table(self.parts.entities).view(ENTITY_DTYPE)[:, 0]

    @cached_property
    def physics(self) -> Physics:
        """How the game turns the action into the agent's motion."""
        return Physics(*self.parts.motion[8:14])

    @property
    def background_index(self) -> int:
        """Which of the game's backgrounds is drawn."""
        return self.parts.motion[1]

    @cached_property
    def camera(self) -> Camera:
        """What the frame shows."""
        return Camera(*self.parts.camera)

    @cached_property
    def grid(self) -> NDArray[np.int32]:
        """(H, W) cell types; row 0 is the bottom, column 0 the left edge."""
        return grid_cells(self.parts)

    @property
    def out_of_bounds_cell(self) -> int:
        """Cell type that stands for everything outside the grid."""
        return self.parts.out_of_bounds_cell

    @property
    def tail(self) -> bytes:
        """What the game saves after the grid, its end marker excluded."""
        return self.parts.tail

    @property
    def agent(self) -> np.void:
        """The agent's row of `entities`."""
        return self.entities[0]

    @property
    def flags(self) -> tuple[bool, ...]:
        """What the tail says by `FLAG_TAILS`; empty for a game that is not named there."""
        return self.parts.flags

    @cached_property
    def coinrun(self) -> CoinRunState:
        """The tail of a CoinRun state; raises `StateFormatError` for another game."""
        return _parse_coinrun_tail(self)


@dataclass(frozen=True, eq=False)
class PixelBoxes:
    """Boxes in a frame, in pixels from its upper left corner; all of one shape."""

    left: NDArray[np.float64]
    top: NDArray[np.float64]
    right: NDArray[np.float64]
    bottom: NDArray[np.float64]


def parse_state(state: bytes) -> GameState:
    """Read a state that `ProcgenEnvironment.get_state` saved.

    Raises:
        StateFormatError: truncated or foreign bytes.
    """
    return GameState(find_parts(state))


def parse_procgen_bytes(state: bytes) -> GameState:
    """Read Procgen's own bytes, as its `get_state` gives them; otherwise as `parse_state`."""
    return GameState(_find_parts(_Cursor(state, 0)))


def find_parts(state: bytes) -> SavedParts:
    """Find the parts of a state that `ProcgenEnvironment.get_state` saved.

    Raises:
        StateFormatError: truncated or foreign bytes.
    """
    return _find_parts(_Cursor(state, ADAPTER_PREFIX_BYTES))


def entity_table(entities: bytes) -> NDArray[np.float32]:
    """(N, 31) numbers of entities as they lie in saved states, columns by `ENTITY_FIELDS`."""
    words = np.frombuffer(entities, "<i4").reshape(-1, len(ENTITY_FIELDS))
    # One copy, which is writable; the whole numbers are then put in as numbers.
    table = words.view("<f4").astype(np.float32)
    table[:, _INTEGER_COLUMNS] = words[:, _INTEGER_COLUMNS]
    return table


def grid_cells(parts: SavedParts) -> NDArray[np.int32]:
    """(H, W) cell types of a saved state."""
    return np.frombuffer(parts.grid, "<i4").astype(np.int32).reshape(parts.grid_shape)


def entity_rows(entities: NDArray[np.void]) -> NDArray[np.float32]:
    """(N, 31) view of an entity table, columns by `ENTITY_FIELDS`."""
    return entities.view(np.float32).reshape(len(entities), len(ENTITY_FIELDS))


def world_to_pixel(
    camera: Camera, x: ArrayLike, y: ArrayLike, frame_size: int = FRAME_SIZE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where points of the level, in cells, lie in a frame of `frame_size` pixels a side.

    Returns:
        Column and row, in pixels from the upper left corner, fractions included; a pixel's own
        centre is at one half.
    """
    scale = frame_size / FRAME_SIZE
    column = np.asarray(x, np.float64) * camera.unit - camera.x_off
    row = (camera.view - np.asarray(y, np.float64)) * camera.unit + camera.y_off
    return column * scale, row * scale


def cell_boxes(
    camera: Camera, columns: ArrayLike, rows: ArrayLike, frame_size: int = FRAME_SIZE
) -> PixelBoxes:
    """The squares that cells of the grid fill in a frame of `frame_size` pixels a side."""
    columns, rows = np.asarray(columns), np.asarray(rows)
    left, bottom = world_to_pixel(camera, columns, rows, frame_size)
    right, top = world_to_pixel(camera, columns + 1, rows + 1, frame_size)
    return PixelBoxes(left, top, right, bottom)


def entity_boxes(state: GameState, frame_size: int = FRAME_SIZE) -> PixelBoxes:
    """(N,) boxes around all entities in a frame of `frame_size` pixels a side.

    An entity that is turned gets the box around its turned rectangle. Entities outside the frame
    have boxes outside it. Pictures with clear margins fill less than their box.
    """
    return boxes_of_entities(entity_rows(state.entities), state.camera, frame_size)


def boxes_of_entities(
    entities: NDArray[np.float32], camera: Camera, frame_size: int = FRAME_SIZE
) -> PixelBoxes:
    """`entity_boxes` of an (N, 31) table with columns by `ENTITY_FIELDS`."""

    def values(name: str) -> NDArray[np.float64]:
        return entities[:, ENTITY_FIELDS.index(name)].astype(np.float64)

    x, y, rx, ry, rotation = map(values, ("x", "y", "rx", "ry", "rotation"))
    cosine, sine = (np.abs(turn(rotation)) for turn in (np.cos, np.sin))
    half_width, half_height = cosine * rx + sine * ry, sine * rx + cosine * ry
    column, row = world_to_pixel(camera, x, y, frame_size)
    # Labels fixed to the frame are given in shares of it. Their y counts downwards to a point
    # one height above their centre, which is how Procgen draws them.
    fixed = values("use_abs_coords") != 0
    column = np.where(fixed, x * frame_size, column)
    row = np.where(fixed, (y + 2 * ry) * frame_size, row)
    unit = np.where(fixed, frame_size, camera.unit * frame_size / FRAME_SIZE)
    return PixelBoxes(
        left=column - half_width * unit,
        top=row - half_height * unit,
        right=column + half_width * unit,
        bottom=row + half_height * unit,
    )


class _Cursor:
    """A place in saved bytes that moves on with each reading."""

    def __init__(self, data: bytes, offset: int):
        self.data = data
        self.offset = offset

    def read(self, layout: struct.Struct, name: str) -> tuple[Any, ...]:
        begin = self.skip(layout.size, name)
        return layout.unpack_from(self.data, begin)

    def read_bytes(self, size: int, name: str) -> bytes:
        begin = self.skip(size, name)
        return self.data[begin : begin + size]

    def read_text(self, name: str) -> bytes:
        return self.read_bytes(self._read_length(name), name)

    def skip_text(self, name: str) -> None:
        self.skip(self._read_length(name), name)

    def _read_length(self, name: str) -> int:
        (length,) = self.read(_INT, name)
        _expect(length >= 0, name, f"length {length}", "0 or more")
        return length

    def skip(self, size: int, name: str) -> int:
        """Move on by `size` bytes; returns where they begin."""
        begin, self.offset = self.offset, self.offset + size
        if self.offset > len(self.data):
            raise StateFormatError(
                f"saved state, {name}: found {len(self.data)} bytes in all, "
                f"expected at least {self.offset}"
            )
        return begin


def _expect(holds: bool, name: str, found: Any, expected: str) -> None:
    if not holds:
        raise _unexpected(name, found, expected)


def _unexpected(name: str, found: Any, expected: str) -> StateFormatError:
    return StateFormatError(f"saved state, {name}: found {found}, expected {expected}")


def _find_parts(cursor: _Cursor) -> SavedParts:
    game, options = _read_header(cursor)
    step = _read_step(cursor)
    entities = _read_entities(cursor)
    motion = cursor.read(_MOTION, "motion")
    cursor.skip_text("drawing generator")
    camera = cursor.read(_CAMERA, "camera")
    grid_shape, grid = _read_grid(cursor, camera[0], camera[1])
    return SavedParts(
        game=game,
        options=options,
        step=step,
        entities=entities,
        motion=motion,
        camera=motion[14:16] + camera[3:],
        grid_shape=grid_shape,
        grid=grid,
        out_of_bounds_cell=camera[2],
        tail=_read_tail(cursor),
    )


def _read_header(cursor: _Cursor) -> tuple[str, tuple[int, ...]]:
    (version,) = cursor.read(_INT, "version")
    _expect(version == STATE_VERSION, "version", version, str(STATE_VERSION))
    name = cursor.read_text("name of the game")
    game = _GAMES.get(name)
    if game is None:
        raise _unexpected("name of the game", repr(name[:20]), "one of Procgen's 16 games")
    options = cursor.read(_HEADER, "options")
    mode = options[_DISTRIBUTION_MODE]
    _expect(mode in DISTRIBUTION_MODE_CODES, "distribution mode", mode, "0, 1, 2 or 10")
    for generator in ("level generator", "game generator"):
        cursor.skip(_INT.size, generator)
        cursor.skip_text(generator)
    return game, options


_GAMES = {name.encode(): name for name in ALL_GAMES}
_DISTRIBUTION_MODE = OPTION_NAMES.index("distribution_mode")


def _read_step(cursor: _Cursor) -> tuple[Any, ...]:
    numbers = cursor.read(_STEP, "step data")
    _, done, level_complete = numbers[:3]
    _expect(done in (0, 1), "done", done, "0 or 1")
    _expect(level_complete in (0, 1), "level complete", level_complete, "0 or 1")
    return numbers


def _read_entities(cursor: _Cursor) -> bytes:
    _, count = cursor.read(_PAIR, "number of entities")
    _expect(count >= 1, "number of entities", count, "1 or more")
    return cursor.read_bytes(count * ENTITY_DTYPE.itemsize, "entities")


def _read_grid(cursor: _Cursor, main_width: int, main_height: int) -> tuple[tuple[int, int], bytes]:
    """Its (H, W) and its cells."""
    width, height, count = cursor.read(_GRID, "grid")
    shape_of_level = main_width, main_height, main_width * main_height
    if count <= 0 or (width, height, count) != shape_of_level:
        raise _unexpected(
            "grid",
            f"{width} x {height} with {count} cells",
            f"{main_width} x {main_height}, as the level's size",
        )
    return (height, width), cursor.read_bytes(_INT.size * count, "grid")


def _read_tail(cursor: _Cursor) -> bytes:
    rest = cursor.data[cursor.offset :]
    end = rest[-len(END_MARKER) :]
    if end != END_MARKER:
        raise _unexpected("last bytes", end.hex() or "none", END_MARKER.hex())
    return rest[: -len(END_MARKER)]


def _parse_coinrun_tail(state: GameState) -> CoinRunState:
    game, size = state.header.game, len(state.tail)
    _expect(game == "coinrun", "name of the game", game, "coinrun")
    _expect(size == _COINRUN.size, "tail of coinrun", f"{size} bytes", f"{_COINRUN.size}")
    last_y, theme, has_support, facing_right, on_crate, gravity, air = _COINRUN.unpack(state.tail)
    return CoinRunState(
        last_y=last_y,
        wall_theme=theme,
        has_support=bool(has_support),
        facing_right=bool(facing_right),
        on_crate=bool(on_crate),
        gravity=gravity,
        air_control=air,
    )
