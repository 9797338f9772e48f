import numpy as np
import pytest

from experiment.errors import UserError
from rollouts.video import (
    StepOverlay,
    VideoWriter,
    action_direction,
    action_glyph,
    draw_action_glyph,
    draw_box,
    draw_overlay,
    draw_text,
    enlarge,
    read_video,
)

PROCGEN_DIRECTIONS = {
    "downleft": (-1, 1),
    "left": (-1, 0),
    "upleft": (-1, -1),
    "down": (0, 1),
    "null": (0, 0),
    "up": (0, -1),
    "downright": (1, 1),
    "right": (1, 0),
    "upright": (1, -1),
}
GREY = np.full((64, 64, 3), 100, np.uint8)


def test_frames_decode_to_what_was_written(tmp_path):
    shades = np.arange(0, 250, 10, dtype=np.uint8)
    with VideoWriter(tmp_path / "deep" / "a.mp4", fps=10) as video:
        video.write_all(np.broadcast_to(shades[:, None, None, None], (25, 32, 48, 3)))
    frames = read_video(tmp_path / "deep" / "a.mp4")
    assert frames.shape == (25, 32, 48, 3)
    errors = frames.astype(int) - shades[:, None, None, None]
    assert np.abs(errors).max() <= 4


def test_odd_sizes_are_padded_and_pixels_enlarged(tmp_path):
    frame = np.zeros((5, 7, 3), np.uint8)
    frame[2, 3] = 255
    with VideoWriter(tmp_path / "a.mp4", scale=5) as video:
        video.write(frame)
    frames = read_video(tmp_path / "a.mp4")
    assert frames.shape == (1, 26, 36, 3)
    rows, columns = np.nonzero(frames[0, :, :, 1] > 128)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 14, 15, 19)


def test_a_failed_video_leaves_nothing_and_spares_the_old_one(tmp_path):
    def fail() -> None:
        with VideoWriter(tmp_path / "a.mp4") as video:
            video.write(GREY)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "a.mp4").read_bytes() == b"old"


def test_an_empty_video_is_refused(tmp_path):
    with (
        pytest.raises(UserError, match=r"a\.mp4: a video needs at least one frame"),
        VideoWriter(tmp_path / "a.mp4"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_frames_of_another_kind_are_refused(tmp_path):
    with VideoWriter(tmp_path / "a.mp4") as video:
        with pytest.raises(ValueError, match="expected uint8"):
            video.write(GREY / 255)  # type: ignore[arg-type]
        video.write(GREY)
        with pytest.raises(ValueError, match=r"found shape \(32, 64, 3\)"):
            video.write(GREY[:32])


def test_a_missing_video_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="not a readable video"):
        read_video(tmp_path / "none.mp4")


@pytest.mark.parametrize(("name", "direction"), PROCGEN_DIRECTIONS.items())
@pytest.mark.parametrize("size", [16, 63])
def test_arrows_point_where_their_names_say(name, direction, size):
    assert action_direction(name) == direction
    ink = action_glyph(name, size).astype(float)
    if direction == (0, 0):
        assert ink.sum() == 0
        return
    # The head carries most of the ink, so the centre of mass lies on the side it points to.
    centre = (size - 1) / 2
    rows, columns = np.mgrid[:size, :size] - centre
    mass = np.array([(ink * columns).sum(), (ink * rows).sum()]) / ink.sum()
    cosine = mass @ direction / np.linalg.norm(mass) / np.linalg.norm(direction)
    assert cosine > 0.99
    assert np.linalg.norm(mass) > size / 50


def test_spellings_of_directions():
    assert action_direction("UP-LEFT") == (-1, -1)
    assert action_direction("NOOP") == (0, 0)
    assert action_direction("fire") is None
    assert action_direction("upgrade") is None
    assert action_glyph("D", 16).any()


def test_the_glyph_is_at_the_top_centre_and_the_frame_is_not_changed():
    frame = GREY.copy()
    drawn = draw_action_glyph(frame, "left")
    np.testing.assert_array_equal(frame, GREY)
    assert (drawn[0, 24:40] == 0).all(), "the square's rim is black"
    outside = np.ones((64, 64), bool)
    outside[:16, 24:40] = False
    np.testing.assert_array_equal(drawn[outside], GREY[outside])


def test_a_box_touches_the_edge():
    drawn = draw_box(GREY, (0, 60), 4, (1, 2, 3))
    np.testing.assert_array_equal(drawn[:4, 60:], np.broadcast_to([1, 2, 3], (4, 4, 3)))
    assert (drawn != GREY).any(axis=2).sum() == 16


@pytest.mark.parametrize(
    ("reward", "colour"),
    [(0, 0), (5, 128), (10, 255), (25.6, 255), (1e9, 255), (float("nan"), 0)],
)
def test_rewards_are_clipped_not_wrapped(reward, colour):
    drawn = draw_overlay(GREY, StepOverlay(reward=reward))
    assert (drawn[:4, -4:] == colour).all()
    assert (drawn[:, :-4] == 100).all()


def test_negative_rewards_are_red():
    drawn = draw_overlay(GREY, StepOverlay(reward=-10))
    assert (drawn[:4, -4:] == (255, 0, 0)).all()


@pytest.mark.parametrize(("probability", "colour"), [(-0.1, 0), (0.5, 128), (1.0, 255), (1.1, 255)])
def test_the_terminal_box_is_at_the_left(probability, colour):
    drawn = draw_overlay(GREY, StepOverlay(terminal_prob=probability))
    assert (drawn[:4, :4] == colour).all()
    assert (drawn[:, 4:] == 100).all()


def test_value_text_stays_in_the_lower_part():
    drawn = draw_text(enlarge(GREY, 4), "V 7.31")
    changed = (drawn != 100).any(axis=2)
    assert changed.any()
    assert not changed[:220].any()


def test_an_overlay_without_items_is_the_enlarged_frame():
    np.testing.assert_array_equal(draw_overlay(GREY, StepOverlay(), scale=3), enlarge(GREY, 3))
