"""What all figures share: colours, text, and how they are saved."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiment.files import atomic_file
from experiment.report import StageReport

OKABE_ITO = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#000000",
)
"""Colours that colour-blind readers can tell apart (Okabe and Ito, 2008)."""


def figure_text(title_size: float = 9) -> AbstractContextManager[None]:
    """While it is open, figures have small text, kept as text, so that PDFs can be searched."""
    return mpl.rc_context({"font.size": 8, "axes.titlesize": title_size, "pdf.fonttype": 42})


def save_figures(
    figures: Iterable[tuple[str, Figure]],
    folder: Path,
    dpi: int,
    report: StageReport,
    columns: int = 3,
) -> list[Path]:
    """Write figures by name, each as PNG and PDF, and a contact sheet of all, and report them.

    Returns:
        The PNGs, without the contact sheet.
    """
    pictures = [save_figure(figure, folder / name, dpi) for name, figure in figures]
    sheet = folder / "contact_sheet.png"
    with atomic_file(sheet) as path:
        contact_sheet(pictures, min(columns, len(pictures))).save(path)
    report.outputs.append(str(folder))
    report.metrics["figures"] = len(pictures)
    return pictures


def save_figure(figure: Figure, stem: Path, dpi: int) -> Path:
    """Write PNG and PDF; returns the PNG."""
    picture = stem.with_name(f"{stem.name}.png")
    for suffix in (".png", ".pdf"):
        with atomic_file(stem.with_name(stem.name + suffix)) as path:
            figure.savefig(path, dpi=dpi)
        # The layout found for the PNG serves the PDF; finding it takes as long as drawing.
        figure.set_layout_engine("none")
    return picture


def contact_sheet(pictures: Sequence[Path], columns: int = 3, width: int = 640) -> Image.Image:
    """All pictures on one sheet, scaled to one width."""
    thumbnails = []
    for path in pictures:
        with Image.open(path) as picture:
            height = round(picture.height * width / picture.width)
            thumbnails.append(picture.convert("RGB").resize((width, height)))
    rows = [thumbnails[i : i + columns] for i in range(0, len(thumbnails), columns)]
    heights = [max(thumbnail.height for thumbnail in row) for row in rows]
    sheet = Image.new("RGB", (columns * width, sum(heights)), "white")
    for row, top in zip(rows, np.cumsum([0, *heights[:-1]]).tolist(), strict=True):
        for column, thumbnail in enumerate(row):
            sheet.paste(thumbnail, (column * width, top))
    return sheet
