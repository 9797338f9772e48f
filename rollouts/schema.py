"""What a dataset declares about itself, and the check of every rollout against it.

`docs/data_format.md` describes the files; a change here is a change there, and a new schema
version.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from environments.game_trace import GameTables, GameTrace
from environments.protocol import EnvironmentSpec
from experiment.errors import UserError
from rollouts.saved_states import find_problem
from rollouts.types import GAME_PREFIX, SIMULATED_STEP_FIELDS, EpisodeInfo, Rollout, array_of

FORMAT_NAME = "dreamscope-rollouts"
SCHEMA_VERSION, SCHEMA_VERSION_WITH_GAME, SCHEMA_VERSION_WITH_SAVED_STATES = 1, 2, 3
SCHEMA_VERSION_OF_VECTORS = 4
"""Datasets whose observations are vectors are of version 4, others with saved states of version 3,
others with game states of version 2, all others of version 1, which has neither."""
READABLE_VERSIONS = range(SCHEMA_VERSION, SCHEMA_VERSION_OF_VECTORS + 1)
READABLE = f"{READABLE_VERSIONS[0]} to {READABLE_VERSIONS[-1]}"

STRING = "string"
"""The `dtype` of an episode column of UTF-8 strings of any length."""


class SchemaError(ValueError):
    """A rollout that does not fit its dataset; the message names the field."""


@dataclass(frozen=True)
class SimulatedDims:
    """Sizes of what simulated rollouts add."""

    deter_dim: int
    num_categoricals: int
    num_classes: int
    latent_dim: int


@dataclass(frozen=True)
class FieldSpec:
    """One array of a shard."""

    name: str
    dtype: str
    """numpy's name of the element type, or `STRING`."""
    row_shape: tuple[int, ...] = ()
    """Shape of one row; the leading dimension counts decisions, or episodes."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, uncompressed; numeric fields only."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.row_shape))

    def to_python(self, value: Any) -> Any:
        """A scalar of this field as Python's own `int`, `float`, `bool` or `str`."""
        return str(value) if self.dtype == STRING else np.dtype(self.dtype).type(value).item()


SAVED_STATE_FIELDS = (
    FieldSpec("saved_state_table", "int64", (3,)),
    FieldSpec("saved_states", "uint8"),
)
"""Ragged fields of datasets that keep states of the environment."""


