"""Builds the page from a chain's results, and writes it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiment.errors import UserError
from experiment.files import atomic_file, require_writable_folder, write_json
from experiment.report import StageReport
from findings.attributions import ATTRIBUTIONS_SECTION, attributions_section
from findings.causes import (
    INTERVENTIONS_SECTION,
    STATEMENTS_SECTION,
    interventions_section,
    statements_section,
)
from findings.chain import ChainFolder, section_or_message
from findings.document import fill_document
from findings.drives import DRIVES_SECTION, drives_section
from findings.encoding import NAME as ENCODING
from findings.encoding import TITLE as ENCODING_TITLE
from findings.encoding import encoding_section
from findings.html import copy_pictures, page_html
from findings.origin import files_section, subject_section
from findings.page import Page
from findings.states import (
    DYNAMICS_SECTION,
    STATES_SECTION,
    dynamics_section,
    states_section,
)
from findings.trust import SALIENCY_SECTION, SIMULATOR_SECTION, saliency_section, simulator_section

TITLE = "What an agent's hidden state encodes, and what causes what"
MAKERS = {
    (ENCODING, ENCODING_TITLE): encoding_section,
    STATEMENTS_SECTION: statements_section,
    INTERVENTIONS_SECTION: interventions_section,
    SIMULATOR_SECTION: simulator_section,
    SALIENCY_SECTION: saliency_section,
    ATTRIBUTIONS_SECTION: attributions_section,
    STATES_SECTION: states_section,
    DYNAMICS_SECTION: dynamics_section,
    DRIVES_SECTION: drives_section,
}
"""What makes each section, by its name and title, in the order of the page."""


@dataclass(frozen=True)
class ReportConfig:
    """Flags of `python -m findings`."""

    results: Path = Path("report/results")
    """Folder that the Snakefile wrote to."""
    output_dir: Path = Path("report")
    """Folder for index.html, its figures, and numbers.json."""
    document: Path | None = None
    """Markdown file whose marked places are filled from the page, e.g. docs/findings.md."""
    images_dir: Path = Path("docs/images")
    """Folder for the small pictures that the document shows."""
    report: Path | None = None
    """JSON file for seconds, outputs and metrics."""


def build_page(results: Path) -> Page:
    """Read everything that the page shows.

    Args:
        results: folder that the Snakefile wrote to. What it lacks is told on the page.

    Raises:
        UserError: there is no such folder, or its files are of different agents or simulators.
    """
    if not results.is_dir():
        raise UserError(f"--results {results}: no such folder; make it with: make report")
    chain = ChainFolder(results)
    sections = [
        section_or_message(make, chain, name, title) for (name, title), make in MAKERS.items()
    ]
    by_path = {source.path: source for section in sections for source in section.sources}
    sources = tuple(by_path.values())
    subject = subject_section(chain, sources)
    return Page(TITLE, (subject, *sections, files_section(sources)))


def write_report(config: ReportConfig, report: StageReport) -> Path:
    """Write index.html, its figures and numbers.json, and fill the document; returns the page.

    Raises:
        UserError: no results, a folder that cannot be written, or a document that asks for what
            the page lacks.
    """
    page = build_page(config.results)
    folder = require_writable_folder(config.output_dir, "--output_dir")
    copy_pictures(page, folder)
    path = folder / "index.html"
    with atomic_file(path) as temporary:
        temporary.write_text(page_html(page), encoding="utf-8")
    write_json(folder / "numbers.json", plain_numbers(page))
    report.outputs += [str(path), str(folder / "numbers.json")]
    if config.document is not None:
        fill_document(page, config.document, config.images_dir)
        report.outputs.append(str(config.document))
    missing = [line for section in page.sections for line in section.missing]
    for line in missing:
        print(f"missing: {line}")
    report.metrics |= {"sections": len(page.sections), "missing": len(missing)}
    return path


def plain_numbers(page: Page) -> dict[str, Any]:
    """All sentences, tables and sources of a page, for other programs."""
    return {
        section.name: {
            "sentences": list(section.sentences),
            "tables": {
                table.name: {"columns": list(table.columns), "rows": [list(r) for r in table.rows]}
                for table in section.tables
            },
            "sources": [asdict(source) for source in section.sources],
            "missing": list(section.missing),
        }
        for section in page.sections
    }
