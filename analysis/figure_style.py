"""What all figures share: colours, and how they are saved."""

from pathlib import Path

from matplotlib.figure import Figure

from experiment.files import atomic_file

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


def save_figure(figure: Figure, stem: Path, dpi: int) -> Path:
    """Write PNG and PDF; returns the PNG."""
    picture = stem.with_name(f"{stem.name}.png")
    for suffix in (".png", ".pdf"):
        with atomic_file(stem.with_name(stem.name + suffix)) as path:
            figure.savefig(path, dpi=dpi)
        # The layout found for the PNG serves the PDF; finding it takes as long as drawing.
        figure.set_layout_engine("none")
    return picture
