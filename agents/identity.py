"""The hash that tells agents apart."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from experiment.files import hash_bytes


def hash_weights(shape: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the network's shape and, name by name, its weights.

    Args:
        shape: what the weights alone do not tell; plain values.
        weights: tensors by name, on any device.
    """
    parts = [json.dumps(shape, sort_keys=True).encode()]
    for name, tensor in sorted(weights.items()):
        parts.append(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        parts.append(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hash_bytes(*parts)
