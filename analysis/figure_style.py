"""What all figures share: colours, text, and how they are saved."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from experiment.files import atomic_file
from experiment.report import StageReport

PANEL_TITLE_LETTERS = 45
"""Letters in a line of the title of a panel, of which three stand side by side."""
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
GOLDEN_RATIO = 0.618034
"""Hues that are multiples of it apart stay well spaced however many there are."""


def spaced_hues(indices: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N,) numbers of categories → (N, 3) RGB of well spaced hues at alternating lightness."""
    hues = (indices * GOLDEN_RATIO) % 1.0
    lightness = np.where(indices % 2, 0.95, 0.65)
    return hsv_to_rgb(np.stack([hues, np.full(len(indices), 0.75), lightness], axis=1))


def behaviour_colour(behaviour: int) -> str:
    """The colour of a behaviour cluster: the same in every figure, whichever others it shows.

    Black is left for all behaviours together.
    """
    coloured = OKABE_ITO[:-1]
    if behaviour < len(coloured):
        return coloured[behaviour]
    return to_hex(spaced_hues(np.array([behaviour]))[0])


FAR_SHARE, FAR_SPANS = 0.01, 0.5
"""Axes end at the extremes, or half a span beyond the quantiles of this share at either end."""


def robust_limits(values: Sequence[NDArray[np.floating]]) -> tuple[float, float]:
    """Limits of an axis that a few far values do not decide.

    Args:
        values: (N,) of each group on the axis. Each asks for limits of its own, so that a small
            group is seen as whole as a large one; the wider ones are taken.
    """
    ends = []
    for group in values:
        low, high = np.quantile(group, [FAR_SHARE, 1.0 - FAR_SHARE])
        reach = FAR_SPANS * (high - low)
        ends.append((max(group.min(), low - reach), min(group.max(), high + reach)))
    lows, highs = zip(*ends, strict=True)
    low, high = float(min(lows)), float(max(highs))
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def axis_letters(axis: Axes) -> str:
    """One letter for each dimension: xy, or xyz of three-dimensional axes."""
    return "xyz" if axis.name == "3d" else "xy"


def frame_clouds(axis: Axes, clouds: Sequence[NDArray[np.floating]]) -> int:
    """Set robust limits around clouds of points; returns how many points lie outside.

    Args:
        axis: two- or three-dimensional.
        clouds: (N, ≥ dimensions of `axis`) each.
    """
    letters = axis_letters(axis)
    limits = [robust_limits([cloud[:, i] for cloud in clouds]) for i in range(len(letters))]
    axis.set(**{f"{letter}lim": ends for letter, ends in zip(letters, limits, strict=True)})
    points = np.concatenate([cloud[:, : len(letters)] for cloud in clouds])
    low, high = np.transpose(limits)
    return int(((points < low) | (points > high)).any(axis=1).sum())


def tell_stability(attributes: Mapping[str, Any], unit: str = "source episodes") -> str:
    """How stable clusters are, beside data without any; empty without a measurement.

    Args:
        attributes: of a result file.
        unit: what was halved.
    """
    names = {"": "clusters", "dynamics_": "with changes included"}
    found = [
        f"{name} {attributes[f'{prefix}cluster_stability_adjusted_rand']:.2f}, normal data "
        f"{attributes[f'{prefix}cluster_stability_control']:.2f}"
        for prefix, name in names.items()
        if f"{prefix}cluster_stability_adjusted_rand" in attributes
    ]
    if not found:
        return ""
    return f"stability (adjusted Rand index of halves of the {unit}): {'; '.join(found)}"


def tell_trustworthiness(attributes: Mapping[str, Any]) -> str:
    """How far neighbours in the layout are neighbours; empty without a measurement."""
    name = "embedding_trustworthiness"
    if name not in attributes:
        return ""
    return (
        f"trustworthiness of the layout {attributes[name]:.2f}, of two principal components "
        f"{attributes[f'{name}_of_pca']:.2f}, shuffled {attributes[f'{name}_of_shuffled']:.2f}"
    )


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
    pictures = draw_pictures(folder, figures, dpi)
    write_contact_sheet(pictures, folder, columns)
    report.outputs.append(str(folder))
    report.metrics["figures"] = len(pictures)
    return pictures


def draw_pictures(folder: Path, figures: Iterable[tuple[str, Figure]], dpi: int) -> list[Path]:
    """Write figures by name, each as PNG and PDF; returns the PNGs."""
    return [save_figure(figure, folder / name, dpi) for name, figure in figures]


def write_contact_sheet(
    pictures: Sequence[Path], folder: Path, columns: int = 3, name: str = "contact_sheet"
) -> None:
    """Write all pictures, at least one, on one sheet."""
    with atomic_file(folder / f"{name}.png") as path:
        contact_sheet(pictures, min(columns, len(pictures))).save(path)


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
