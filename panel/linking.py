"""Which dataset the rows of a result file belong to, and which datasets belong together."""

from collections.abc import Collection, Iterable, Mapping
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
    identity: str, kinships: Mapping[str, Kinship], datasets: Iterable[dict[str, Any]]
) -> str | None:
    """Id of the simulated dataset of this identity; None when it is not among `datasets`."""
    for entry in datasets:
        if entry["kind"] == "simulated" and kinships[entry["id"]].identity == identity:
            return entry["id"]
    return None


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
    for entry in datasets:
        own = kinships[entry["id"]]
        others = [other for other in datasets if other is not entry]
        beside = (PurePosixPath(entry["label"]).parent / own.twin_name).as_posix()
        entry["relations"] = {
            "twin": [o["id"] for o in others if own.twin_name and o["label"] == beside],
            "intervened": [
                o["id"]
                for o in others
                if (name := kinships[o["id"]].twin_name)
                and (PurePosixPath(o["label"]).parent / name).as_posix() == entry["label"]
            ],
            "reality": [
                o["id"] for o in others if kinships[o["id"]].replayed_identity == own.identity
            ],
            "replayed": [
                o["id"]
                for o in others
                if own.replayed_identity and kinships[o["id"]].identity == own.replayed_identity
            ],
            "source": [o["id"] for o in others if own.source_hash == o["hash"]],
        }
