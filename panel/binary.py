"""How arrays travel to the page: one small container, little-endian, aligned to 8 bytes.

Layout: the four bytes `DSA1`, the length of the header as uint32, the header as UTF-8 JSON (a list
of `{"name", "dtype", "shape", "offset"}`, offsets counted from the first byte after the padded
header), zero bytes up to a multiple of 8, then the arrays, each of which starts at a multiple of 8.
"""

import json
import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

MAGIC = b"DSA1"
MEDIA_TYPE = "application/x-dreamscope-arrays"
ALIGNMENT = 8
WIRE_TYPES = {"uint8": "u1", "int32": "<i4", "float32": "<f4", "float64": "<f8"}
"""Element types that the page can view in place as a typed array."""


def wire_array(values: NDArray) -> NDArray:
    """Convert `values` to the wire type that holds it: booleans and bytes as uint8, integers as
    int32, or float64 where they need it, floats as float32."""
    values = np.asarray(values)
    if values.dtype.kind == "b" or values.dtype == np.uint8:
        return np.ascontiguousarray(values, dtype="u1")
    if values.dtype.kind in "iu":
        limits = np.iinfo(np.int32)
        fits = values.size == 0 or (values.min() >= limits.min and values.max() <= limits.max)
        return np.ascontiguousarray(values, dtype="<i4" if fits else "<f8")
    return np.ascontiguousarray(values, dtype="<f4")


def encode_arrays(arrays: Mapping[str, NDArray]) -> bytes:
    """Pack named arrays into one container; each is converted by `wire_array`."""
    converted = {name: wire_array(values) for name, values in arrays.items()}
    header, offset = [], 0
    for name, values in converted.items():
        header.append(
            {
                "name": name,
                "dtype": values.dtype.name,
                "shape": list(values.shape),
                "offset": offset,
            }
        )
        offset += _padded(values.nbytes)
    text = json.dumps(header).encode()
    start = _padded(len(MAGIC) + 4 + len(text))
    parts = [(MAGIC + struct.pack("<I", len(text)) + text).ljust(start, b"\0")]
    for values in converted.values():
        # The array itself and no copy: frames of many readers are held at once.
        parts += [values.data, bytes(_padded(values.nbytes) - values.nbytes)]
    return b"".join(parts)


def decode_arrays(content: bytes) -> dict[str, NDArray]:
    """Unpack a container; the inverse of `encode_arrays` up to `wire_array`.

    Raises:
        ValueError: `content` is not such a container.
    """
    if content[:4] != MAGIC:
        raise ValueError(f"not a container of arrays: it begins with {content[:4]!r}")
    (length,) = struct.unpack_from("<I", content, 4)
    start = _padded(8 + length)
    arrays = {}
    for entry in json.loads(content[8 : 8 + length]):
        dtype = np.dtype(WIRE_TYPES[entry["dtype"]])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        flat = np.frombuffer(content, dtype, count, start + entry["offset"])
        arrays[entry["name"]] = flat.reshape(entry["shape"])
    return arrays


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
