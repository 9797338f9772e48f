"""The page as HTML that needs no network, beside a folder of its figures."""

import shutil
from html import escape
from pathlib import Path

from experiment.files import atomic_folder
from findings.page import Page, Picture, Section, Table

FIGURES = "figures"
STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --paper: #ffffff; --faint: #5c6370;
  --line: #d6d9de; --band: #f4f5f7; --warning: #8a4b00; --link: #0b5fa5; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6ea; --paper: #16181c; --faint: #a3a9b4; --line: #3a3f47; --band: #20242a;
    --warning: #ffb454; --link: #7cc0ff; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; color: var(--text);
  background: var(--paper); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.3rem; margin-top: 2.6rem; }
a { color: var(--link); } nav a { margin-right: 1.1rem; white-space: nowrap; }
p { max-width: 56rem; } .missing { color: var(--warning); font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: 0.4rem 0 1.6rem;
  min-width: 28rem; font-size: 0.84rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: 0.4rem; max-width: 56rem; }
th, td { text-align: left; vertical-align: top; padding: 0.28rem 0.7rem 0.28rem 0;
  border-bottom: 1px solid var(--line); min-width: 3.8rem; }
#table-files td { overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid var(--line); }
tbody tr:nth-child(even) { background: var(--band); }
figure { margin: 1.4rem 0; } figcaption { color: var(--faint); font-size: 0.9rem; }
figure img { max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 4px; padding: 0.4rem; box-sizing: border-box; }
"""


def page_html(page: Page) -> str:
    """The whole page; figures are looked for in `figures/` beside it."""
    links = " ".join(
        f'<a href="#{escape(section.name)}">{escape(section.title)}</a>'
        for section in page.sections
    )
    sections = "\n".join(_section(section) for section in page.sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(page.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(page.title)}</h1>\n<nav>{links}</nav>\n{sections}\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f'<section id="{escape(section.name)}">', f"<h2>{escape(section.title)}</h2>"]
    parts += [f'<p class="missing">Not made: {escape(line)}</p>' for line in section.missing]
    parts += [f"<p>{escape(sentence)}</p>" for sentence in section.sentences]
    parts += [_table(table) for table in section.tables]
    parts += [_figure(picture) for picture in section.pictures]
    if section.sources:
        files = ", ".join(escape(source.path) for source in section.sources)
        parts.append(
            f'<p><small>Read from {files}; <a href="#files">how they were made</a>.</small></p>'
        )
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f'<div class="scroll"><table id="table-{escape(table.name)}">\n'
        f"<caption>{escape(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _figure(picture: Picture) -> str:
    caption, address = escape(picture.caption), escape(f"{FIGURES}/{figure_name(picture)}")
    return (
        f'<figure><img src="{address}" alt="{caption}" loading="lazy">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def figure_name(picture: Picture) -> str:
    """The file of a picture beside the page: the folder that it is from is part of its name."""
    return f"{picture.path.parent.name}_{picture.path.name}"


def copy_pictures(page: Page, folder: Path) -> None:
    """Copy all figures of the page to `folder/figures`, which is replaced as a whole."""
    with atomic_folder(folder / FIGURES) as figures:
        for section in page.sections:
            for picture in section.pictures:
                shutil.copyfile(picture.path, figures / figure_name(picture))
