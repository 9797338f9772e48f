"""Fills the marked places of a Markdown document with what the page says.

Between `<!-- report: KIND NAME -->` and `<!-- end -->` stands what a report put there, and the next
report replaces it: the rows of a table (`table NAME`; `table NAME 5` for the first five), the
sentences of a section (`sentences NAME`), all its tables with their captions (`tables NAME`), or a
figure (`figure FOLDER_FILE.png`), of which a small
copy is kept. Everything else is prose and stays.
"""

import os
import re
from pathlib import Path

from PIL import Image

from experiment.errors import UserError
from experiment.files import atomic_file
from findings.html import figure_name
from findings.page import Page, Picture

MARK = re.compile(r"<!-- report: (\w+) (\S+)(?: (\d+))? -->\n.*?<!-- end -->", re.DOTALL)
IMAGE_PREFIX = "findings_"
IMAGE_WIDTH = 1100
"""Pixels: legible on a page, small in a repository."""


def fill_document(page: Page, path: Path, images_dir: Path) -> None:
    """Replace what stands in the marked places of the document at `path`.

    Raises:
        UserError: no such document, or a mark that asks for what the page lacks.
    """
    if not path.is_file():
        raise UserError(f"--document {path}: no such file")
    pictures = {figure_name(p): p for section in page.sections for p in section.pictures}

    def fill(mark: re.Match[str]) -> str:
        kind, name, count = mark.groups()
        if kind == "figure":
            content = _figure(pictures.get(name), name, path, images_dir)
        else:
            content = _text(page, kind, name, None if count is None else int(count), path)
        opening = mark.group(0).splitlines()[0]
        return f"{opening}\n{content}\n<!-- end -->"

    filled = MARK.sub(fill, path.read_text(encoding="utf-8"))
    with atomic_file(path) as temporary:
        temporary.write_text(filled, encoding="utf-8")


def _text(page: Page, kind: str, name: str, count: int | None, path: Path) -> str:
    table, section = page.table(name), page.section(name)
    if kind == "table" and table is not None:
        return markdown_table(table.columns, table.rows[:count])
    if kind == "sentences" and section is not None and section.sentences:
        return "\n".join(f"- {sentence}" for sentence in section.sentences)
    if kind == "tables" and section is not None and section.tables:
        return "\n\n".join(
            f"{table.caption}\n\n{markdown_table(table.columns, table.rows)}"
            for table in section.tables
        )
    raise UserError(f"{path}: asks for {kind} {name!r}, which the page lacks")


def markdown_table(columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    """Rows as Markdown."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _figure(picture: Picture | None, name: str, document: Path, images_dir: Path) -> str:
    if picture is None:
        raise UserError(f"{document}: asks for figure {name!r}, which the page lacks")
    copy = images_dir / f"{IMAGE_PREFIX}{name}"
    shrink(picture.path, copy)
    relative = os.path.relpath(copy.resolve(), document.resolve().parent)
    return f"![{picture.caption}]({Path(relative).as_posix()})"


def shrink(source: Path, destination: Path) -> None:
    """Write a PNG at most IMAGE_WIDTH pixels across; its colours stay, as scales rest on them."""
    with Image.open(source) as image:
        width = min(IMAGE_WIDTH, image.width)
        size = (width, round(image.height * width / image.width))
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        with atomic_file(destination) as path:
            small.save(path, optimize=True)
