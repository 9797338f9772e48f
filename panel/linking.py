"""Which dataset the rows of a result file belong to, and which datasets belong together."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from panel.rollout_source import Kinship


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


def match_samples(
    identity: str,
    num_samples: int,
    kinships: Mapping[str, Kinship],
    datasets: Iterable[dict[str, Any]],
) -> str | None:
    """Id of the simulated dataset of this identity; None when it is not among `datasets`.

    A recording and a shorter one, such as the twin of an intervention, share their identity: the
    one of `num_samples` episodes is meant, or else the longest.
    """
    fitting = [
        entry
        for entry in datasets
        if entry["kind"] == "simulated" and kinships[entry["id"]].identity == identity
    ]
    lengths = {entry["id"]: entry["num_episodes"] for entry in fitting}
    return max(lengths, key=lambda id_: (lengths[id_] == num_samples, lengths[id_]), default=None)


def find_recordings(
    effects: Mapping[str, Any], datasets: Iterable[dict[str, Any]]
) -> dict[str, dict[str, str]]:
    """Ids of the recordings that lie beside a file of effects, by world and variant.

    Args:
        effects: its description, with `label`, `worlds`, `variants` and the name of the `twin`.
        datasets: descriptions of the datasets there are.
    """
    folder = PurePosixPath(effects["label"]).parent
    id_of = {entry["label"]: entry["id"] for entry in datasets}
    variants = (effects["twin"], *effects["variants"])
    return {
        world: {
            variant: found
            for variant in variants
            if (found := id_of.get((folder / world / variant).as_posix()))
        }
        for world in effects["worlds"]
    }


def link_datasets(datasets: Iterable[dict[str, Any]], kinships: Mapping[str, Kinship]) -> None:
    """Add to each description `relations`: ids of the datasets that share its episode ids or rows.

    `twin` is the recording without the intervention, `intervened` those that have this one as
    their twin, `reality` the same samples let happen in the real environment, `replayed` the
    samples of which this is the reality, `source` the real rollouts that its episodes begin in.

    Args:
        datasets: descriptions with `id`, `label`, `hash`.
        kinships: by id.
    """
    datasets = list(datasets)
    kinship_of = {entry["id"]: kinships[entry["id"]] for entry in datasets}
    twin_of = {entry["id"]: _twin_label(entry, kinship_of[entry["id"]]) for entry in datasets}
    by_label = _ids_by(datasets, lambda entry: entry["label"])
    by_twin = _ids_by(datasets, lambda entry: twin_of[entry["id"]])
    by_identity = _ids_by(datasets, lambda entry: kinship_of[entry["id"]].identity)
    by_replayed = _ids_by(datasets, lambda entry: kinship_of[entry["id"]].replayed_identity)
    by_hash = _ids_by(datasets, lambda entry: entry["hash"])
    for entry in datasets:
        own = kinship_of[entry["id"]]
        found = {
            "twin": by_label.get(twin_of[entry["id"]], []),
            "intervened": by_twin.get(entry["label"], []),
            "reality": by_replayed.get(own.identity, []),
            "replayed": by_identity.get(own.replayed_identity, []),
            "source": by_hash.get(own.source_hash, []),
        }
        entry["relations"] = {
            kind: [other for other in ids if other != entry["id"]] for kind, ids in found.items()
        }


def _twin_label(entry: dict[str, Any], kinship: Kinship) -> str:
    """Label of the recording without the intervention, which lies beside; empty for none."""
    if not kinship.twin_name:
        return ""
    return (PurePosixPath(entry["label"]).parent / kinship.twin_name).as_posix()


def _ids_by(
    datasets: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], str]
) -> dict[str, list[str]]:
    """Ids of the datasets by a key; those whose key is empty are left out."""
    found: dict[str, list[str]] = {}
    for entry in datasets:
        if name := key(entry):
            found.setdefault(name, []).append(entry["id"])
    return found
