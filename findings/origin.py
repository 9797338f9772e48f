"""What a report is of, and how each of its files was made."""

from collections.abc import Mapping
from typing import Any

from experiment.errors import UserError
from experiment.files import read_json
from findings.chain import ChainFolder
from findings.page import NOT_KNOWN, Section, Source, Table

SUBJECT_SECTION = ("subject", "What this is of")
FILES_SECTION = ("files", "Where each number comes from")
HASH_DIGITS = 12
ROLES = ("agent", "simulator", "dataset", "generated_dataset")
"""Inputs whose hashes stand for the whole page."""


def subject_section(chain: ChainFolder, sources: tuple[Source, ...]) -> Section:
    """Agent, simulator and data by their hashes, and how long each stage took.

    Raises:
        UserError: results that were made from different agents or simulators.
    """
    name, title = SUBJECT_SECTION
    hashes = common_hashes(sources)
    rows = [(role, digest) for role, digest in hashes.items()]
    tables = [
        Table("hashes", "What the numbers of this page are of.", ("what", "hash"), tuple(rows))
    ]
    stages = chain.summary()
    sentences = []
    if stages:
        tables.append(stage_table(stages))
        total = sum(stage["seconds"] or 0.0 for stage in stages.values())
        sentences.append(f"All stages together took {total / 60:.0f} minutes.")
    card = chain.folder / "agent" / "card.json"
    if card.is_file():
        own = read_json(card)["records"][0]["mean_return"]["mean"]
        sentences.append(f"The agent's mean return on held-out levels is {own:.2f} by its card.")
    return Section(name, title, tuple(sentences), tuple(tables))


def common_hashes(sources: tuple[Source, ...]) -> dict[str, str]:
    """The hash of each role, which must be the same wherever an agent or a simulator is named.

    Raises:
        UserError: two files name different ones.
    """
    found: dict[str, str] = {}
    for source in sources:
        for role in ("agent", "simulator"):
            digest = source.inputs.get(role)
            if digest is None:
                continue
            if found.setdefault(role, digest) != digest:
                raise UserError(
                    f"{source.path}: made with {role} {digest[:HASH_DIGITS]}, other results with "
                    f"{found[role][:HASH_DIGITS]}; make all of them with one: make report"
                )
    return found


def stage_table(stages: Mapping[str, Any]) -> Table:
    """Seconds of every stage."""
    rows = [
        (
            name,
            NOT_KNOWN if stage["seconds"] is None else f"{stage['seconds']:.0f}",
            stage["status"],
        )
        for name, stage in stages.items()
    ]
    return Table("stages", "Seconds of each stage.", ("stage", "seconds", "status"), tuple(rows))


def files_section(sources: tuple[Source, ...]) -> Section:
    """Provenance of every file that was read."""
    name, title = FILES_SECTION
    rows = [
        (
            source.path,
            source.command,
            str(source.seed),
            source.code_version[:HASH_DIGITS]
            + ("+changes" if source.code_version.endswith("+changes") else ""),
            "; ".join(f"{role} {digest[:HASH_DIGITS]}" for role, digest in source.inputs.items()),
            source.created_utc,
        )
        for source in sources
    ]
    columns = ("file", "command", "seed", "code", "inputs", "made (UTC)")
    return Section(name, title, tables=(Table("files", "", columns, tuple(rows)),))
