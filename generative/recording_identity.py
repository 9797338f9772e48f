"""What decides the samples of a recording, as one hash; needs nothing of the simulator itself."""

import json

from experiment.files import hash_bytes
from rollouts.schema import DatasetMetadata

FREE_SETTINGS = ("max_samples", "batch_size", "twin_dataset")
"""Settings that do not change what sample i is."""


def recording_identity(metadata: DatasetMetadata) -> str:
    """Hash of everything that decides what sample i of a recording is.

    The same for a recording and for the larger one that continues it.
    """
    config, inputs = (metadata.provenance.get(name, {}) for name in ("config", "inputs"))
    settings = {name: value for name, value in config.items() if name not in FREE_SETTINGS}
    return hash_bytes(json.dumps([settings, inputs], sort_keys=True).encode())
