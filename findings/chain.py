"""Opens the result files of a finished chain; of a missing one it says how it is made."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from analysis.results import read_results
from experiment.errors import UserError
from experiment.files import read_json
from findings.page import Picture, Section, Source, source_of


@dataclass(frozen=True)
class ChainFolder:
    """What a run of the Snakefile left."""

    folder: Path

    def results(self, path: str) -> "tuple[xr.Dataset, Source]":
        """Content of a result file, loaded, and where it comes from.

        Raises:
            UserError: there is none; the line names the command that makes it.
        """
        with read_results(self.folder / path) as file:
            return file.load(), source_of(file, path)

    def pictures(self, captions: dict[str, str]) -> tuple[Picture, ...]:
        """Those of the PNGs that exist, by their path below the folder."""
        found = {path: self.folder / path for path in captions}
        return tuple(Picture(file, captions[p]) for p, file in found.items() if file.is_file())

    def summary(self) -> dict[str, dict]:
        """By stage, what summary.json tells of it; nothing where the chain has not ended."""
        path = self.folder / "summary.json"
        return read_json(path)["stages"] if path.is_file() else {}


def section_or_message(
    make: Callable[[ChainFolder], Section], chain: ChainFolder, name: str, title: str
) -> Section:
    """A section, or in its place the line that says what is missing."""
    try:
        return make(chain)
    except UserError as error:
        return Section(name, title, missing=(str(error),))
