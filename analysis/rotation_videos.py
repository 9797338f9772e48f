"""Three-dimensional scatters as videos that go once around them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiment.progress import Progress
from rollouts.video import Frame, VideoWriter

if TYPE_CHECKING:
    from mpl_toolkits.mplot3d import Axes3D

ELEVATION = 30.0
"""Degrees above the plane of the first two axes."""
FPS = 4.0
"""Views per second."""


def write_rotation(
    path: Path, figure: Figure, num_views: int, dpi: int, progress: Progress
) -> None:
    """Write one MP4 of a figure whose first axes are three-dimensional.

    The last view is one step before the first: a player that repeats the video turns evenly.

    Args:
        path: file name, ends in `.mp4`.
        figure: drawn once; it is left at the last view.
        num_views: frames of the video, 360° / `num_views` apart.
        dpi: resolution of the frames.
        progress: advances by one per view.

    Raises:
        UserError: no ffmpeg, or it could not write the file.
    """
    figure.set_dpi(dpi)
    with VideoWriter(path, FPS) as video:
        for frame in rotating_views(figure, num_views):
            video.write(frame)
            progress.advance(path.name)


def rotating_views(figure: Figure, num_views: int) -> Iterator[Frame]:
    """The figure from azimuth 0 and every 360° / `num_views` further, (H, W, 3) each."""
    canvas = FigureCanvasAgg(figure)
    axis = cast("Axes3D", figure.axes[0])
    for view in range(num_views):
        axis.view_init(elev=ELEVATION, azim=360.0 * view / num_views)
        canvas.draw()
        # What stands around the scatter must not move with it.
        figure.set_layout_engine("none")
        yield np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
