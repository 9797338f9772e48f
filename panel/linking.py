"""Which dataset the rows of a result file belong to."""

from collections.abc import Collection, Iterable
from typing import Any


def match_dataset(
    kind: str, input_hashes: Collection[str], datasets: Iterable[dict[str, Any]]
) -> str | None:
    """Id of the dataset that a result was computed from; None when it is not among `datasets`.

    Another dataset never stands in for it: its episodes have the same ids and are not the same.

    Args:
        kind: `real` or `simulated`.
        input_hashes: hashes of the result's inputs.
        datasets: descriptions of the datasets there are.
    """
    for entry in datasets:
        if entry["kind"] == kind and entry["hash"] in input_hashes:
            return entry["id"]
    return None
