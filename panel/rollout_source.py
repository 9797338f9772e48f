"""One rollout dataset as the page sees it: a description, an episode table, steps and frames."""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiment.errors import UserError
from generative.recording_identity import recording_identity
from rollouts.schema import DatasetMetadata
from rollouts.store import RolloutDataset

MAX_FRAMES_PER_REQUEST = 512
MAX_FRAME_BYTES_PER_REQUEST = 8 * 2**20
TABLES_PER_ANSWER = 100
"""As many as panel/static/api.js asks for at once: their ids fit into one address."""
STEP_FIELDS_SHOWN = (
    "value",
    "reward",
    "done",
    "action",
    "action_logits",
    "behaviour_log_prob",
)
INITIALISATIONS = ("real", "informed", "random", "interpolated", "given", "branched")
"""Codes of the column `initialisation` of the episode table are positions in this tuple."""
UNKNOWN_CODE = 255
TABLE_COLUMNS = (
    "episode_id",
    "length",
    "return",
    "level_seed",
    "level_complete",
    "truncated",
    "cut",
    "source_episode_id",
    "source_row",
    "twin_of",
)


class UnknownItemError(Exception):
    """Something was asked for that does not exist; the message says what, in words."""


@dataclass(frozen=True)
class Kinship:
    """How a dataset is told from others, and which others it names; empty where it names none."""

    identity: str
    """Hash of what decides its episodes."""
    twin_name: str
    """Folder, beside this one, of the recording without the intervention."""
    source_hash: str
    """Hash of the real rollouts that its episodes begin in or branch from."""
    replayed_identity: str
    """Identity of the samples that its episodes let happen in the real environment."""


class RolloutSource:
    """Reads a dataset for many requests at once; HDF5 handles serve one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._dataset = RolloutDataset(folder)
        self.content_hash: str = self._dataset.hash
        self.is_simulated = self._dataset.metadata.simulated is not None
        self.shows_images = self._dataset.metadata.environment.shows_images
        self.kinship = _kinship(self._dataset.metadata)

    @property
    def provenance(self) -> dict[str, Any]:
        """What the dataset says of its making."""
        return self._dataset.metadata.provenance

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        metadata = self._dataset.metadata
        environment = metadata.environment
        return {
            "kind": "simulated" if self.is_simulated else "real",
            "hash": self.content_hash,
            "num_episodes": int(self._dataset.num_episodes),
            "num_rows": int(self._dataset.num_rows),
            "environment": environment.name,
            "obs_shape": list(environment.obs_shape),
            "action_names": list(environment.action_names),
            "agent_hash": metadata.agent_hash,
            "initialisations": list(INITIALISATIONS),
        }

    def episode_table(self) -> dict[str, NDArray]:
        """One entry per episode, column by column; see `TABLE_COLUMNS` and `INITIALISATIONS`."""
        read = self._dataset.read_episode_field
        codes = _initialisation_codes(read("initialisation"))
        return {**{name: read(name) for name in TABLE_COLUMNS}, "initialisation": codes}

    def steps(self, episode_id: int) -> dict[str, NDArray]:
        """Scalars and logits of each step of one episode, (T,) or (T, num_actions).

        Raises:
            UnknownItemError: no such episode.
        """
        start, length = self._rows(episode_id)
        names = STEP_FIELDS_SHOWN + (("terminal_prob",) if self.is_simulated else ())
        return {name: self._read(name, start, start + length) for name in names}

    def frames(self, episode_id: int, start: int, stop: int) -> NDArray[np.uint8]:
        """(stop − start, H, W, C) frames of one episode; `stop` is cut to its length.

        Raises:
            UnknownItemError: no such episode or no such rows, or more than
                `MAX_FRAMES_PER_REQUEST` of them.
        """
        offset, length = self._rows(episode_id)
        stop = min(stop, length)
        if not 0 <= start < stop:
            raise UnknownItemError(f"episode {episode_id} has rows 0 to {length - 1}, not {start}")
        if not self.shows_images:
            raise UnknownItemError("the observations of this dataset are vectors, not frames")
        frame_bytes = math.prod(self._dataset.metadata.environment.obs_shape)
        limit = min(MAX_FRAMES_PER_REQUEST, max(1, MAX_FRAME_BYTES_PER_REQUEST // frame_bytes))
        if stop - start > limit:
            raise UnknownItemError(f"at most {limit} frames a request")
        return self._read("obs", offset + start, offset + stop)

    def _rows(self, episode_id: int) -> tuple[int, int]:
        # By id, since positions change when a recorder adds shards.
        try:
            index = self._dataset.index_of(episode_id)
        except UserError as error:
            raise UnknownItemError(f"the dataset has no episode {episode_id}") from error
        offset, length = map(self._dataset.read_episode_field, ("offset", "length"))
        return int(offset[index]), int(length[index])

    def _read(self, name: str, start: int, stop: int) -> NDArray:
        with self._lock:
            values = self._dataset.read_field(name, start, stop)
        if len(values) != stop - start:
            raise UserError(f"{name}: {len(values)} rows found, {stop - start} expected")
        return values


def joined_tables(tables: Mapping[str, Mapping[str, NDArray]]) -> dict[str, NDArray]:
    """Episode tables of several datasets, by name, as arrays called `NAME/COLUMN`."""
    return {
        f"{name}/{column}": values
        for name, table in tables.items()
        for column, values in table.items()
    }


def _kinship(metadata: DatasetMetadata) -> Kinship:
    config, inputs = (metadata.provenance.get(name, {}) for name in ("config", "inputs"))
    return Kinship(
        identity=recording_identity(metadata),
        twin_name=str(config.get("twin_dataset", "")),
        source_hash=str(inputs.get("dataset", "")),
        replayed_identity=str(inputs.get("samples", "")),
    )


def _initialisation_codes(names: NDArray[Any]) -> NDArray[np.uint8]:
    codes = {name: code for code, name in enumerate(INITIALISATIONS)}
    return np.fromiter((codes.get(name, UNKNOWN_CODE) for name in names), np.uint8, len(names))
