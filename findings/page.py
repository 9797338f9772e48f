"""What a report consists of: sections of sentences, tables and pictures, each with its sources."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

NOT_KNOWN = "–"


@dataclass(frozen=True)
class Source:
    """A result file that numbers were read from, and where it came from."""

    path: str
    """Below the folder of results."""
    command: str
    seed: int
    code_version: str
    created_utc: str
    inputs: dict[str, str]
    """Hash of every input artefact, by role."""


@dataclass(frozen=True)
class Table:
    """Numbers as text, as the page shows them."""

    name: str
    """Unique on the page; documents name it to have it inserted."""
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A figure that a stage drew."""

    path: Path
    """PNG in the folder of results."""
    caption: str


@dataclass(frozen=True)
class Section:
    """One question and what the results say to it."""

    name: str
    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    sources: tuple[Source, ...] = ()
    missing: tuple[str, ...] = ()
    """What could not be read, and how it is made."""


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    sections: tuple[Section, ...]

    def table(self, name: str) -> Table | None:
        """The table of that name."""
        tables = (table for section in self.sections for table in section.tables)
        return next((table for table in tables if table.name == name), None)

    def section(self, name: str) -> Section | None:
        """The section of that name."""
        return next((section for section in self.sections if section.name == name), None)


def source_of(results: xr.Dataset, path: str) -> Source:
    """Where an open result file comes from.

    Args:
        results: as `analysis.results.read_results` opens it.
        path: below the folder of results.
    """
    provenance: dict[str, Any] = json.loads(results.attrs["provenance"])
    return Source(
        path=path,
        command="python " + " ".join(provenance["command"]),
        seed=int(provenance["seed"]),
        code_version=provenance["code_version"],
        created_utc=provenance["created_utc"],
        inputs=dict(provenance["inputs"]),
    )


def number(value: float, digits: int = 2) -> str:
    """A number with so many decimals, or a dash where there is none; the minus is a real one."""
    if value != value:
        return NOT_KNOWN
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """The same with its sign."""
    if value != value:
        return NOT_KNOWN
    return f"{value:+.{digits}f}".replace("-", "−")


def with_bounds(value: float, low: float, high: float, digits: int = 2) -> str:
    """`value [low, high]`, or the value alone where its bounds are not known."""
    if low != low:
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def probability(value: float) -> str:
    """A p-value or q-value."""
    if value != value:
        return NOT_KNOWN
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def share(part: int, whole: int) -> str:
    """`part of whole (percent)`."""
    return f"{part} of {whole}" + (f" ({part / whole:.0%})" if whole else "")
