"""What there is to see below the given folders, and the opaque ids it is served under."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

from analysis.results import (
    BEHAVIOUR_NAME,
    CONSISTENCY_NAME,
    CROSS_NAME,
    INTERVENTION_EFFECTS_NAME,
    JACOBIAN_NAME,
    PROBE_ANALYSIS_NAME,
    SALIENCY_NAME,
    SAMPLE_TRUST_NAME,
)
from experiment.errors import UserError
from experiment.files import hash_file
from panel.analysis_source import AnalysisSource
from panel.behaviour_source import BehaviourSource
from panel.card_source import CardSource
from panel.consistency_source import ConsistencySource
from panel.cross_source import CrossSource
from panel.effects_source import EffectsSource
from panel.fidelity_source import FidelitySource
from panel.fingerprint import fingerprint
from panel.jacobian_source import JacobianSource
from panel.linking import find_recordings, link_datasets, match_dataset, match_samples
from panel.point_tables import POINT_KINDS
from panel.probe_source import ProbeSource
from panel.rollout_source import RolloutSource, UnknownItemError
from panel.saliency_source import SaliencySource
from panel.training_source import TrainingSource
from panel.trust_source import TrustSource
from rollouts.hdf5_safety import SHARD_SUFFIX, harmless_files

DATASET_FILE = "dataset.json"
FIDELITY_FILE = "simulator_fidelity.nc"
TRAINING_FILES = ("log.csv", "curve.csv")
CARD_FILES = ("agent.json", "simulator.json", "card.json")
MAX_HASHED_BYTES = 64 * 2**20
"""Larger files are not read for their hash when someone asks where they come from."""
HDF5_SUFFIXES = (SHARD_SUFFIX, ".nc")
READ_ERRORS = (
    UserError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)
"""What reading a damaged or hostile file can raise, from JSON, HDF5 and the arrays within."""


class Source(Protocol):
    """One opened item."""

    content_hash: str
    """Changes whenever the content does."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What the item says of its making."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values for the catalogue."""
        ...


SourceType = TypeVar("SourceType", bound=Source)

OPENERS: dict[str, Callable[[Path], Source]] = {
    DATASET_FILE: lambda path: RolloutSource(path.parent),
    **dict.fromkeys(POINT_KINDS, AnalysisSource),
    BEHAVIOUR_NAME: BehaviourSource,
    JACOBIAN_NAME: JacobianSource,
    CROSS_NAME: CrossSource,
    CONSISTENCY_NAME: ConsistencySource,
    INTERVENTION_EFFECTS_NAME: EffectsSource,
    PROBE_ANALYSIS_NAME: ProbeSource,
    SALIENCY_NAME: SaliencySource,
    SAMPLE_TRUST_NAME: TrustSource,
    FIDELITY_FILE: FidelitySource,
    **dict.fromkeys(TRAINING_FILES, TrainingSource),
    **dict.fromkeys(CARD_FILES, CardSource),
}
KINDS = {
    "datasets": (DATASET_FILE,),
    "analyses": tuple(POINT_KINDS),
    "behaviours": (BEHAVIOUR_NAME,),
    "jacobians": (JACOBIAN_NAME,),
    "cross": (CROSS_NAME,),
    "consistency": (CONSISTENCY_NAME,),
    "effects": (INTERVENTION_EFFECTS_NAME,),
    "probes": (PROBE_ANALYSIS_NAME,),
    "saliency": (SALIENCY_NAME,),
    "trust": (SAMPLE_TRUST_NAME,),
    "fidelity": (FIDELITY_FILE,),
    "training": TRAINING_FILES,
    "cards": CARD_FILES,
}
"""Lists of the catalogue, and the names of the files they are made of; a file can be in two."""
WORKING_FOLDER, REPORT_FOLDER = "runs", "reports"
"""Of a chain, beside the outputs of its stages; see the `Snakefile`."""


class DamagedItemError(Exception):
    """A file that exists cannot be read; the message says which and why."""


@dataclass(frozen=True)
class Item:
    """One file or dataset that was found."""

    id: str
    """Opaque: says nothing of the path, stays the same as long as the path does."""
    path: Path
    label: str
    """Where it lies, told from the folder that was given on the command line."""


@dataclass(frozen=True)
class ItemCounts:
    """How much was found."""

    datasets: int
    results: int
    opened: int
    """Of both, those that have been read already."""


@dataclass
class _Opened:
    fingerprint: str
    source: Source
    _description: dict[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        """The source's own description, made once."""
        if self._description is None:
            self._description = self.source.describe()
        return self._description


