import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.rotation_videos import ELEVATION, rotating_views, write_rotation
from experiment.progress import Progress
from rollouts.video import read_video


@pytest.fixture
def solid():
    """A figure of points without symmetry, with a title."""
    figure = Figure(figsize=(2, 2), dpi=40, layout="constrained")
    axis = figure.add_subplot(projection="3d")
    places = np.diag([1.0, 2.0, 3.0])
    axis.scatter(*places, c=["red", "green", "blue"])
    figure.suptitle("title")
    return figure


def test_views_go_once_around_and_meet(solid):
    axis = solid.axes[0]
    angles, frames = [], []
    for frame in rotating_views(solid, 36):
        angles.append(axis.azim)
        frames.append(frame)
        assert axis.elev == ELEVATION == 30.0
    np.testing.assert_allclose(angles, 10.0 * np.arange(36))
    assert len({frame.tobytes() for frame in frames}) == 36
    # The 37th view, were there one, would be the first.
    axis.view_init(elev=ELEVATION, azim=angles[-1] + 10.0)
    solid.canvas.draw()
    np.testing.assert_array_equal(np.asarray(solid.canvas.buffer_rgba())[:, :, :3], frames[0])


def test_only_the_view_changes(solid):
    (points,) = solid.axes[0].collections
    frames = []
    for frame in rotating_views(solid, 5):
        frames.append(frame)
        assert solid.axes[0].collections[0] is points
        assert len(solid.axes[0].collections) == 1
    title = np.stack(frames)[:, :8]
    assert title.min() < 128
    np.testing.assert_array_equal(title, np.broadcast_to(title[0], title.shape))


def test_a_video_has_one_frame_per_view_at_its_resolution(solid, tmp_path):
    path = tmp_path / "rotations" / "pca_value.mp4"
    with Progress(6, "view") as progress:
        write_rotation(path, solid, 6, 50, progress)
    frames = read_video(path)
    assert frames.shape == (6, 100, 100, 3)
