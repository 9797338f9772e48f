"""`python -m panel export SAMPLE... --out DIR`: a page about some samples that needs no server."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiment.command_line import parse_flags
from experiment.errors import UserError
from experiment.files import atomic_folder
from experiment.provenance import collect_provenance
from panel.catalogue import DATASET_FILE, Catalogue, DamagedItemError, item_id
from panel.rollout_source import RolloutSource
from panel.supplement import Sample, write_supplement

DESCRIPTION = (
    "Write a page about some samples that needs no server, for an article's supplement: the player "
    "with frames, traces, components of the hidden state and saliency, from the same files as the "
    "panel. Open index.html in DIR."
)


@dataclass(frozen=True)
class ExportConfig:
    """Flags of `python -m panel export`."""

    samples: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Episodes or samples, each DATASET_DIR:EPISODE such as demo/samples:3, where EPISODE is the
    number that the panel lists. Several episodes of a dataset: demo/samples:0,3,7."""
    out: Path
    """Folder of the page; it must be absent or empty."""
    results: tuple[Path, ...] = ()
    """Folders to look in for what was computed about them (hidden_analysis.nc, saliency.nc), with
    everything below them; by default the folder that each dataset lies in."""
    targets: tuple[str, ...] = ()
    """Targets of saliency to keep, such as value; by default all. Saliency is most of the page."""


@dataclass(frozen=True)
class NamedEpisodes:
    """Episodes of one dataset as the command line names them."""

    folder: Path
    episode_ids: tuple[int, ...]


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and write the page."""
    export(parse_flags(ExportConfig, DESCRIPTION, arguments=arguments))


def export(config: ExportConfig) -> None:
    """Write the page; it appears as a whole.

    Raises:
        UserError: a sample is misspelt or absent or has no frames, a folder does not exist, `out`
            holds something.
    """
    named = merge_named([parse_sample(text) for text in config.samples])
    if not named:
        raise UserError("SAMPLE: none given; name at least one, e.g. demo/samples:3")
    for folder in config.results:
        if not folder.is_dir():
            raise UserError(f"--results: {folder} is no folder")
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UserError(f"--out: {config.out} exists already, an absent or empty folder expected")
    folders = config.results or tuple(dict.fromkeys(item.folder.parent for item in named))
    catalogue = Catalogue([*(item.folder for item in named), *folders])
    samples = find_samples(catalogue, named)
    described = catalogue.describe()
    for damaged in described["errors"]:
        print(f"left out: {damaged['error']}", file=sys.stderr)
    provenance = collect_provenance(config, 0, dataset_hashes(catalogue, named))
    provenance = dataclasses.replace(provenance, command=["-m", "panel", *sys.argv[1:]])
    with atomic_folder(config.out, replace=False) as folder:
        parts = write_supplement(folder, catalogue, described, samples, config.targets, provenance)
    total = sum(part.num_bytes for part in parts) / 1e6
    detail = ", ".join(f"{part.name} {part.num_bytes / 1e6:.1f}" for part in parts)
    print(f"{config.out / 'index.html'}: {len(samples)} rollouts, {total:.1f} MB ({detail})")


def parse_sample(text: str) -> NamedEpisodes:
    """Understand DATASET_DIR:EPISODE[,EPISODE...]; raises `UserError` for anything else."""
    folder, _, episodes = text.rpartition(":")
    if not folder or not re.fullmatch(r"\d+(,\d+)*", episodes, re.ASCII):
        raise UserError(
            f"SAMPLE: {text!r} found, DATASET_DIR:EPISODE expected, e.g. demo/samples:3"
        )
    if not (Path(folder) / DATASET_FILE).is_file():
        raise UserError(
            f"SAMPLE: {folder} holds no {DATASET_FILE}; the folder of a dataset expected"
        )
    return NamedEpisodes(Path(folder), tuple(int(episode) for episode in episodes.split(",")))


def merge_named(named: Sequence[NamedEpisodes]) -> list[NamedEpisodes]:
    """Each dataset once, each of its episodes once."""
    episodes: dict[Path, dict[int, None]] = {}
    for item in named:
        place = next((known for known in episodes if known.samefile(item.folder)), item.folder)
        episodes.setdefault(place, {}).update(dict.fromkeys(item.episode_ids))
    return [NamedEpisodes(folder, tuple(ids)) for folder, ids in episodes.items()]


def find_samples(catalogue: Catalogue, named: Sequence[NamedEpisodes]) -> list[Sample]:
    """The named episodes in the catalogue; raises `UserError` for those that do not exist."""
    samples = []
    for item in named:
        dataset_id = item_id(item.folder / DATASET_FILE)
        source = _open(catalogue, item.folder)
        if not source.shows_images:
            raise UserError(f"SAMPLE: the observations of {item.folder} are vectors, not frames")
        known = source.episode_table()["episode_id"].tolist()
        if absent := [episode for episode in item.episode_ids if episode not in known]:
            span = f"{min(known)} to {max(known)}" if known else "none"
            raise UserError(
                f"SAMPLE: {item.folder} has no episode {absent[0]}; it has {len(known)}, {span}"
            )
        samples += [Sample(dataset_id, episode) for episode in item.episode_ids]
    return samples


def dataset_hashes(catalogue: Catalogue, named: Sequence[NamedEpisodes]) -> dict[str, str]:
    """Hash of each dataset, by its folder."""
    return {str(item.folder): _open(catalogue, item.folder).content_hash for item in named}


def _open(catalogue: Catalogue, folder: Path) -> RolloutSource:
    try:
        return catalogue.open_as(item_id(folder / DATASET_FILE), RolloutSource)
    except DamagedItemError as error:
        raise UserError(f"SAMPLE: {error}") from error