class Catalogue:
    """Finds items below some folders and opens them when they are asked for.

    `describe` looks again, so that a reload of the page shows what was made meanwhile; an item
    whose files have not changed stays open, and what was read to describe it is not read again.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._lock = threading.Lock()
        self._items: dict[str, Item] = {}
        self._opened: dict[str, _Opened] = {}
        self._find_items()

    def describe(self) -> dict[str, Any]:
        """Everything that was found, as plain values; unreadable items come with their error."""
        self._find_items()
        described: dict[str, list[dict[str, Any]]] = {name: [] for name in OPENERS}
        sources: dict[str, Source] = {}
        errors: list[dict[str, str]] = []
        for item in list(self._items.values()):
            try:
                opened = self._open(item.id)
                content = opened.describe()
            except DamagedItemError as error:
                errors.append({"label": item.label, "error": str(error)})
                continue
            except READ_ERRORS as error:
                errors.append({"label": item.label, "error": describe_damage(item, error)})
                continue
            sources[item.id] = opened.source
            described[item.path.name].append({"id": item.id, "label": item.label, **content})
        _link(described, sources)
        kinds = {
            kind: [entry for name in names for entry in described[name]]
            for kind, names in KINDS.items()
        }
        return {
            **kinds,
            "errors": errors,
            "folders": [folder.name or str(folder) for folder in self.folders],
        }

    def open_as(self, item_id: str, source_type: type[SourceType]) -> SourceType:
        """Open an item of a known type.

        Raises:
            UnknownItemError: no item of that type has this id.
            DamagedItemError: it cannot be read.
        """
        source = self.open(item_id)
        if not isinstance(source, source_type):
            raise UnknownItemError("no item of this kind has that id")
        return source

    def open(self, item_id: str) -> Source:
        """Open an item by id; raises as `open_as`."""
        return self._open(item_id).source

    def _open(self, item_id: str) -> _Opened:
        item = self._items.get(item_id)
        if item is None:
            raise UnknownItemError("nothing has that id; reload the page to see what there is now")
        with self._lock:
            opened = self._opened.get(item_id)
            try:
                current = fingerprint(*_files_of(item.path))
                if opened is None or opened.fingerprint != current:
                    opened = _Opened(current, _open_item(item.path))
            except READ_ERRORS as error:
                raise DamagedItemError(describe_damage(item, error)) from error
            self._opened[item_id] = opened
            return opened

    def provenance(self, item_id: str) -> dict[str, Any]:
        """Where an item comes from, with the hash of its own content where that is cheap.

        Raises:
            UnknownItemError: nothing has this id.
            DamagedItemError: it cannot be read.
        """
        source, item = self.open(item_id), self.item(item_id)
        try:
            is_small = item.path.stat().st_size <= MAX_HASHED_BYTES
            own = source.content_hash if isinstance(source, RolloutSource) else None
            if own is None and is_small:
                own = hash_file(item.path)
            provenance = source.provenance
            json.dumps(provenance, allow_nan=False)
            return {"hash": own, "provenance": provenance}
        except READ_ERRORS as error:
            raise DamagedItemError(describe_damage(item, error)) from error

    def count(self) -> ItemCounts:
        """How many items there are, readable or not."""
        # Without the lock, which is held as long as a file is being opened.
        items, opened = self._items, self._opened.copy()
        datasets = sum(item.path.name == DATASET_FILE for item in items.values())
        return ItemCounts(datasets, len(items) - datasets, len(items.keys() & opened.keys()))

    def opened_datasets(self) -> list[str]:
        """Ids of all rollout datasets in the order of the description, if all found are opened.

        Looks at no file: empty while they are being read, out of date until the next description.
        """
        opened = self._opened.copy()
        ids = [item.id for item in self._items.values() if item.path.name == DATASET_FILE]
        return ids if all(item_id in opened for item_id in ids) else []

    def item(self, item_id: str) -> Item:
        """The item of an id that was opened before."""
        return self._items[item_id]

    def _find_items(self) -> None:
        found = [item for folder in self.folders for item in _items_below(folder)]
        self._items = {item.id: item for item in found}


def _link(described: dict[str, list[dict[str, Any]]], sources: Mapping[str, Source]) -> None:
    """Add to the descriptions what belongs together; looks at no file, which may be gone by now."""

    def opened(name: str, source_type: type[SourceType]) -> list[tuple[dict, SourceType]]:
        pairs = ((entry, sources[entry["id"]]) for entry in described[name])
        return [(entry, source) for entry, source in pairs if isinstance(source, source_type)]

    datasets = described[DATASET_FILE]
    kinships = {
        entry["id"]: source.kinship for entry, source in opened(DATASET_FILE, RolloutSource)
    }
    link_datasets(datasets, kinships)
    for entry, source in chain.from_iterable(opened(name, AnalysisSource) for name in POINT_KINDS):
        entry["source_datasets"] = {
            name: match_dataset(
                "real" if name == "real" else "simulated", source.hashes_of(name), datasets
            )
            for name in entry["source_names"]
        }
    for entry, source in opened(SALIENCY_NAME, SaliencySource):
        entry["dataset"] = match_dataset("simulated", source.hash_of_input.values(), datasets)
    described[SALIENCY_NAME].sort(key=_is_beside_the_default)
    for entry, source in opened(SAMPLE_TRUST_NAME, TrustSource):
        entry["dataset"] = match_samples(
            source.samples_identity, entry["num_samples"], kinships, datasets
        )
    for entry in described[INTERVENTION_EFFECTS_NAME]:
        entry["recordings"] = find_recordings(entry, datasets)


def _is_beside_the_default(saliency: dict[str, Any]) -> tuple[bool, bool]:
    """Sorts saliency as `saliency_experiments.py` computes it by default before other methods.

    By default gradients are plain, and passed on by the environment. Readers take the first file.
    """
    is_integrated = bool(saliency["baselines"]) or saliency["has_integrated_latents"]
    return is_integrated, "passed" not in saliency["environment_gradients"]


def describe_damage(item: Item, error: BaseException) -> str:
    """One line that says which item cannot be read and why, without telling where it lies."""
    reason = " ".join(str(error).split()) or type(error).__name__
    for path in (item.path, item.path.parent):
        reason = reason.replace(str(path), path.name)
    return f"{item.label} cannot be read: {reason[:300]}"


def _items_below(folder: Path) -> list[Item]:
    items = []
    for name, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if found := [file for file in OPENERS if file in files]:
            parent = Path(name)
            # Of a training the log is nowhere else.
            kept = TRAINING_FILES if _is_left_over(parent.relative_to(folder), folder) else found
            items += [_item(parent / file, folder) for file in found if file in kept]
    return items


def _is_left_over(inside: Path, folder: Path) -> bool:
    """Whether this place below `folder` is the working folder of a finished stage of a chain.

    Its results lie beside it as the stage's output, where it has moved or copied them.
    """
    if WORKING_FOLDER not in inside.parts[:-1]:
        return False
    position = inside.parts.index(WORKING_FOLDER)
    stage = inside.parts[position + 1].partition("-")[0]
    chain = folder.joinpath(*inside.parts[:position])
    return (chain / REPORT_FOLDER / f"{stage}.json").is_file()


def _item(path: Path, folder: Path) -> Item:
    place = path.parent if path.name == DATASET_FILE else path
    inside = place.relative_to(folder)
    label = Path(folder.resolve().name, inside).as_posix()
    return Item(item_id(path), path, label)


def item_id(path: Path) -> str:
    """The opaque id of a result file, or of a dataset by its `dataset.json`."""
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]


def _open_item(path: Path) -> Source:
    with harmless_files(file for file in _files_of(path) if file.suffix in HDF5_SUFFIXES):
        return OPENERS[path.name](path)


def _files_of(path: Path) -> list[Path]:
    shards = sorted(path.parent.glob("shard-*.h5")) if path.name == DATASET_FILE else []
    return [path, *shards]
