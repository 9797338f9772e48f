"""Which dataset the rows of a result file belong to."""

from collections.abc import Iterable
from typing import Any


def match_dataset(kind: str, provenance: str, datasets: Iterable[dict[str, Any]]) -> str | None:
    """Id of the dataset that a result was most likely computed from; None without one.

    Args:
        kind: `real` or `simulated`.
        provenance: text that holds the hashes of the result's inputs; a dataset that is named
            in it comes before all others of its kind.
        datasets: descriptions of the datasets there are.
    """
    of_kind = [entry for entry in datasets if entry["kind"] == kind]
    ranked = sorted(of_kind, key=lambda entry: entry["hash"] not in provenance)
    return ranked[0]["id"] if ranked else None