@dataclass(frozen=True)
class DatasetMetadata:
    """What holds for the whole dataset: the content of `dataset.json`."""

    environment: EnvironmentSpec
    agent_hash: str
    agent_file: str
    """Where the agent was when the dataset was made; a hint, not part of the identity."""
    state_dim: int
    hidden_slice: tuple[int, int]
    """(start, stop) of the part of `agent_hidden` that analyses look at."""
    num_actions: int
    simulated: SimulatedDims | None = None
    """None for rollouts of the real environment."""
    game: GameTables | None = None
    """The columns of the game states; None where they are not recorded."""
    save_state_every: int | None = None
    """Rows from one saved state of the environment to the next; None where none is kept."""
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def schema_version(self) -> int:
        """Version of the format that the dataset needs."""
        if not self.environment.shows_images:
            return SCHEMA_VERSION_OF_VECTORS
        if self.save_state_every is not None:
            return SCHEMA_VERSION_WITH_SAVED_STATES
        return SCHEMA_VERSION if self.game is None else SCHEMA_VERSION_WITH_GAME

    @property
    def step_fields(self) -> tuple[FieldSpec, ...]:
        """Arrays with one row per decision."""
        fields = [
            FieldSpec("obs", self.environment.obs_dtype, self.environment.obs_shape),
            FieldSpec("agent_hidden", "float32", (self.state_dim,)),
            FieldSpec("action_logits", "float32", (self.num_actions,)),
            FieldSpec("value", "float32"),
            FieldSpec("action", "int32"),
            FieldSpec("behaviour_log_prob", "float32"),
            FieldSpec("reward", "float32"),
            FieldSpec("done", "bool"),
        ]
        if self.simulated is not None:
            fields += [
                FieldSpec("env_deter", "float32", (self.simulated.deter_dim,)),
                FieldSpec("env_stoch", "uint8", (self.simulated.num_categoricals,)),
                FieldSpec("terminal_prob", "float32"),
            ]
        if self.game is not None:
            fields += [
                FieldSpec("game_variables", "float32", (len(self.game.variables),)),
                FieldSpec("game_camera", "float32", (len(self.game.camera_columns),)),
                FieldSpec("game_num_entities", "int32"),
                FieldSpec("game_num_grid_changes", "int32"),
            ]
        return tuple(fields)

    @property
    def ragged_fields(self) -> tuple[FieldSpec, ...]:
        """Arrays of which an episode has any number of rows, told by its column `length_column`."""
        fields = []
        if self.game is not None:
            fields += [
                FieldSpec("game_entities", "float32", (len(self.game.entity_columns),)),
                FieldSpec("game_grid_changes", "int32", (3,)),
                FieldSpec("game_grid", "int32"),
            ]
        if self.save_state_every is not None:
            fields += SAVED_STATE_FIELDS
        return tuple(fields)

    @property
    def episode_fields(self) -> tuple[FieldSpec, ...]:
        """Columns of the episode table."""
        fields = [
            FieldSpec("episode_id", "int64"),
            FieldSpec("offset", "int64"),
            FieldSpec("length", "int64"),
            FieldSpec("return", "float64"),
            FieldSpec("agent_hash", STRING),
            FieldSpec("agent_initial_state", "float32", (self.state_dim,)),
            FieldSpec("level_seed", "int64"),
            FieldSpec("level_complete", "bool"),
            FieldSpec("truncated", "bool"),
            FieldSpec("cut", "bool"),
            FieldSpec("initialisation", STRING),
            FieldSpec("source_episode_id", "int64"),
            FieldSpec("source_row", "int64"),
            FieldSpec("simulator_hash", STRING),
            FieldSpec("interventions", STRING),
            FieldSpec("twin_of", "int64"),
        ]
        if self.simulated is not None:
            fields.append(FieldSpec("latent", "float32", (self.simulated.latent_dim,)))
        if self.game is not None:
            fields.append(FieldSpec("game_grid_shape", "int64", (2,)))
        fields += [FieldSpec(length_column(f), "int64") for f in self.ragged_fields]
        return tuple(fields)

    @property
    def row_bytes(self) -> int:
        """Bytes of one decision, uncompressed; what is ragged not included."""
        return sum(spec.row_bytes for spec in self.step_fields)

    @property
    def all_fields(self) -> tuple[FieldSpec, ...]:
        """Every array and column, in the order in which the content hash names them."""
        return (*self.step_fields, *self.ragged_fields, *self.episode_fields)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `dataset.json` holds them."""
        values = {
            "format": FORMAT_NAME,
            "schema_version": self.schema_version,
            **asdict(self),
            "step_fields": [dict(vars(spec)) for spec in self.step_fields],
            "episode_fields": [dict(vars(spec)) for spec in self.episode_fields],
        }
        for name in ("game", "save_state_every"):
            if values[name] is None:
                del values[name]
        if self.ragged_fields:
            values["ragged_fields"] = [dict(vars(spec)) for spec in self.ragged_fields]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: Path | str) -> "DatasetMetadata":
        """Inverse of `to_dict`, also after a round trip through JSON.

        Raises:
            UserError: `source` is no dataset description, or one of an unknown schema version.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT_NAME:
            raise UserError(f"{source}: not the description of a rollout dataset")
        if values.get("schema_version") not in READABLE_VERSIONS:
            raise UserError(
                f"{source}: schema version {values.get('schema_version')!r} is unknown, "
                f"this program reads versions {READABLE}"
            )
        try:
            return cls._from_known_version(values)
        except (KeyError, TypeError) as error:
            raise UserError(f"{source}: incomplete description of a dataset ({error})") from None

    @classmethod
    def _from_known_version(cls, values: dict[str, Any]) -> "DatasetMetadata":
        start, stop = values["hidden_slice"]
        simulated, game = values["simulated"], values.get("game")
        return cls(
            environment=EnvironmentSpec.from_dict(values["environment"]),
            agent_hash=values["agent_hash"],
            agent_file=values["agent_file"],
            state_dim=values["state_dim"],
            hidden_slice=(start, stop),
            num_actions=values["num_actions"],
            simulated=None if simulated is None else SimulatedDims(**simulated),
            game=None if game is None else GameTables(**{k: tuple(v) for k, v in game.items()}),
            save_state_every=values.get("save_state_every"),
            provenance=values["provenance"],
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What every writer of the dataset must agree on: all but its history."""
        # Without the history from the outset, which can be long.
        values = json.loads(json.dumps(replace(self, provenance={}).to_dict()))
        del values["provenance"], values["agent_file"]
        return values


def length_column(field: FieldSpec) -> str:
    """The episode column that tells how many rows of a ragged field an episode has."""
    return f"{field.name}_length"


def find_difference(expected: Any, found: Any, key: str = "") -> str | None:
    """Dotted key of the first difference between two nested plain values, None without one."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in sorted(expected.keys() | found.keys()):
            inner = f"{key}.{name}" if key else name
            difference = find_difference(expected.get(name), found.get(name), inner)
            if difference is not None:
                return difference
        return None
    return None if expected == found else key


def check_rollout(rollout: Rollout, metadata: DatasetMetadata) -> None:
    """Check every array of `rollout` against the schema.

    Raises:
        SchemaError: naming the first field of the wrong type, shape, length or content.
    """
    if rollout.is_simulated != (metadata.simulated is not None):
        kind = "real" if metadata.simulated is None else "simulated"
        raise SchemaError(
            f"initialisation: {rollout.info.initialisation!r} in a dataset of {kind} rollouts"
        )
    num_rows = len(rollout)
    if num_rows == 0:
        raise SchemaError("obs: a rollout has at least one row")
    _check_game(rollout.game, metadata)
    _check_saved_states(rollout, metadata)
    for spec in metadata.step_fields:
        _check_array(spec, array_of(rollout, spec.name), (num_rows, *spec.row_shape))
    if rollout.obs.dtype != np.uint8 and not np.isfinite(rollout.obs).all():
        raise SchemaError("obs: has entries that are not finite")
    for name in () if rollout.is_simulated else SIMULATED_STEP_FIELDS:
        if getattr(rollout, name) is not None:
            raise SchemaError(f"{name}: given for a real rollout")
    for spec in metadata.episode_fields:
        if spec.row_shape and spec.name in EpisodeInfo.__dataclass_fields__:
            _check_array(spec, getattr(rollout.info, spec.name), spec.row_shape)
    _check_classes("action", rollout.action, metadata.num_actions)
    if metadata.simulated is not None and rollout.env_stoch is not None:
        _check_classes("env_stoch", rollout.env_stoch, metadata.simulated.num_classes)
    _check_info(rollout.info, metadata)
    if not rollout.is_simulated:
        _check_end(rollout)


def _check_game(game: GameTrace | None, metadata: DatasetMetadata) -> None:
    if (game is None) != (metadata.game is None):
        found, expected = ("without", "with") if game is None else ("with", "without")
        raise SchemaError(f"game: a rollout {found} game states in a dataset {expected} them")
    if game is None:
        return
    if game.grid.ndim != 2:
        raise SchemaError(f"game_grid: found shape {game.grid.shape}, expected two dimensions")
    counts = {"game_entities": game.num_entities, "game_grid_changes": game.num_grid_changes}
    for spec in metadata.ragged_fields:
        if not spec.name.startswith(GAME_PREFIX):
            continue
        array = getattr(game, spec.name.removeprefix(GAME_PREFIX))
        num_rows = int(counts[spec.name].sum()) if spec.name in counts else None
        shape = array.shape if num_rows is None else (num_rows, *spec.row_shape)
        _check_array(spec, array, shape)


def _check_saved_states(rollout: Rollout, metadata: DatasetMetadata) -> None:
    every, table, states = (
        metadata.save_state_every,
        rollout.saved_state_table,
        rollout.saved_states,
    )
    for spec in SAVED_STATE_FIELDS:
        array = getattr(rollout, spec.name)
        if (array is None) != (every is None):
            found, expected = ("without", "with") if array is None else ("with", "without")
            raise SchemaError(f"{spec.name}: a rollout {found} it in a dataset {expected} it")
        if array is not None:
            _check_array(spec, array, (*np.shape(array)[:1], *spec.row_shape))
    if every is not None and table is not None and states is not None:
        problem = find_problem(table, states, len(rollout), every)
        if problem is not None:
            raise SchemaError(f"saved_state_table: {problem}")


def _check_array(spec: FieldSpec, array: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray):
        raise SchemaError(f"{spec.name}: found {type(array).__name__}, expected a numpy array")
    if array.dtype != np.dtype(spec.dtype):
        raise SchemaError(f"{spec.name}: found dtype {array.dtype}, expected {spec.dtype}")
    if array.shape != shape:
        raise SchemaError(f"{spec.name}: found shape {array.shape}, expected {shape}")


def _check_classes(name: str, indices: NDArray[np.integer], num_classes: int) -> None:
    if indices.size and not 0 <= indices.min() <= indices.max() < num_classes:
        raise SchemaError(
            f"{name}: found values from {indices.min()} to {indices.max()}, "
            f"expected 0 to {num_classes - 1}"
        )


def _check_info(info: EpisodeInfo, metadata: DatasetMetadata) -> None:
    if info.episode_id < 0:
        raise SchemaError(f"episode_id: found {info.episode_id}, expected a number from 0 on")
    if info.agent_hash != metadata.agent_hash:
        raise SchemaError(
            f"agent_hash: found {info.agent_hash!r}, the dataset is of {metadata.agent_hash!r}"
        )


def _check_end(rollout: Rollout) -> None:
    """A real episode ends once, at its last row, unless the recorder cut it."""
    if rollout.done[:-1].any():
        raise SchemaError("done: true before the last row of a real episode")
    if rollout.done[-1] == rollout.info.cut:
        raise SchemaError("cut: a real episode either ends with `done` or is cut")
    if rollout.info.truncated and rollout.info.cut:
        raise SchemaError("truncated: an episode that was cut had not been ended by time limit")


class ContentHash:
    """SHA-256 of a table, column by column, so that rows may arrive in pieces of any size."""

    def __init__(self, fields: tuple[FieldSpec, ...]):
        self._digests = {spec.name: hashlib.sha256() for spec in fields}

    def update(self, name: str, rows: NDArray[Any] | list[str]) -> None:
        """Add rows to the column `name`."""
        if isinstance(rows, list):
            self._digests[name].update(b"".join(text.encode() + b"\0" for text in rows))
        else:
            little_endian = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
            self._digests[name].update(np.ascontiguousarray(little_endian).data)

    def hexdigest(self) -> str:
        """64 hexadecimal digits: the hash of the lines `name digest`, in field order."""
        lines = "".join(f"{name} {d.hexdigest()}\n" for name, d in self._digests.items())
        return hashlib.sha256(lines.encode()).hexdigest()
