"""`dataset.json`, which describes a whole dataset: created once by whoever comes first."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

from experiment.errors import UserError
from experiment.files import read_json
from rollouts.schema import DatasetMetadata, find_difference
from rollouts.sealing import claim_of, publish, storage_error, write_synced

METADATA_FILE = "dataset.json"

_SECONDS_TO_WAIT_FOR_DESCRIPTION = 5.0


def create_or_check_metadata(path: Path, metadata: DatasetMetadata) -> None:
    """Create `dataset.json` whole and exclusively; where it exists, compare it instead."""
    # Containers of a cluster may well agree in host name and process id.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write_synced(temporary, (json.dumps(metadata.to_dict(), indent=2) + "\n").encode())
        publish(temporary, path)
    except FileExistsError:
        _await_description(path)
        existing = read_metadata(path.parent)
        difference = find_difference(existing.identity, metadata.identity)
        if difference is not None:
            raise UserError(
                f"{path}: the existing dataset differs in `{difference}`: found "
                f"{_look_up(existing.identity, difference)!r}, expected "
                f"{_look_up(metadata.identity, difference)!r}"
            ) from None
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _await_description(path: Path) -> None:
    """On a disk without hard links, another writer may be about to name the file."""
    deadline = time.monotonic() + _SECONDS_TO_WAIT_FOR_DESCRIPTION
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{path}: a writer began to create it and did not finish; remove {claim_of(path)} "
                "if none is at work"
            )
        time.sleep(0.05)


def _look_up(values: Any, dotted_key: str) -> Any:
    for name in dotted_key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def read_metadata(folder: Path | str) -> DatasetMetadata:
    """Read `dataset.json`.

    Raises:
        UserError: there is none, it is malformed, or its schema version is unknown.
    """
    path = Path(folder) / METADATA_FILE
    if not path.is_file():
        raise UserError(f"{folder}: not a rollout dataset (it has no {METADATA_FILE})")
    return DatasetMetadata.from_dict(read_json(path), path)
